"""Lists, reads, writes and deletes objects by URI, with one hierarchy of errors for all object stores.

Add support for a new store here and nowhere else. This package does not know Airflow connections: it gets a
mapping of settings. Error messages must never contain secrets.
"""
