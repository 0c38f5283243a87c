"""Detect partitions with new audio: poll a source and keep a cursor between polls.

The trigger and the sensor share this package. Its code blocks, and must not depend on Airflow's event loop or
on the table. Airflow's database stores the cursor, so a changed format must still read cursors of older
releases.
"""
