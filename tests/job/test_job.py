"""The job in a Spark session of this process: every file gets exactly one staged row, paid for once."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counted_engine
import pytest
from counted_engine import LOADS_SUFFIX
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812
from spark_cluster import staged_table, write_run
from spark_session import local_session
from speech import Clip
from standin_engine import LOG_SUFFIX

from whisper_spark.contract import Run, WhisperOptions
from whisper_spark.progress.reports import JobSize, report_folder
from whisper_spark.spark import run as run_module
from whisper_spark.spark.conf import task_share
from whisper_spark.spark.dataframes import copy_rows, manifest_rows, partitioned_by_size
from whisper_spark.spark.failures import cause_of
from whisper_spark.spark.run import JobRun
from whisper_spark.spark.task import JobSpec
from whisper_spark.staging.result import (
    RunResult,
    StagingError,
    complete_result,
    finished_result,
    read_result,
    staged_files,
)
from whisper_spark.storage.credentials import PLACES
from whisper_spark.storage.objects import ObjectStorage
from whisper_spark.storage.parquet import read_manifest

OPTIONS = WhisperOptions(model="base")


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """A session with two slots, in which a task may fail twice."""
    with local_session({"spark.master": "local[2,3]"}, "standin_engine") as session:
        yield session


class Workbench:
    """A folder of made-up audio and a staging area."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark = spark
        self.folder = folder
        self.storage = ObjectStorage()

    def audio(self, name: str, orders: str = "", size: int = 0) -> str:
        """An audio file of the stand-in engine. Larger ones are transcribed first."""
        path = self.folder / "audio" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(orders.ljust(size))
        return f"file://{path}"

    def manifest(self, audio: list[str], **fields: Any) -> Run:
        return write_run(f"file://{self.folder}/staging", audio, OPTIONS, **fields)

    def job_run(self, run: Run, **fields: Any) -> RunResult:
        """Run the job in this process, without spark-submit."""
        _, metadata = read_manifest(run.manifest_uri, self.storage)
        job = JobSpec(
            run=run,
            credentials={place: {} for place in PLACES},
            **{
                "options": run.options,
                "engine": "standin_engine:get_engine",
                "flush_seconds": 0.2,
                **fields,
            },
        )
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        result = JobRun(self.spark, job, groups, time.monotonic()).run()
        assert result == read_result(run, self.storage)
        return result

    def times_transcribed(self, uri: str) -> int:
        log = Path(uri.removeprefix("file://") + LOG_SUFFIX)
        return log.stat().st_size if log.exists() else 0

    def rows(self, run: Run) -> dict[str, dict[str, Any]]:
        rows = staged_table(run).to_pylist()
        assert len(rows) == len({row["audio_uri"] for row in rows}), "more than one row for a file"
        return {row["audio_uri"]: row for row in rows}


@pytest.fixture
def bench(spark: SparkSession, tmp_path: Path) -> Workbench:
    return Workbench(spark, tmp_path)


def test_every_file_gets_one_row_and_the_result_adds_them_up(bench: Workbench) -> None:
    names = ["plain.wav", "a b.wav", "a%20b.wav", '#1 "what?".mp3', "Grüße 🎧.ogg", "no-extension"]
    audio = [bench.audio(name, size=100 * number) for number, name in enumerate(names)]
    audio.append(bench.audio("broken.wav", "error"))
    run = bench.manifest(audio, row_group_size=2)
    result = bench.job_run(run, attempt_id="first")

    rows = bench.rows(run)
    assert sorted(rows) == sorted(audio)
    assert rows[audio[3]]["text"] == '#1 "what?".mp3'
    assert {row["dt"] for row in rows.values()} == {"2026-11-01"}
    assert (result.files, result.ok, result.errors) == (7, 6, 1)
    assert result.error_codes == {"corrupt": 1}
    assert result.languages == {"en": 6}
    assert (result.audio_seconds, result.speech_seconds) == (12.0, 6.0)
    assert (result.transcribed, result.resumed, result.reused) == (7, 0, 0)
    assert result.transcribed_audio_seconds == 12.0
    assert result.real_time_factor == pytest.approx(12.0 / result.transcribe_seconds, rel=0.01)
    assert result.attempt_id == "first"
    assert result.engine_version == "stand-in 1"
    assert list(result.staged) == staged_files(bench.storage, run.rows_uri)
    assert sum(file.rows for file in result.staged) == 7

    again = bench.job_run(run, attempt_id="second")
    assert (again.transcribed, again.resumed, again.attempt_id) == (0, 7, "second")
    assert (again.ok, again.staged) == (result.ok, result.staged)
    assert [bench.times_transcribed(uri) for uri in audio] == [1] * 7


