"""The Iceberg table: its schema, reading a partition, and replacing rows in one atomic commit.

Only this package knows PyIceberg.
"""
