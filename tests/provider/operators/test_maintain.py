"""The operators that maintain the table and staging."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from lakes import TABLE, change, data_files, uris
from transcripts import PARTITION, stage_run

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.maintain import MaintainTableOperator, PurgeStagingOperator
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from whisper_spark.contract import Run


@pytest.fixture(autouse=True)
def _own_catalog(catalog_env: SimpleNamespace) -> None:
    """Every test here writes to a catalog of its own."""


def maintain(**kwargs: Any) -> dict[str, Any]:
    return MaintainTableOperator(task_id="maintain", table=TABLE, **kwargs).execute({})


def purge(folder: Path, **kwargs: Any) -> dict[str, Any]:
    operator = PurgeStagingOperator(task_id="purge", staging=str(folder), table=TABLE, **kwargs)
    return operator.execute({})


def test_wrong_table_and_staging_are_not_retried(tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match=r"there is no table speech\.transcripts in catalog"):
        maintain()
    operator = PurgeStagingOperator(task_id="purge", staging="{{ params.staging }}", table=TABLE)
    operator.staging = "ftp://host/staging"
    with pytest.raises(AirflowFailException, match=r"staging: .*not supported"):
        operator.execute({})


def local(run: Run) -> Path:
    return Path(run.run_uri.removeprefix("file://"))


def test_table_is_compacted_merged_and_its_history_forgotten() -> None:
    catalog = open_catalog(None)
    for i in range(5):
        replace_rows(catalog, TABLE, change([f"{i}"], base=current_snapshot_id(catalog, TABLE)))
    done = maintain(min_manifests=2, expire_older_than=timedelta(0))
    assert done.pop("deleted_files") >= 15
    assert done == {
        "table": TABLE,
        "compacted_files": 5,
        "merged_manifests": 2,
        "expired_snapshots": 6,
    }
    table = catalog.load_table(TABLE)
    assert (len(table.snapshots()), len(data_files(table))) == (1, 1)
    assert uris(catalog) == [f"{i}" for i in range(5)]


@pytest.mark.parametrize("kind", [MaintainTableOperator, PurgeStagingOperator])
def test_partition_stays_text_where_templates_render_to_objects(kind: type[Any]) -> None:
    needed = {"staging": "/staging"} if kind is PurgeStagingOperator else {}
    with DAG("native", schedule=None, render_template_as_native_obj=True):
        task = kind(task_id="care", table=TABLE, partition={"dt": "{{ v }}"}, **needed)
    task.render_template_fields({"v": "2026_11_01"})
    assert task.partition == {"dt": "2026_11_01"}


def test_nothing_is_done_without_need() -> None:
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert maintain(partition=PARTITION) == {
        "table": TABLE,
        "compacted_files": 0,
        "merged_manifests": 0,
        "expired_snapshots": 0,
        "deleted_files": 0,
    }


def test_run_is_registered_again_after_maintenance_expired_its_snapshot(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a", "b"])
    operator = RegisterTranscriptsOperator(task_id="register", manifest=run.manifest_uri)
    first = operator.execute({})
    replace_rows(open_catalog(None), TABLE, change(["c"], base=first["snapshot_id"]))
    maintain(expire_older_than=timedelta(0))
    assert operator.execute({}) == first


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_files": 1},
        {"min_manifests": 0},
        {"keep_snapshots": 0},
        {"expire_older_than": timedelta(-1)},
        {"expire_older_than": 7},
        {"partition": {"dt": ""}},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MaintainTableOperator(task_id="maintain", table=TABLE, **arguments)


@pytest.mark.parametrize(
    "wrong",
    [{"staging": "staging"}, {"staging": "ftp://host/s"}, {"table": "transcripts"}, {"older_than": 30}],
    ids=str,
)
def test_wrong_place_to_purge_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PurgeStagingOperator(task_id="purge", **{"staging": "s3://calls/staging/", "table": TABLE, **wrong})


def age(run: Run, days: float) -> None:
    then = time.time() - days * 86400
    for path in local(run).rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_old_runs_of_the_table_are_deleted_from_staging_whole(tmp_path: Path) -> None:
    old = stage_run(tmp_path, ["a"])
    young = stage_run(tmp_path, ["b"])
    # A run is as old as the last thing that was written to it.
    going_on = stage_run(tmp_path, ["c"])
    other_day = stage_run(tmp_path, ["d"], partition={"dt": "2026-11-02"})
    other_table = stage_run(tmp_path, ["e"], table="speech.other")
    for run in (old, going_on, other_day, other_table):
        age(run, 31)
    os.utime(local(going_on) / "report.json")
    assert purge(tmp_path, partition=PARTITION) == {"deleted_runs": 1, "deleted_files": 4}
    kept = (young, going_on, other_day, other_table)
    assert not list(local(old).rglob("*.parquet"))
    assert all((local(run) / "manifest.parquet").exists() for run in kept)
    assert purge(tmp_path)["deleted_runs"] == 1
    assert not list(local(other_day).rglob("*.parquet"))
    assert (local(other_table) / "manifest.parquet").exists()


def test_age_of_runs_must_be_a_time() -> None:
    with pytest.raises(ValueError, match="older_than must be a timedelta"):
        PurgeStagingOperator(task_id="purge", staging="/s", table=TABLE, older_than=30)  # type: ignore[arg-type]
