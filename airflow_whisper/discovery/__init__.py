"""What has to be done: list the audio of a partition, compare it with the table, write the manifest.

Change here what counts as new, changed, stale, retried or removed. Plain functions over Arrow batches,
without Airflow: arguments, messages and XCom belong to ``operators/discover.py``.
"""
