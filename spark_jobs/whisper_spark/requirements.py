"""What Python packages ``whisper_spark`` needs where there is no Airflow: on executors and in notebooks.

.. code-block:: bash

    python -m whisper_spark.requirements > requirements.txt
    pip install -r requirements.txt

``whisper_spark`` itself is not among them: ``WhisperTranscribeOperator`` sends it along, and elsewhere
``pip install --no-deps airflow-provider-whisper`` installs it.
"""

from __future__ import annotations

import argparse

# The same versions as in pyproject.toml, which a test compares. They stand here too, because executors get
# this package without its metadata.
REQUIREMENTS = (
    "ctranslate2>=4.8,<5",
    "faster-whisper>=1.2.1,<1.3",
    "filelock>=3.20.1",
    "obstore>=0.12,<0.13",
    "pandas>=2.2,<3",
    "protobuf>=4.25.8",
    "pyarrow>=19.0.1",
    "threadpoolctl>=3.5",
)
"""Requirements of an executor's Python, besides the pyspark that Spark itself brings."""

PYSPARK = "pyspark==4.2.0"
"""Spark, for a notebook or a cluster that is made with pip."""


def main(arguments: list[str] | None = None) -> None:
    """Print the requirements, one a line, as pip reads them.

    :param arguments: of the command line; ``None``: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m whisper_spark.requirements",
        description="Print what whisper_spark needs where there is no Airflow, for pip install -r.",
    )
    parser.add_argument(
        "--pyspark", action="store_true", help="add pyspark, for machines on which Spark is not installed"
    )
    chosen = parser.parse_args(arguments)
    print("\n".join([*REQUIREMENTS, *([PYSPARK] if chosen.pyspark else [])]))


if __name__ == "__main__":
    main()
