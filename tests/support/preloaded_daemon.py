"""Spark's daemon of Python workers, which has imported what tasks need before it forks the first worker.

A worker that raised an exception ends. Without this module the next one imports pandas and pyarrow again,
which takes a second of processor time.
"""

import gc

from pyspark.daemon import manager

import whisper_spark.spark.run  # noqa: F401

if __name__ == "__main__":
    # A worker collects garbage after each task, which takes the longer the more objects it has.
    gc.freeze()
    manager()
