"""Objects by URI: list, read, write, delete, with one small hierarchy of errors for all stores.

A new store is added here and nowhere else. Knows no Airflow connection: it gets a mapping of settings.
Secrets never reach a message.
"""
