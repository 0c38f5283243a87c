"""Create clients from Airflow connections: for object storage, the catalog and spark-submit.

All code that reads a connection or starts a process belongs in this package.
"""
