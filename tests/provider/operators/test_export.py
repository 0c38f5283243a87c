"""Exported files are those of the table's rows, whatever happened to earlier exports."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
import srt
import webvtt
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException
from lakes import TABLE, change
from transcripts import PARTITION, make_transcript_rows

from airflow_whisper import transcribe_partition
from airflow_whisper.export import run as export_run
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.export import ExportTranscriptsOperator
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from whisper_spark.contract import WhisperOptions
from whisper_spark.storage.objects import ObjectStorage


@pytest.fixture(autouse=True)
def _own_catalog(catalog_env: SimpleNamespace) -> None:
    """Every test here writes to a catalog of its own."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def register(*uris: str, **arguments: Any) -> None:
    base = current_snapshot_id(open_catalog(None), TABLE)
    assert replace_rows(open_catalog(None), TABLE, change(uris, base=base, **arguments)) is not None


def export(out: Path, **arguments: Any) -> dict[str, Any]:
    template = f"{out}/{{partition}}/{{name}}.{{format}}"
    operator = ExportTranscriptsOperator(
        **{"task_id": "export", "table": TABLE, "partition": PARTITION, "uri_template": template, **arguments}
    )
    return operator.execute({})  # type: ignore[arg-type]


def files(out: Path) -> dict[str, int]:
    """Names of exported files without their ids, with the times of their last change."""
    paths = (p for p in out.rglob("*") if p.is_file() and "_exports" not in p.parts)
    return {f"{p.name.rpartition('-')[0]}{p.suffix}": p.stat().st_mtime_ns for p in paths}


FOUR = ("json", "srt", "txt", "vtt")


def names(*stems: str, formats: tuple[str, ...] = FOUR) -> list[str]:
    return sorted(f"{stem}.{format_}" for stem in stems for format_ in formats)


