"""The validation report that people see: as JSON, as an HTML page, and behind a link in Airflow.

Everything that comes from audio files or from the table is untrusted text here. What is checked, and when a
check fails, belongs to ``validation``.
"""
