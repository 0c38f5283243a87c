"""How the job uses Spark: configuration, DataFrames of files, the work of one task, the run as a whole.

Only this package, ``job`` and ``udf`` build on pyspark. What happens inside a task belongs to ``engine``.
"""
