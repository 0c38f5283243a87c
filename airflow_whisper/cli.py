"""Commands that this provider adds to Airflow's command line. Imported by every ``airflow`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def get_cli_commands() -> list[CLICommand]:
    """Return ``airflow whisper estimate``, with the arguments of ``airflow backfill create``."""
    from airflow.cli.cli_config import (
        ARG_BACKFILL_DAG,
        ARG_BACKFILL_FROM_DATE,
        ARG_BACKFILL_TO_DATE,
        ARG_BUNDLE_NAME,
        ARG_DAG_RUN_CONF,
        ARG_OUTPUT,
        ActionCommand,
        GroupCommand,
        lazy_load_command,
    )

    estimate = ActionCommand(
        name="estimate",
        help="Estimate what a backfill would cost, without creating runs",
        description=(
            "Compare the audio of each run of a backfill with the table, and add up hours of audio, hours of "
            "Spark jobs and GPU hours. Nothing is written or submitted. Runs on a machine that has the Dag "
            "files, and reads sources and tables like a worker."
        ),
        func=lazy_load_command("airflow_whisper.backfill_estimate.estimate_command"),
        args=(
            ARG_BACKFILL_DAG,
            ARG_BACKFILL_FROM_DATE,
            ARG_BACKFILL_TO_DATE,
            ARG_DAG_RUN_CONF,
            ARG_BUNDLE_NAME,
            ARG_OUTPUT,
        ),
    )
    return [GroupCommand(name="whisper", help="Transcription with Whisper on Spark", subcommands=(estimate,))]
