"""The Iceberg table: its schema, reading a partition, replacing rows atomically, and maintenance.

Code that depends on PyIceberg's internals belongs in this package.
"""
