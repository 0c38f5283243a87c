"""The files of a run in staging: rows, which are written while the job runs, and its result.

The Airflow side reads both. File names and ``result.json`` are a stable format: code here must read the files
of older releases, and ignore fields of later ones.
"""
