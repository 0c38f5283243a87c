"""How the job uses Spark: configuration, DataFrames of files, the work of one task, the run as a whole."""
