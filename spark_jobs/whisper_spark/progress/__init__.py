"""Counters of a running engine, and the progress reports that bring them to the log of the driver.

Nothing here may affect the transcripts, or make a task fail: errors of the store are only logged. Only
``spark/first_files.py`` acts on the reports: it stops a job whose files all fail.
"""
