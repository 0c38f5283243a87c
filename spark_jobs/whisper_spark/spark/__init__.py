"""The Spark side of the job: configuration, DataFrames of files, the work of one task, and the whole run.

Only this package, ``job`` and ``udf`` may depend on pyspark. Change here how files are divided among tasks,
and how a task stages its rows; how a task transcribes its files belongs to ``engine``.
"""
