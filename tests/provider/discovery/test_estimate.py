"""What a run is expected to cost, before anything is submitted: from real folders and real tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.exceptions import AirflowSkipException
from recordings import record
from transcripts import OPTIONS, make_transcript_rows, stage_run

from airflow_whisper.discovery.estimate import HEADER_READS, Estimate, Work, estimate, header_rates, total
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.table.history import PastRuns, past_runs
from airflow_whisper.table.publish import register_run
from whisper_spark.contract import Run, WhisperOptions, transcript_schema
from whisper_spark.staging.result import RunResult, read_result
from whisper_spark.storage.objects import ObjectStorage

TABLE = "speech.transcripts"
STORAGE = ObjectStorage()


class Pushed(SimpleNamespace):
    """A task instance that keeps its XComs."""

    def xcom_push(self, key: str, value: Any) -> None:
        setattr(self, key, value)


@pytest.fixture
def calls(tmp_path: Path, catalog_env: SimpleNamespace) -> Path:
    """An empty source with an empty catalog."""
    return tmp_path / "calls"


def operator(calls: Path, day: str = "2026-11-01", **arguments: Any) -> DiscoverAudioOperator:
    defaults: dict[str, Any] = {"options": OPTIONS, "source": f"{calls}/dt={day}", "partition": {"dt": day}}
    return DiscoverAudioOperator(
        task_id="discover", table=TABLE, staging=f"{calls.parent}/staging", **(defaults | arguments)
    )


def expected(calls: Path, day: str = "2026-11-01", **arguments: Any) -> dict[str, Any]:
    result = operator(calls, day, **arguments).execute({})
    assert json.loads(json.dumps(result["estimate"])) == result["estimate"]
    return dict(result["estimate"])


def publish(
    calls: Path,
    names: Iterable[str],
    seconds: float,
    options: WhisperOptions = OPTIONS,
    partition: Mapping[str, str] | None = None,
    **cost: Any,
) -> None:
    """Publish rows for files of the first day as a run does whose job took so long."""
    folder = f"{calls}/dt=2026-11-01"
    infos = {f"file://{folder}/{name}": STORAGE.info(f"{folder}/{name}") for name in names}
    rows = make_transcript_rows(
        infos,
        partition=partition,
        audio_etag=lambda uri: infos[uri].etag,
        audio_bytes=lambda uri: infos[uri].size,
        duration_s=seconds,
        fingerprint=options.fingerprint(),
    )
    run = stage_run(calls.parent / "staging", infos, rows=rows, options=options, partition=partition)
    with_cost(run, transcribed=len(infos), transcribed_audio_seconds=seconds * len(infos), **cost)
    assert register_run(run, STORAGE, open_catalog(None))


def with_cost(run: Run, **values: Any) -> None:
    result = dataclasses.replace(read_result(run, STORAGE), **values)
    Path(run.result_uri.removeprefix("file://")).write_text(result.to_json())


# --- hours of audio ----------------------------------------------------------------------------------------


def test_headers_tell_the_hours_of_a_first_run(calls: Path) -> None:
    for number in range(3):
        record(calls / f"dt=2026-11-01/{number}.wav", 60)
    found = expected(calls)
    assert found["audio_hours"] == pytest.approx(3 / 60, rel=0.01)
    assert found["audio_hours_range"] == [found["audio_hours"], found["audio_hours"]]
    assert (found["files"], found["based_on"]) == (3, "the headers of a few files")
    assert found["real_time_factor"] is found["job_hours"] is found["gpu_hours"] is None


def test_other_files_of_the_partition_tell_before_any_header_is_read(calls: Path) -> None:
    for name in "ab":
        (calls / "dt=2026-11-01").mkdir(parents=True, exist_ok=True)
        (calls / f"dt=2026-11-01/{name}.opus").write_bytes(b"x" * 4_000)
    publish(calls, ["a.opus"], 2.0)
    found = expected(calls)
    # 2,000 bytes a second, as in a.opus.
    assert found["audio_hours"] == pytest.approx(2 / 3600, abs=1e-4)
    assert found["based_on"] == "bytes per second of this partition's other files"


def test_new_partition_takes_the_size_of_a_second_from_the_latest_rows_of_its_source(calls: Path) -> None:
    for day in ("2026-11-01", "2026-11-02"):
        (calls / f"dt={day}").mkdir(parents=True)
        (calls / f"dt={day}/a.opus").write_bytes(b"x" * 900_000)
    publish(calls, ["a.opus"], 300.0)
    found = expected(calls, "2026-11-02")
    assert found["audio_hours"] == pytest.approx(300 / 3600, rel=0.01)
    assert found["based_on"] == "bytes per second in the table's latest rows"
    (calls.parent / "other/dt=2026-11-02").mkdir(parents=True)
    (calls.parent / "other/dt=2026-11-02/a.opus").write_bytes(b"x" * 900_000)
    assert expected(calls.parent / "other", "2026-11-02")["based_on"] == "the typical size of .opus"


def test_other_partitions_tell_whichever_way_the_table_spells_their_folders(calls: Path) -> None:
    """The hour is a number in the table, and a folder of two digits."""
    catalog = open_catalog(None)
    catalog.create_namespace("speech")
    schema = transcript_schema([]).append(pa.field("dt", pa.string())).append(pa.field("hour", pa.int32()))
    with (
        catalog.create_table_transaction(TABLE, schema) as transaction,
        transaction.update_spec() as spec,
    ):
        spec.add_identity("dt").add_identity("hour")
    for folder in ("dt=2026-11-01", "07"):
        (calls / folder).mkdir(parents=True)
        (calls / folder / "a.opus").write_bytes(b"x" * 900_000)
    partition = {"dt": "2026-11-01", "hour": "6"}
    # The folder of publish() is below `calls`, as those of the hours are.
    publish(calls, ["a.opus"], 300.0, partition=partition)
    found = expected(calls, source=f"{calls}/07", partition=partition | {"hour": "07"})
    assert found["based_on"] == "bytes per second in the table's latest rows"


def test_table_without_durations_leaves_it_to_the_headers(calls: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 60)
    publish(calls, ["a.wav"], 60.0)
    with open_catalog(None).load_table("speech.transcripts").update_schema() as update:
        update.delete_column("duration_s")
    record(calls / "dt=2026-11-02/a.wav", 60)
    found = expected(calls, "2026-11-02")
    assert found["audio_hours"] == pytest.approx(1 / 60, rel=0.01)
    assert found["based_on"] == "the headers of a few files"


def test_stale_files_cost_the_seconds_that_their_rows_tell(calls: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 1)
    publish(calls, ["a.wav"], 7_200.0)
    found = expected(calls, options=WhisperOptions(model="small"))
    assert found["audio_hours"] == 2.0
    assert found["based_on"] == "the rows of these files"


def test_replaced_file_does_not_cost_the_seconds_of_its_old_row(calls: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 1)
    publish(calls, ["a.wav"], 1.0)
    record(calls / "dt=2026-11-01/a.wav", 360)
    found = expected(calls)
    assert found["audio_hours"] == pytest.approx(0.1, rel=0.01)
    assert found["based_on"] == "bytes per second in the table's latest rows"


def test_unknown_sizes_give_a_range() -> None:
    work = [Work("mp3", 10, 12_000 * 3600, 0.0, 12_000 * 3600), Work("", 1, 12_000 * 36, 0.0, 12_000 * 36)]
    found = estimate(work, [], None)
    assert found.audio_hours == pytest.approx(1.01)
    low, high = found.audio_hours_range
    assert low < 0.31 < 3 < high
    assert str(found) == (
        "1.0 h of audio, 18 min to 3.1 h (from the typical size of .mp3, the typical size of such files). "
        "No earlier run of this table recorded how long it took."
    )


def test_header_reads_are_bounded_and_failures_are_left_to_the_job(calls: Path) -> None:
    record(calls / "a.wav", 1)
    asked: list[str] = []

    class Counting(ObjectStorage):
        def open_ranges(self, uri: str) -> Any:
            asked.append(uri)
            return super().open_ranges(uri)

    def sample(extension: str, count: int) -> list[tuple[str, int]]:
        uris = [f"{calls}/a.{extension}", f"{calls}/gone.{extension}", *(f"{calls}/{n}" for n in range(99))]
        return [(uri, 16_044) for uri in uris[:count]]

    parts = [Work(name, 99, 99, 0.0, 99) for name in ("wav", "mp3", "m4a", "ogg", "aac", "wma")]
    assert header_rates(parts, sample, Counting()) == {"wav": 16_000.0}
    assert len(asked) == HEADER_READS


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.WAV", "wav"),
        ("a.b.mp3", "mp3"),
        ("noext", ""),
        ("a.20261101", ""),
        ("x.mp3/b", ""),
        ("é.Opus", "opus"),
    ],
)
def test_files_are_grouped_by_the_extensions_that_are_known(calls: Path, name: str, extension: str) -> None:
    from airflow_whisper.discovery.comparison import Comparison, Rules

    (calls / name).parent.mkdir(parents=True)
    (calls / name).write_bytes(b"x" * 10)
    with Comparison() as comparison:
        for batch in STORAGE.list(str(calls)):
            comparison.add_listing(batch, ["audio"] * batch.num_rows)
        comparison.compare("f", Rules(), str(calls))
        assert comparison.work() == [Work(extension, 1, 10, 0.0, 10)]
        assert comparison.sample(extension, 5) == [(f"file://{calls}/{name}", 10)]


# --- hours of GPU ------------------------------------------------------------------------------------------


def test_earlier_runs_tell_time_and_gpu_hours(calls: Path) -> None:
    for day in ("2026-11-01", "2026-11-02"):
        record(calls / f"dt={day}/a.wav", 360)
    publish(calls, ["a.wav"], 360.0, transcribe_seconds=6.0, task_seconds=20.0, gpu_seconds=10.0)
    found = expected(calls, "2026-11-02")
    assert found["audio_hours"] == pytest.approx(0.1, rel=0.01)
    assert found["real_time_factor"] == 60.0
    assert found["job_hours"] == pytest.approx(0.1 / 60, abs=1e-4)
    assert found["gpu_hours"] == pytest.approx(10 / 3600, abs=1e-4)
    assert found["task_hours"] == pytest.approx(20 / 3600, abs=1e-4)
    assert found["runs"] == "last run with these options"


def test_runs_with_these_options_count_before_those_with_this_model_and_any(calls: Path) -> None:
    others = {"large": WhisperOptions(model="large-v3"), "greedy": WhisperOptions(model="base", beam_size=4)}
    for number, (name, options) in enumerate([*others.items(), ("same", OPTIONS)]):
        record(calls / f"dt=2026-11-01/{number}.wav", 1)
        asked = past_runs(table, OPTIONS.fingerprint(), "base") if (table := load()) else None
        if name == "large":
            assert asked is None
        else:
            assert asked is not None
            assert asked.alike == {"greedy": "", "same": "model"}[name]
        publish(calls, [f"{number}.wav"], 100.0, options, transcribe_seconds=10.0 * (number + 1))
    table = load()
    asked = past_runs(table, OPTIONS.fingerprint(), "base")
    assert asked is not None
    assert (asked.alike, asked.runs, asked.real_time_factor) == ("options", 1, pytest.approx(100 / 30))
    assert asked.gpu_seconds is None


def load() -> Any:
    catalog = open_catalog(None)
    return catalog.load_table(TABLE) if catalog.table_exists(TABLE) else None


def test_run_that_transcribed_nothing_says_nothing_about_speed(calls: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 1)
    publish(calls, ["a.wav"], 100.0)
    table = load()
    assert past_runs(table, OPTIONS.fingerprint(), "base") is None
    summary = table.current_snapshot().summary.additional_properties
    assert not [key for key in summary if "seconds" in key and key != "whisper.audio-seconds"]


def test_result_of_an_earlier_release_is_read() -> None:
    values = json.loads(
        RunResult(manifest_uri="m", manifest_id="i", fingerprint="f", attempt_id="1").to_json()
    )
    del values["task_seconds"], values["gpu_seconds"]
    result = RunResult.from_json(json.dumps(values))
    assert (result.task_seconds, result.gpu_seconds) == (0.0, None)


def test_broken_history_does_not_stop_a_run(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("summary")

    record(calls / "dt=2026-11-01/a.wav", 1)
    publish(calls, ["a.wav"], 1.0)
    record(calls / "dt=2026-11-01/b.wav", 1)
    monkeypatch.setattr("airflow_whisper.operators.run_estimate.past_runs", broken)
    result = operator(calls).execute({})
    assert result["estimate"] is None
    assert result["counts"]["new"] == 1


# --- the texts, and a dry run ------------------------------------------------------------------------------


def test_estimate_reads_as_a_sentence() -> None:
    past = PastRuns(
        runs=3, audio_seconds=3600, transcribe_seconds=60, task_seconds=240, gpu_seconds=120, alike="options"
    )
    work = [Work("wav", 10, 100, 36_000.0, 0)]
    assert str(estimate(work, [], past)) == (
        "10.0 h of audio (from the rows of these files). At 60 times real time (last 3 runs with these "
        "options) that takes 10 min and 0.33 GPU hours."
    )
    without = dataclasses.replace(past, gpu_seconds=None)
    assert str(estimate(work, [], without)).endswith("that takes 10 min and 0.67 hours of Spark tasks.")


def test_dry_run_tells_the_cost_writes_nothing_and_skips(calls: Path, tmp_path: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 60)
    task = Pushed()
    with pytest.raises(AirflowSkipException, match=r"dry run of partition dt=2026-11-01.*60 s of audio"):
        operator(calls, dry_run="True").execute({"ti": task})  # type: ignore[typeddict-item]
    assert task.estimate["files"] == task.counts["new"] == 1
    assert task.audio_bytes == 960_044
    assert task.outcome.startswith("dry run of partition dt=2026-11-01 of speech.transcripts: 1 new. ")
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("dry_run", [False, "False", "false", "", "None"])
def test_run_that_is_no_dry_run_writes_its_manifest(calls: Path, dry_run: Any) -> None:
    record(calls / "dt=2026-11-01/a.wav", 1)
    assert STORAGE.exists(operator(calls, dry_run=dry_run).execute({})["manifest_uri"])


def test_dry_run_that_is_neither_true_nor_false_is_refused_while_parsing(calls: Path) -> None:
    with pytest.raises(ValueError, match="dry_run must be True or False, got 'perhaps'"):
        operator(calls, dry_run="perhaps")


def test_estimates_of_several_runs_add_up() -> None:
    one = Estimate(
        files=2, audio_hours=1.0, audio_hours_range=(0.5, 2.0), job_hours=0.1, task_hours=0.2, based_on="a"
    )
    nothing = Estimate()
    found = total([one, nothing, one])
    assert (found.files, found.audio_hours, found.audio_hours_range) == (4, 2.0, (1.0, 4.0))
    assert (found.job_hours, found.task_hours, found.gpu_hours) == (0.2, 0.4, None)
    assert (found.real_time_factor, found.based_on) == (10.0, "a")


def test_cost_is_in_the_summary_of_the_snapshot(calls: Path) -> None:
    record(calls / "dt=2026-11-01/a.wav", 1)
    publish(
        calls,
        ["a.wav"],
        100.0,
        transcribe_seconds=10.0,
        real_time_factor=10.0,
        task_seconds=20.0,
        gpu_seconds=5.0,
        finished_at=datetime(2026, 11, 2, tzinfo=UTC).isoformat(),
    )
    summary = load().current_snapshot().summary.additional_properties
    assert {key: summary[f"whisper.{key}"] for key in ("real-time-factor", "gpu-seconds", "model")} == {
        "real-time-factor": "10.0",
        "gpu-seconds": "5.0",
        "model": "base",
    }
