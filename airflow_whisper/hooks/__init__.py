"""Airflow connections -> clients: object storage, the catalog, spark-submit and what it is given.

Everything that reads a connection or starts a process lives here.
"""