def test_every_row_is_written_in_all_formats(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    result = export(out)
    assert (result["written"], result["removed"]) == (2, 0)
    assert result["snapshot_id"] == current_snapshot_id(open_catalog(None), TABLE)
    assert sorted(files(out)) == names("a", "b")
    (subtitles,) = out.rglob("a-*.srt")
    assert [item.content for item in srt.parse(subtitles.read_text())] == ["The words"]
    (captions,) = out.rglob("a-*.vtt")
    assert [caption.text for caption in webvtt.read(captions)] == ["The words"]
    for path in (subtitles, captions):
        with av.open(str(path)) as container:
            assert len(container.streams.subtitles) == 1
    (document,) = out.rglob("a-*.json")
    row = json.loads(document.read_text())
    assert (row["audio_uri"], row["dt"]) == ("s3://calls/a.wav", "2026-11-01")
    assert row["segments"][0]["words"][0]["word"] == "The"


def test_index_lists_the_files_of_each_recording(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    index = pq.read_table(export(out)["index_uri"].removeprefix("file://"), partitioning=None).to_pylist()
    listed = {row["audio_uri"]: row["files"] for row in index}
    assert listed.keys() == {"s3://calls/a.wav", "s3://calls/b.wav"}
    assert all(Path(file.removeprefix("file://")).exists() for row in listed.values() for file in row)


def test_only_rows_that_changed_are_written(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    export(out)
    before = files(out)
    register("s3://calls/b.wav", why="changed", etag="e2", text="other words", attempt=2)
    register("s3://calls/c.wav")
    result = export(out)
    assert (result["written"], result["removed"]) == (2, 0)
    after = files(out)
    assert sorted(after) == names("a", "b", "c")
    assert {name for name in before if before[name] != after[name]} == set(names("b"))


def test_running_again_does_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("s3://calls/a.wav")
    first = export(out)
    before = files(out)
    # Other partitions do not matter either.
    register("s3://calls/z.wav", partition={"dt": "2026-11-02"})

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a row was read or written")

    monkeypatch.setattr(export_run, "read_rows", refused)
    again = export(out)
    assert (again["written"], again["removed"]) == (0, 0)
    assert again["index_uri"] == first["index_uri"]
    assert files(out) == before


def test_files_of_removed_rows_are_deleted(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    export(out)
    register(removed=["s3://calls/a.wav"])
    assert export(out)["removed"] == 1
    assert sorted(files(out)) == names("b")


def test_row_that_became_an_error_has_no_files(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    export(out)
    register("s3://calls/a.wav", why="changed", etag="e2", status="error")
    assert export(out)["removed"] == 1
    assert sorted(files(out)) == names("b")


def test_exports_that_were_missed_are_caught_up(out: Path) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    export(out)
    register("s3://calls/c.wav")
    register(removed=["s3://calls/a.wav"])
    register("s3://calls/b.wav", why="stale", fingerprint=WhisperOptions(model="tiny").fingerprint())
    result = export(out)
    assert (result["written"], result["removed"]) == (2, 1)
    assert sorted(files(out)) == names("b", "c")


class UnpluggedError(Exception):
    """The store went away."""


def test_export_that_was_interrupted_is_finished_by_the_next(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav")
    whole = ObjectStorage.write_bytes

    def fails(self: ObjectStorage, uri: str, data: bytes, **arguments: Any) -> bool:
        if "/b-" in uri and uri.endswith(".vtt"):
            raise UnpluggedError
        return whole(self, uri, data, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStorage, "write_bytes", fails)
        with pytest.raises(UnpluggedError):
            export(out)
    assert sorted(files(out)) == sorted([*names("a"), "b.srt"])
    # Its file is deleted although no export that wrote it came to its end.
    register(removed=["s3://calls/b.wav"])
    result = export(out)
    assert result["removed"] == 1
    assert sorted(files(out)) == names("a")


def test_export_that_was_killed_leaves_no_file_behind(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register("s3://calls/a.wav")
    with monkeypatch.context() as patch:
        # As if the process ended after the last file: no further statement runs.
        patch.setattr(export_run.ExportIndex, "finish", lambda *_: (_ for _ in ()).throw(UnpluggedError))
        patch.setattr(export_run._Export, "_saved_on_failure", lambda self: nullcontext())
        with pytest.raises(UnpluggedError):
            export(out)
    assert sorted(files(out)) == names("a")
    register(removed=["s3://calls/a.wav"])
    export(out)
    assert files(out) == {}


def test_other_settings_write_all_files_again_and_delete_the_old(out: Path) -> None:
    register("s3://calls/a.wav")
    export(out)
    assert export(out, formats=["vtt", "srt"], max_line_width=5)["written"] == 1
    assert sorted(files(out)) == names("a", formats=("srt", "vtt"))
    (subtitles,) = out.rglob("a-*.srt")
    assert [item.content for item in srt.parse(subtitles.read_text())] == ["The\nwords"]
    flat = f"{out}/{{name}}.{{format}}"
    export(out, formats="srt", uri_template=flat)
    assert [path.parent for path in out.rglob("*.srt")] == [out]


def test_damaged_index_writes_all_files_again(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    register("s3://calls/a.wav")
    index = Path(export(out)["index_uri"].removeprefix("file://"))
    index.write_bytes(b"PAR1 it was")
    assert export(out)["written"] == 1
    assert export(out)["written"] == 0


def test_index_cannot_delete_what_is_not_an_export(out: Path, tmp_path: Path) -> None:
    register("s3://calls/a.wav")
    index = Path(export(out)["index_uri"].removeprefix("file://"))
    precious = tmp_path / "precious.txt"
    precious.touch()
    table = pq.read_table(index, partitioning=None)
    rows = [{**row, "files": [f"file://{precious}"]} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), index)
    register(removed=["s3://calls/a.wav"])
    export(out)
    assert precious.exists()


def test_table_that_is_missing_deletes_nothing(out: Path) -> None:
    register("s3://calls/a.wav")
    export(out)
    open_catalog(None).drop_table(TABLE)
    assert export(out)["snapshot_id"] is None
    assert sorted(files(out)) == names("a")


def test_renamed_columns_are_exported(out: Path) -> None:
    register("s3://calls/a.wav")
    with open_catalog(None).load_table(TABLE).update_schema() as update:
        update.rename_column("text", "transcript")
    register("s3://calls/b.wav")
    assert export(out)["written"] == 2
    assert sorted(files(out)) == names("a", "b")
    (document,) = out.rglob("b-*.json")
    assert json.loads(document.read_text())["text"] == "The words of s3://calls/b.wav."


def test_exports_in_object_storage_use_their_own_connection(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register("s3://calls/a.wav", "s3://calls/ü b.wav")
    monkeypatch.setenv("AIRFLOW_CONN_EXPORTS", s3.connection)
    bucket = s3.bucket("exports")
    target = {"uri_template": f"s3://{bucket}/{{dt}}/{{name}}.{{format}}", "export_conn_id": "exports"}
    result = export(Path(), **target, formats=["vtt"])
    keys = [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert result["index_uri"] == f"s3://{bucket}/_exports/{TABLE}/dt=2026-11-01.parquet"
    assert [key.rpartition("-")[0] for key in keys if key.endswith(".vtt")] == [
        "2026-11-01/a",
        "2026-11-01/ü b",
    ]
    register(removed=["s3://calls/ü b.wav"])
    assert export(Path(), **target, formats=["vtt"])["removed"] == 1
    assert len(s3.client().list_objects_v2(Bucket=bucket)["Contents"]) == 2


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"uri_template": "s3://b/{stem}.{format}"}, "same file"),
        ({"uri_template": "subtitles/{name}.{format}"}, "is a relative path"),
        ({"formats": ["srt", "sub"]}, "formats must be some of srt, vtt, txt, json"),
        ({"formats": []}, "formats must be"),
        ({"table": "transcripts"}, "namespace.table"),
        ({"partition": "dt=2026-11-01"}, "partition must be a dict"),
        ({"formats": None}, "formats must be"),
        ({"max_line_count": 0}, "max_line_count must be a positive whole number"),
        ({"max_line_count": None}, "max_line_count must be a positive whole number"),
        ({"speakers": "Agent"}, "speakers must be True, False, or names"),
    ],
)
def test_wrong_argument_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExportTranscriptsOperator(
            **{
                "task_id": "export",
                "table": TABLE,
                "partition": {"dt": "{{ ds }}"},
                "uri_template": "s3://b/{name}.{format}",
                **wrong,
            }
        )


def group(**arguments: Any) -> Any:
    with DAG("calls", schedule=None):
        return transcribe_partition(
            source="s3://calls/raw/dt={{ ds }}/",
            partition={"dt": "{{ ds }}"},
            table=TABLE,
            staging="s3://calls/staging/",
            source_conn_id="calls_s3",
            **arguments,
        )


def test_task_group_exports_after_register_and_also_when_there_was_nothing_new() -> None:
    template = "s3://calls/subtitles/{dt}/{name}.{format}"
    task = group(export=template).children["transcribe.export"]
    assert task.upstream_task_ids == {"transcribe.register"}
    assert (task.uri_template, task.export_conn_id, task.trigger_rule) == (
        template,
        "calls_s3",
        "none_failed",
    )
    given = {"uri_template": template, "formats": ["srt"], "export_conn_id": "other", "retries": 7}
    task = group(export=given).children["transcribe.export"]
    assert (task.formats, task.export_conn_id, task.retries) == (["srt"], "other", 7)
    assert "transcribe.export" not in group().children
    with pytest.raises(ValueError, match="same file"):
        group(export="s3://calls/{stem}.{format}")


DRY_RUN = "{{ dag_run.conf['dry_run'] }}"


def started(task: Any, *, dry_run: bool) -> None:
    """Run the hooks of a task, as Airflow does before it executes the task."""
    from airflow.sdk.execution_time.callback_runner import create_executable_runner

    context = {"task": task, "dag_run": SimpleNamespace(conf={"dry_run": dry_run})}
    create_executable_runner(task._pre_execute_hook, {}, logger=logging.getLogger()).run(context)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["argument", "default_args", "generator"])
@pytest.mark.parametrize("name", ["export", "maintain"])
def test_dry_run_skips_tasks_with_a_hook_of_their_own(name: str, where: str) -> None:
    called: list[str] = []

    def hook(context: Any) -> None:
        called.append(context["task"].task_id)

    def generator(context: Any) -> Iterator[Any]:
        called.append(context["task"].task_id)
        yield from ()

    hooks: dict[str, Any] = {"pre_execute": generator if where == "generator" else hook}
    given: dict[str, Any] = {} if where == "default_args" else hooks
    made = group(
        dry_run=DRY_RUN,
        export={"uri_template": "s3://calls/{name}.{format}", **given},
        maintain={"trigger_rule": "all_done", **given},
        default_args=hooks if where == "default_args" else None,
    )
    task = made.children[f"transcribe.{name}"]
    with pytest.raises(AirflowSkipException):
        started(task, dry_run=True)
    assert called == []
    started(task, dry_run=False)
    assert called == [f"transcribe.{name}"]


def test_arguments_in_mappings_replace_those_of_the_group() -> None:
    ours = {"task_display_name": "ours", "pool": "ours"}
    made = group(
        pool="gpu",
        catalog_conn_id="lake",
        export={"uri_template": "s3://calls/{name}.{format}", "trigger_rule": "all_success", **ours},
        maintain={"catalog_conn_id": "other", **ours},
        spark={"source_conn_id": "other", "conn_id": "yarn", **ours},
    ).children
    for name in ("export", "maintain", "transcribe"):
        task = made[f"transcribe.{name}"]
        assert (task.task_display_name, task.pool) == ("ours", "ours")
    assert made["transcribe.export"].trigger_rule == "all_success"
    assert made["transcribe.maintain"].catalog_conn_id == "other"
    assert (made["transcribe.transcribe"].source_conn_id, made["transcribe.transcribe"].conn_id) == (
        "other",
        "yarn",
    )


def test_log_says_what_was_done(out: Path, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_transcript_rows(["s3://calls/a.wav"])
    register("s3://calls/a.wav", rows=rows)
    export(out)
    export(out)
    said = caplog.text + "".join(capsys.readouterr())
    assert "Wrote the files of 1 rows and deleted those of 0: dt=2026-11-01" in said
    assert "are up to date" in said
