"""The Iceberg table: its schema, reading a partition, replacing rows in one atomic commit, and its upkeep.

Only this package knows PyIceberg.
"""