def test_tasks_are_told_their_part_of_an_executor(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"spark.executor.cores": "12", "spark.task.resource.gpu.amount": "0.3"}
    monkeypatch.setattr(run_module, "task_share", lambda _: task_share(shared))
    run = bench.manifest([bench.audio("share.wav", "share")])
    bench.job_run(run)
    assert [row["text"] for row in bench.rows(run).values()] == ["4 cores, 3 tasks on the GPU"]


def test_model_is_loaded_once_for_each_python_worker_and_kept_between_tasks_and_jobs(
    bench: Workbench, librivox: list[Clip], model_dir: Path
) -> None:
    model = bench.folder / "model"
    model.symlink_to(model_dir)
    options = WhisperOptions(model=str(model), language="en")
    bench.spark.sparkContext.addPyFile(str(Path(counted_engine.__file__)))
    loads = []
    for number in range(2):
        audio = [clip.path.as_uri() for clip in librivox]
        run = write_run(f"file://{bench.folder}/staging-{number}", audio, options)
        result = bench.job_run(run, engine="counted_engine:get_engine", tasks=len(audio))
        assert (result.ok, result.transcribed) == (len(audio), len(audio))
        loads.append(Path(f"{model}{LOADS_SUFFIX}").read_text().split())
    # Two tasks run at a time, each in a Python worker with an engine process of its own.
    assert 1 <= len(loads[0]) <= 2 < len(audio)
    assert len(loads[1]) <= 2
    assert len(set(loads[1])) == len(loads[1])


@pytest.mark.parametrize("damaged", [False, True])
def test_run_that_lost_a_staged_file_transcribes_only_what_was_in_it(bench: Workbench, damaged: bool) -> None:
    audio = [bench.audio(f"{number}.wav", size=number) for number in range(6)]
    run = bench.manifest(audio)
    first = bench.job_run(run, tasks=3)
    before = bench.rows(run)
    bench.storage.delete([first.staged[0].uri])
    lost = before.keys() - bench.rows(run).keys()
    assert 0 < len(lost) < 6
    if damaged:
        bench.storage.write_bytes(first.staged[0].uri, b"PAR1 and then garbage PAR1")

    second = bench.job_run(run)
    assert (second.transcribed, second.resumed) == (len(lost), 6 - len(lost))
    assert first.staged[0] not in second.staged
    after = bench.rows(run)
    assert {uri for uri in audio if after[uri] != before[uri]} == lost


def test_error_that_may_pass_is_tried_again_and_superseded(bench: Workbench) -> None:
    flaky = bench.audio("flaky.wav", f"error-once {bench.folder}/tried")
    broken = bench.audio("broken.wav", "error")
    run = bench.manifest([flaky, broken, bench.audio("good.wav")])
    first = bench.job_run(run)
    assert first.error_codes == {"corrupt": 1, "internal": 1}
    # As if the job had been killed before it was through.
    bench.storage.delete([run.result_uri])

    second = bench.job_run(run)
    assert second.error_codes == {"corrupt": 1}
    assert (second.transcribed, second.resumed) == (1, 2)
    assert bench.rows(run)[flaky]["status"] == "ok"
    assert bench.times_transcribed(broken) == 1


def test_rerun_tries_again_what_may_pass_as_often_as_is_allowed(bench: Workbench) -> None:
    locked, good = bench.audio("locked.wav", "fail forbidden", size=100), bench.audio("good.wav")
    run = bench.manifest([locked, good])
    for attempt in (1, 2, 3):
        assert finished_result(run, bench.storage) is None
        result = bench.job_run(run)
        assert (result.ok, result.errors, result.retryable) == (1, 1, int(attempt < 3))
        assert bench.rows(run)[locked]["attempt"] == attempt
        assert complete_result(run, bench.storage) == result
    assert finished_result(run, bench.storage) == result
    assert bench.job_run(run).transcribed == 0
    assert (bench.times_transcribed(locked), bench.times_transcribed(good)) == (3, 1)


def test_what_was_put_right_is_transcribed_by_a_rerun(bench: Workbench) -> None:
    flaky = bench.audio("flaky.wav", f"error-once {bench.folder}/tried")
    run = bench.manifest([flaky, bench.audio("good.wav")])
    assert bench.job_run(run).retryable == 1
    assert bench.job_run(run).errors == 0
    row = bench.rows(run)[flaky]
    assert (row["status"], row["attempt"]) == ("ok", 2)


