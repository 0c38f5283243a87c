"""What a template or another task gives wrongly fails a task at once, whatever the operator."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_whisper.operators.maintain import MaintainTableOperator, PurgeStagingOperator
from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.table.errors import TableMismatchError


def _maintain() -> Any:
    return MaintainTableOperator(task_id="t", table="{{ t }}")


def _purge() -> Any:
    return PurgeStagingOperator(task_id="t", table="{{ t }}", staging="/staging")


def _sense() -> Any:
    return NewAudioSensor(task_id="t", source="/raw/", partition={"dt": "2026-11-01"}, table="{{ t }}")


@pytest.mark.parametrize("make", [_maintain, _purge, _sense])
def test_wrong_argument_that_a_template_gives_is_not_retried(make: Any) -> None:
    operator = make()
    operator.table = "transcripts"
    with pytest.raises(AirflowFailException, match=r"must be written namespace\.table"):
        operator.execute({})


def test_table_that_cannot_hold_transcripts_is_not_tried_again() -> None:
    assert issubclass(TableMismatchError, AirflowFailException)
