"""Present the validation report: as JSON, as an HTML page, and behind a link in Airflow.

Treat all text from audio files or from the table as untrusted here. The checks themselves belong in
``validation``.
"""