def test_two_jobs_on_one_manifest_do_not_touch_each_other(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = [bench.audio(f"{number}.wav") for number in range(4)]
    run = bench.manifest([*audio, bench.audio("late.wav", "fail forbidden", size=10)])
    # The note of a running job about the file that it processes alone.
    note = f"{report_folder(run.run_uri, 'another')}/alone-00000"
    bench.storage.write_bytes(note, b"file:///audio/a.wav")
    # Both start before either has staged a row.
    with monkeypatch.context() as patch:
        patch.setattr(JobRun, "_without_staged", lambda self, manifest: manifest)
        first = bench.job_run(run)
        second = bench.job_run(run)
    assert not set(first.staged) & set(second.staged)
    there = set(staged_files(bench.storage, run.rows_uri))
    assert there == {*first.staged, *second.staged}
    # A third one replaces the error, and leaves what the others have named to whoever reads it.
    third = bench.job_run(run)
    assert there <= set(staged_files(bench.storage, run.rows_uri))
    assert third.transcribed == 1
    assert len(bench.rows(run)) == 5
    assert bench.storage.exists(note)


@pytest.mark.parametrize("tasks", [1, 3])
def test_job_stops_when_its_first_files_all_fail_alike(bench: Workbench, tasks: int) -> None:
    allowed = bench.folder / "allowed"
    audio = [bench.audio(f"{number}.wav", f"forbidden-until {allowed}") for number in range(120)]
    run = bench.manifest(audio)
    with pytest.raises(Exception, match=r"the first \d+ files all failed with forbidden"):
        bench.job_run(run, tasks=tasks, progress_seconds=0.1)
    assert not bench.storage.exists(run.result_uri)
    allowed.touch()
    assert bench.job_run(run).ok == 120


def test_job_goes_on_when_files_fail_in_different_ways(bench: Workbench) -> None:
    audio = [bench.audio(f"{number}.wav", "fail forbidden", size=100) for number in range(104)]
    audio.append(bench.audio("good.wav", size=200))
    audio.append(bench.audio("broken.wav", "error"))
    result = bench.job_run(bench.manifest(audio), tasks=1)
    assert (result.ok, result.error_codes) == (1, {"corrupt": 1, "forbidden": 104})


def test_rows_of_another_run_of_the_partition_are_taken_over(bench: Workbench) -> None:
    kept, changed = bench.audio("kept.wav"), bench.audio("changed.wav")
    flaky = bench.audio("flaky.wav", f"error-once {bench.folder}/tried")
    bench.job_run(bench.manifest([kept, changed, flaky], manifest_id="a" * 32))
    bench.audio("changed.wav", size=5000)
    late = bench.audio("late.wav")

    run = bench.manifest([kept, changed, flaky, late], manifest_id="b" * 32)
    result = bench.job_run(run)
    assert (result.reused, result.transcribed) == (1, 3)
    assert bench.times_transcribed(kept) == 1
    assert bench.times_transcribed(changed) == 2
    rows = bench.rows(run)
    assert rows[kept]["text"] == "kept.wav"
    assert rows[flaky]["status"] == "ok"
    assert [file.uri for file in result.staged if "/reused-" in file.uri]


@pytest.mark.parametrize("damaged", [False, True])
def test_rows_of_another_run_that_vanish_while_they_are_copied_are_made_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    audio = [bench.audio(f"{number}.wav", size=number) for number in range(4)]
    first = bench.job_run(bench.manifest(audio, manifest_id="a" * 32), tasks=2)
    lost = first.staged[0]

    def copy(*arguments: Any) -> list[int]:
        bench.storage.delete([lost.uri])
        if damaged:
            bench.storage.write_bytes(lost.uri, b"PAR1 and then garbage PAR1")
        return copy_rows(*arguments)

    monkeypatch.setattr(run_module, "copy_rows", copy)
    run = bench.manifest(audio, manifest_id="b" * 32)
    result = bench.job_run(run)
    assert (result.reused, result.transcribed) == (4 - lost.rows, lost.rows)
    assert sorted(bench.rows(run)) == sorted(audio)


def test_rows_of_other_options_or_partitions_are_not_taken_over(bench: Workbench) -> None:
    audio = bench.audio("a.wav")
    bench.job_run(bench.manifest([audio], manifest_id="a" * 32, partition={"dt": "2026-10-31"}))
    assert bench.job_run(bench.manifest([audio], manifest_id="b" * 32)).reused == 0
    assert bench.times_transcribed(audio) == 2


def test_rows_that_are_there_twice_or_not_asked_for_are_removed(bench: Workbench) -> None:
    audio = [bench.audio(f"{number}.wav") for number in range(4)]
    run = bench.manifest(audio)
    bench.job_run(run)
    stranger = bench.audio("stranger.wav")
    other = bench.manifest([stranger, *audio[:2]], manifest_id="c" * 32, partition={"dt": "elsewhere"})
    bench.job_run(other)
    for path in Path(other.rows_uri.removeprefix("file://")).iterdir():
        shutil.copy(path, run.rows_uri.removeprefix("file://"))
    bench.storage.delete([run.result_uri])
    latest = {uri: row["transcribed_at"] for uri, row in bench.rows(other).items()}

    result = bench.job_run(run)
    rows = bench.rows(run)
    assert sorted(rows) == sorted(audio)
    assert rows[audio[0]]["transcribed_at"] == latest[audio[0]]
    assert result.transcribed == 0
    assert sum(file.rows for file in result.staged) == 4


def test_worker_that_dies_is_replaced_and_pays_for_nothing_twice(bench: Workbench) -> None:
    # One task, largest first: two files become durable, the third takes the process with it.
    first, second = bench.audio("1.wav", size=3000), bench.audio("2.wav", size=2900)
    deadly = bench.audio("3.wav", f"kill-worker-once {bench.folder}/crashed", size=2800)
    last = bench.audio("4.wav")
    run = bench.manifest([first, second, deadly, last])
    result = bench.job_run(run, tasks=1)
    assert (bench.folder / "crashed").exists()
    assert (result.ok, result.transcribed) == (4, 4)
    assert sorted(bench.rows(run)) == sorted([first, second, deadly, last])
    times = [bench.times_transcribed(uri) for uri in (first, second, deadly, last)]
    assert times == [1, 1, 2, 1]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_file_that_kills_its_process_costs_its_own_row(bench: Workbench, name: str) -> None:
    audio = [bench.audio(f"{number}.wav", size=number) for number in range(19)]
    deadly = bench.audio("deadly.wav", f"kill {name}", size=100)
    run = bench.manifest([*audio, deadly])
    result = bench.job_run(run)
    assert (result.ok, result.errors, result.error_codes) == (19, 1, {"internal": 1})
    row = bench.rows(run)[deadly]
    assert name in row["error_message"]
    assert bench.times_transcribed(deadly) <= 2


def test_file_that_kills_the_worker_costs_its_own_row(bench: Workbench) -> None:
    # As if memory had run out for the whole container.
    audio = [bench.audio(f"{number}.wav", size=number) for number in range(19)]
    deadly = bench.audio("deadly.wav", "kill-worker", size=12)
    run = bench.manifest([*audio, deadly])
    result = bench.job_run(run, tasks=1)
    assert (result.ok, result.error_codes) == (19, {"internal": 1})
    assert "worker was lost" in bench.rows(run)[deadly]["error_message"]
    assert bench.times_transcribed(deadly) == 2
    assert not bench.storage.any_under(f"{run.run_uri}/progress")


def test_cause_of_a_failed_job_is_named(bench: Workbench) -> None:
    killed = bench.manifest([bench.audio(f"{number}.wav", "kill-worker") for number in range(2)])
    with pytest.raises(Exception, match="aborted") as caught:
        bench.job_run(killed, tasks=1)
    assert re.match(r"a Python worker ended on host \S+ \(executor driver\)", cause_of(caught.value))

    run = bench.manifest([bench.audio("b.wav")], manifest_id="b" * 32)
    missing = dataclasses.replace(run.options, model=str(bench.folder))
    with pytest.raises(Exception, match="faster-whisper model") as caught:
        bench.job_run(run, engine="whisper_spark.engine.transcriber:get_engine", options=missing)
    assert cause_of(caught.value).startswith(
        f"whisper_spark.decoding.model_cache.ModelError: {bench.folder} is no faster-whisper model"
    )

    with pytest.raises(Exception, match="no_such_engine") as caught:
        bench.job_run(run, engine="no_such_engine:get_engine")
    assert "No module named 'no_such_engine' on host" in cause_of(caught.value)
    assert sys.executable in cause_of(caught.value)


def test_missing_rows_fail_the_job_with_examples(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    there, lost = bench.audio("there.wav"), bench.audio("lost.wav")
    bench.job_run(bench.manifest([there], manifest_id="a" * 32))
    run = bench.manifest([there, lost], manifest_id="b" * 32)
    monkeypatch.setattr(JobRun, "_transcribe", lambda *_: None)
    with pytest.raises(StagingError, match=r"1 of 2 files have no row in .*lost\.wav"):
        bench.job_run(run)
    assert not bench.storage.exists(run.result_uri)


def test_manifest_without_audio_gives_an_empty_result(bench: Workbench) -> None:
    result = bench.job_run(bench.manifest([]))
    assert (result.files, result.staged, result.transcribed) == (0, (), 0)


def sizes_by_task(bench: Workbench, run: Run, tasks: int, only: range | None = None) -> dict[int, list[int]]:
    """Bytes of the files that each task gets, in its order."""
    _, metadata = read_manifest(run.manifest_uri, bench.storage)
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    rows = manifest_rows(bench.spark, run.manifest_uri, counts, {}, 4)
    if only is not None:
        rows = rows.where(F.col("position").isin(list(only)))
    groups = {row["row_group"]: row["count"] for row in rows.groupBy("row_group").count().collect()}
    parts: dict[int, list[int]] = {}
    for row in (
        partitioned_by_size(rows, groups, tasks)
        .select(F.spark_partition_id().alias("task"), "audio_bytes")
        .collect()
    ):
        parts.setdefault(row["task"], []).append(row["audio_bytes"])
    return parts


def test_files_are_partitioned_by_bytes_with_the_largest_first(bench: Workbench) -> None:
    sizes = [10_000, 9_000, *range(1, 60)]
    run = bench.manifest([bench.audio(f"{n}.wav", size=n) for n in sizes], row_group_size=10)
    parts = sizes_by_task(bench, run, tasks=4)
    assert sorted(parts) == [0, 1, 2, 3]
    assert Counter(size for part in parts.values() for size in part) == Counter(sizes)
    assert all(part == sorted(part, reverse=True) for part in parts.values())
    totals = sorted(sum(part) for part in parts.values())
    assert totals[-1] - totals[0] <= 10_000

    # Tasks know how many that are without counting.
    told = JobSize(len(sizes), sum(sizes), 4)
    assert [told.of_task(task).files for task in range(4)] == [len(parts[task]) for task in range(4)]

    # The files of one task that failed are divided among all tasks again.
    left = range(1, 61, 4)
    again = sizes_by_task(bench, run, tasks=4, only=left)
    assert {len(part) for part in again.values()} <= {len(left) // 4, len(left) // 4 + 1}
    assert sorted(again) == [0, 1, 2, 3]
    told = JobSize(len(left), 0, 4)
    assert [told.of_task(task).files for task in range(4)] == [len(again[task]) for task in range(4)]


def test_log_tells_how_far_each_task_is_while_it_runs(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whisper_spark")
    audio = [bench.audio(f"{number}.wav", "sleep 0.4", size=1000) for number in range(9)]
    broken = bench.audio("broken.wav", "error", size=1000)
    run = bench.manifest([*audio, broken])
    result = bench.job_run(run, tasks=2, progress_seconds=0.1)
    lines = [record.getMessage() for record in caplog.records]
    for task in (0, 1):
        told = [line for line in lines if re.match(rf"task {task}: [1-4] of 5 files, \d+ s of audio, ", line)]
        assert told, lines
        assert any(line.endswith(" s left") for line in told)
    totals = [int(m[1]) for line in lines if (m := re.match(r"all tasks: (\d+) of 10 files, ", line))]
    assert totals == sorted(totals)
    assert len(set(totals)) > 2, "one and the same number again and again is no progress"
    assert result.error_codes == {"corrupt": 1}
    assert not bench.storage.any_under(f"{run.run_uri}/progress")


def test_retry_of_a_task_leaves_out_what_it_had_done(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "whisper_spark")
    audio = [bench.audio(f"{number}.wav", size=3000 - number) for number in range(2)]
    audio += [bench.audio("deadly.wav", f"kill-worker-once {bench.folder}/crashed", size=2000)]
    audio += [bench.audio(f"late-{number}.wav", "sleep 0.4", size=1000) for number in range(3)]
    bench.job_run(bench.manifest(audio), tasks=1, progress_seconds=0.1)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("task 0: ")]
    assert any(line.startswith("task 0: 2 of 6 files") for line in lines), lines
    assert any(line.startswith("task 0: 2 of 4 files") for line in lines), lines
