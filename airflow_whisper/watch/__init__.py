"""Which partitions have new audio? Lists a source again and again, and keeps a cursor between polls.

The trigger and the sensor share it. It blocks, and knows nothing of Airflow's event loop or of the table.
The form of the cursor is stored in Airflow's database: read what older releases wrote.
"""
