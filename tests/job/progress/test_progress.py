"""Progress counters of the engine, and their way from Spark tasks into the task log."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from whisper_spark import WhisperOptions
from whisper_spark.contract import Transcript
from whisper_spark.engine.transcriber import AudioFile, get_engine
from whisper_spark.progress.counters import DEVICE_STAGES, STAGES, Progress, Snapshot, count, stage, timed
from whisper_spark.progress.reports import (
    MOST_LINES,
    JobSize,
    ProgressLog,
    TaskReport,
    clear_left_over_reports,
    clear_reports,
    duration,
    progress_lines,
    report_folder,
    reports_folder,
    task_report_uri,
)
from whisper_spark.storage.objects import ObjectStorage, StorageError


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("whisper_spark.progress.counters.time.perf_counter", clock)
    monkeypatch.setattr("whisper_spark.progress.counters.time.monotonic", clock)
    return clock


def transcript(uri: str, **fields: Any) -> Transcript:
    return Transcript(
        **{"audio_uri": uri, "duration_s": 60.0, "speech_s": 30.0, "audio_bytes": 100, **fields}
    )


# --- stages -------------------------------------------------------------------------------------------


def test_stage_inside_another_interrupts_it(clock: Clock) -> None:
    progress = Progress()
    with progress.recording(), stage("decode"):
        clock.sleep(1)
        with stage("fetch"):
            clock.sleep(10)
        clock.sleep(2)
    stages = progress.snapshot().stages
    assert (stages["decode"], stages["fetch"]) == (3, 10)
    assert stages.keys() == STAGES.keys()


def test_retry_keeps_what_it_calls(clock: Clock) -> None:
    progress = Progress()
    with progress.recording():
        with stage("retry", whole=True):
            with stage("encode"):
                clock.sleep(1)
            clock.sleep(2)
        with stage("encode"):
            clock.sleep(4)
    stages = progress.snapshot().stages
    assert (stages["retry"], stages["encode"]) == (3, 4)


def test_time_to_make_an_item_is_charged_but_not_the_time_to_use_it(clock: Clock) -> None:
    def slow() -> Any:
        for number in range(3):
            clock.sleep(1)
            yield number

    progress = Progress()
    with progress.recording():
        for _ in timed("vad", slow()):
            clock.sleep(10)
    assert progress.snapshot().stages["vad"] == 3


def test_stage_that_is_not_over_counts(clock: Clock) -> None:
    progress = Progress()
    with progress.recording(), stage("idle"):
        clock.sleep(5)
        assert progress.snapshot().stages["idle"] == 5
    assert progress.snapshot().device_busy == 0


def test_threads_that_work_for_no_pass_are_not_counted(clock: Clock) -> None:
    progress = Progress()
    with progress.recording():
        pass
    with stage("encode"):
        clock.sleep(1)
    count("windows", 7)
    assert progress.snapshot().windows == 0
    assert sum(progress.snapshot().stages.values()) == 0


# --- a pass -------------------------------------------------------------------------------------------


def test_time_left_follows_the_bytes_and_not_the_files(clock: Clock) -> None:
    progress = Progress(files=10, audio_bytes=1000)
    assert progress.snapshot().state == "loading"
    progress.start()
    clock.sleep(50)
    assert progress.snapshot().seconds_left is None
    progress.finished(transcript("large", audio_bytes=500))
    now = progress.snapshot()
    assert (now.state, now.files, now.total_files, now.seconds, now.seconds_left) == (
        "running",
        1,
        10,
        50,
        50,
    )
    assert now.real_time_factor == pytest.approx(60 / 50)


def test_long_file_counts_while_it_is_under_way(clock: Clock) -> None:
    progress = Progress(files=1, audio_bytes=1000)
    progress.start()
    progress.opened("long", 1000, declared_s=36_000)
    clock.sleep(10)
    progress.heard({"long": 9_000, "unknown": 5})
    progress.heard({"long": 8_970})  # batches of a file may return in another order
    now = progress.snapshot()
    assert (now.audio_seconds, now.files, now.seconds_left) == (9_000, 0, 30)
    progress.finished(transcript("long", audio_bytes=1000, duration_s=36_000.0))
    assert progress.snapshot().audio_seconds == 36_000


def test_what_an_earlier_task_attempt_did_is_not_counted_as_speed(clock: Clock) -> None:
    progress = Progress(files=3, audio_bytes=300)
    progress.leave_out(100)
    progress.start()
    clock.sleep(10)
    progress.finished(transcript("a"))
    now = progress.snapshot()
    assert (now.files, now.total_files, now.left_out, now.seconds_left) == (1, 2, 1, 10)


def test_snapshot_survives_its_way_and_fields_of_later_releases() -> None:
    progress = Progress(files=2)
    progress.start(lambda: (30, 40))
    progress.finished(transcript("a", error_code="corrupt", status="error", duration_s=None, speech_s=None))
    progress.finished(transcript("b", quality_flags=("no_speech",)))
    sent = progress.snapshot()
    values = {**json.loads(sent.to_json()), "invented_later": 1}
    received = Snapshot.from_json(json.dumps(values))
    assert received == sent
    assert received.queue_fill == 0.75
    assert (received.errors, received.flags) == ({"corrupt": 1}, {"no_speech": 1})


def test_engine_accounts_for_its_threads(model_dir: Path, speech: list[Any]) -> None:
    options = WhisperOptions(model=str(model_dir), language="en", num_workers=1)
    engine = get_engine(options)
    clips = [clip for clip in speech if clip.language == "en"][:6]
    progress = Progress(len(clips), sum(clip.path.stat().st_size for clip in clips))
    files = (AudioFile(f"file://{clip.path}") for clip in clips)
    transcripts = list(engine.transcribe(files, progress=progress))
    end = progress.snapshot()
    assert (end.state, end.files, end.seconds_left) == ("done", 6, 0)
    assert end.audio_seconds == pytest.approx(sum(t.duration_s or 0 for t in transcripts), abs=0.1)
    assert end.speech_seconds == pytest.approx(sum(t.speech_s or 0 for t in transcripts), abs=0.1)
    assert end.windows >= 6
    assert all(end.stages[name] > 0 for name in ("decode", "vad", "features", "encode", "generate", "align"))
    # One thread decodes: all of its time is in one of these stages.
    assert sum(end.stages[name] for name in (*DEVICE_STAGES, "idle")) == pytest.approx(end.seconds, rel=0.1)


# --- the way to the log -------------------------------------------------------------------------------


def test_line_of_a_task_says_what_the_person_on_call_asks() -> None:
    task = Snapshot(
        state="running",
        files=120,
        total_files=500,
        audio_bytes=60,
        total_bytes=500,
        audio_seconds=8_280,
        seconds=20.1,
        queue_bytes=63,
        queue_limit=100,
    )
    [line] = progress_lines({3: task}, JobSize(500, 500, 1), 60)
    assert line == ("task 3: 120 of 500 files, 2.3 h of audio, 412x real time, queue 63 %, 2 min left")


def test_job_adds_up_its_tasks_and_waits_for_the_slowest() -> None:
    size = JobSize(files=400, audio_bytes=4_000, tasks=4)
    fast = Snapshot(
        state="running", files=50, audio_bytes=500, total_bytes=1000, audio_seconds=3_000, seconds=50
    )
    slow = Snapshot(state="running", files=5, audio_bytes=50, total_bytes=1000, audio_seconds=300, seconds=50)
    done = Snapshot(state="done", files=90, left_out=10, audio_bytes=1000, audio_seconds=6_000, seconds=90)
    lines = progress_lines({0: fast, 1: slow, 2: done, 3: Snapshot()}, size, 100)
    assert lines[1].startswith("task 1: 5 files, 5 min of audio, 6.0x real time, queue 0 %, 16 min left")
    assert lines[2] == "task 3: loading the model"
    assert lines[3] == (
        "all tasks: 155 of 400 files, 2.6 h of audio, 93x real time, "
        "3 of 4 tasks running, 1 done, 16 min left"
    )


def test_job_without_news_from_its_tasks_still_shows_that_it_lives() -> None:
    assert progress_lines({}, JobSize(4, 0, 1), 10) == [
        "all tasks: 0 of 4 files, 0 s of audio, 0.0x real time, 0 of 1 tasks running, 0 done"
    ]


def test_thousand_tasks_do_not_flood_the_log() -> None:
    tasks = {
        number: Snapshot(state="running", files=1, audio_bytes=number + 1, total_bytes=2_000, seconds=10)
        for number in range(1000)
    }
    lines = progress_lines(tasks, JobSize(10_000, 2_000_000, 1000), 10, silent={0: 95.0})
    assert len(lines) == MOST_LINES + 1
    assert lines[0].startswith("task 0: ")  # the slowest ones are shown
    assert lines[0].endswith("no news for 95 s")
    assert lines[-1].startswith("all tasks: 1,000 of 10,000 files")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (95, "95 s"), (720, "12 min"), (8_280, "2.3 h"), (5e6, "1,388.9 h")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_reports_reach_the_log_of_another_process_and_are_gone_afterwards(tmp_path: Path) -> None:
    storage, folder = ObjectStorage(), f"file://{tmp_path}/run/progress/1"
    lines: list[str] = []
    complete = threading.Event()

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("all tasks: 1 of 2 files"):
            complete.set()

    progress = Progress(2, 200)
    # Its size comes from the folder, as where the driver runs elsewhere.
    with ProgressLog(storage, folder, tell, every=0.02):
        with TaskReport(storage, task_report_uri(folder, 0), progress, 0.02):
            JobSize(2, 200, 2).write(storage, folder)
            progress.start()
            progress.finished(transcript("a"))
            assert complete.wait(20), lines
        last = Snapshot.from_json(storage.read_bytes(task_report_uri(folder, 0)))
    assert last.state == "done"
    assert any(line.startswith("task 0: 1 of 2 files, 60 s of audio") for line in lines)
    clear_reports(storage, folder)
    assert not storage.any_under(folder)


def test_job_deletes_reports_of_jobs_that_were_killed_but_not_of_one_that_runs(tmp_path: Path) -> None:
    storage, run_uri = ObjectStorage(), f"file://{tmp_path}/run"

    def write(job: str, name: str, hours: float) -> Path:
        uri = f"{report_folder(run_uri, job)}/{name}"
        storage.write_bytes(uri, b"{}")
        path = Path(uri.removeprefix("file://"))
        written = time.time() - hours * 3600
        os.utime(path, (written, written))
        return path

    running = [write("running", "alone-00001", 30), write("running", "task-00000.json", 0.1)]
    killed = [write("killed", "job.json", 50), write("killed", "task-00000.json", 49)]
    clear_left_over_reports(storage, run_uri)
    assert all(path.exists() for path in running)
    assert not any(path.exists() for path in killed)


def test_log_of_several_jobs_is_that_of_the_one_that_wrote_last(tmp_path: Path) -> None:
    storage, run_uri = ObjectStorage(), f"file://{tmp_path}/run"
    lines: list[str] = []
    told = threading.Event()

    def tell(line: str) -> None:
        lines.append(line)
        told.set()

    for job, files in (("killed", 7), ("running", 2)):
        JobSize(files, 200, 2).write(storage, report_folder(run_uri, job))
        if job == "killed":
            for path in tmp_path.rglob("*.json"):
                os.utime(path, (0, 0))
    with ProgressLog(storage, reports_folder(run_uri), tell, every=0.02):
        assert told.wait(20)
    assert lines[0].startswith("all tasks: 0 of 2 files")


def test_store_that_fails_fails_neither_task_nor_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(ObjectStorage):
        def write_bytes(self, *_: Any, **__: Any) -> bool:
            raise StorageError("503")

        def list(self, *_: Any, **__: Any) -> Any:
            raise StorageError("503")

    asked = threading.Event()

    class Watched(Down):
        def list(self, *_: Any, **__: Any) -> Any:
            if caplog.text.count("progress is unknown"):
                asked.set()
            raise StorageError("503")

    with TaskReport(Down(), "s3://b/r", Progress(), 0.01):
        pass
    with ProgressLog(Watched(), "s3://b", lambda _: None, JobSize(1, 1, 1), every=0.01):
        assert asked.wait(20)
    clear_reports(Down(), "s3://b")
    assert "progress could not be reported: 503" in caplog.text
    assert caplog.text.count("progress is unknown: 503") == 1


@pytest.mark.slow
def test_task_does_not_wait_for_a_store_that_hangs() -> None:
    release = threading.Event()

    class Hanging(ObjectStorage):
        def write_bytes(self, *_: Any, **__: Any) -> bool:
            return release.wait(60)

    started = time.monotonic()
    try:
        with TaskReport(Hanging(), "s3://b/r", Progress(), 0.01):
            pass
        assert time.monotonic() - started < 10
    finally:
        release.set()
