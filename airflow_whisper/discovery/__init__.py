"""Determine the work of a run: list a partition's audio, compare it with the table, write the manifest.

This package decides what counts as new, changed, stale, retried or removed. It consists of plain functions
over Arrow batches that do not use Airflow: arguments and XComs belong in ``operators/discover.py``.
"""
