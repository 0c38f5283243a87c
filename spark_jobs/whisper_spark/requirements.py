"""What Python packages ``whisper_spark`` needs where there is no Airflow: on executors and in notebooks.

.. code-block:: bash

    python -m whisper_spark.requirements > requirements.txt
    pip install -r requirements.txt

``whisper_spark`` itself is not among them: ``WhisperTranscribeOperator`` sends it along, and elsewhere
``pip install --no-deps airflow-provider-whisper`` installs it.
"""

from __future__ import annotations

import argparse

from whisper_spark.engine.packages import PACKAGES

# Packages without versions of their own come with others.
_PINNED = {package.name: f"{package.name}{package.wanted}" for package in PACKAGES if package.wanted}

PYSPARK = _PINNED.pop("pyspark")
"""Spark, for a notebook or a cluster that is made with pip."""

REQUIREMENTS = tuple(_PINNED.values())
"""Requirements of an executor's Python, besides the pyspark that Spark itself brings."""


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
