"""What a run leaves in staging: rows that are durable while the job runs, and its result.

The Airflow side reads both. File names and ``result.json`` are a format: read what older releases wrote,
and ignore fields of later ones.
"""
