"""Reader processes give what threads give, get credentials only by socket, and end with their parent."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bad_inputs import make_bad_inputs
from recordings import RATE, samples_of, write
from servers import SECRET_KEY, S3Server
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.audio import reader_process
from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import FileError
from whisper_spark.audio.reader import FileReader, Finished, Part, opened_from
from whisper_spark.audio.reader_process import ReaderProcess
from whisper_spark.audio.windows import Window
from whisper_spark.decoding import device
from whisper_spark.decoding.device import Device
from whisper_spark.engine import transcriber
from whisper_spark.engine.readers import reader_processes
from whisper_spark.engine.transcriber import AudioFile, Engine
from whisper_spark.storage.objects import ObjectStorage

OPTIONS = WhisperOptions()
BANDS = 80
GONE_SECONDS = 20


@pytest.fixture
def in_threads() -> FileReader:
    return FileReader(OPTIONS, LogMel(BANDS), opened_from(ObjectStorage()))


@pytest.fixture
def reader(in_threads: FileReader) -> Iterator[ReaderProcess]:
    process = ReaderProcess(OPTIONS, BANDS, {}, in_threads)
    yield process
    process.close()


@pytest.fixture
def engine(model_dir: Path) -> Engine:
    return Engine(
        dataclasses.replace(OPTIONS, model=str(model_dir), prefetch_processes=2, prefetch_bytes=4 << 20)
    )


@pytest.fixture(autouse=True)
def own_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of an earlier test is used again."""
    pool = reader_process._Pool()
    monkeypatch.setattr(reader_process, "_pool", pool)
    yield
    for process in pool._idle:
        process.end()


def readers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "reader_process" in " ".join(p.cmdline())]


def idle() -> list[int]:
    return sorted(process.pid for process in reader_process._pool._idle)


def assert_equal(found: Iterator[Part], expected: Iterator[Part]) -> None:
    for one, other in itertools.zip_longest(found, expected):
        if isinstance(one, Window) and isinstance(other, Window):
            assert (one.channel, one.number, one.map) == (other.channel, other.number, other.map)
            # The last bits depend on how many threads OpenBLAS uses, on some processors.
            np.testing.assert_allclose(one.features, other.features, atol=1e-4)
        else:
            assert one == other


@pytest.mark.slow
def test_a_process_reads_what_a_thread_reads(
    reader: ReaderProcess, in_threads: FileReader, librivox: list[Clip], tmp_path: Path
) -> None:
    bad = make_bad_inputs(tmp_path, librivox[0].path)
    paths = [*(clip.path for clip in librivox), *(tmp_path / name for name in bad), tmp_path / "gone.wav"]
    for path in paths:
        file = AudioFile(f"file://{path}")
        assert_equal(reader.read(file), in_threads.read(file))
    assert len(readers()) == 1


def test_credentials_reach_the_processes_through_nothing_that_can_be_looked_at(
    engine: Engine, s3: S3Server, librivox: list[Clip]
) -> None:
    storage, bucket = ObjectStorage(s3.config), s3.bucket()
    for number, clip in enumerate(librivox * 2):
        storage.upload(clip.path, f"s3://{bucket}/{number}.wav")
    looked_at = threading.Event()

    def files() -> Iterator[AudioFile]:
        for number in range(2 * len(librivox)):
            if number == 2 * len(librivox) - 1:
                looked_at.wait(timeout=60)
            yield AudioFile(f"s3://{bucket}/{number}.wav")

    found = engine.transcribe(files(), storage)
    first = next(found)
    at_work = readers()
    assert at_work
    for process in at_work:
        assert SECRET_KEY not in " ".join([*process.cmdline(), *process.environ().values()])
    looked_at.set()
    transcripts = [first, *found]
    assert {t.status for t in transcripts} == {"ok"}
    assert len({t.text for t in transcripts}) == len(librivox)
    assert sorted(process.pid for process in readers()) == idle()


@pytest.fixture
def long_file(librivox: list[Clip], tmp_path: Path) -> AudioFile:
    """Two minutes of speech: each of its windows has more features than a socket holds."""
    speech = samples_of(librivox[0].path)
    samples = np.tile(speech, 120 * RATE // len(speech))
    return AudioFile(f"file://{write(tmp_path / 'long.wav', samples)}")


@pytest.mark.slow
def test_a_file_whose_reader_dies_is_read_once_more(
    reader: ReaderProcess, in_threads: FileReader, long_file: AudioFile
) -> None:
    parts = reader.read(long_file)
    first = next(parts)
    [process] = readers()
    process.kill()
    assert_equal(itertools.chain([first], parts), in_threads.read(long_file))


@pytest.mark.slow
def test_a_file_that_kills_its_reader_twice_is_an_error(reader: ReaderProcess, long_file: AudioFile) -> None:
    parts = reader.read(long_file)
    next(parts)
    readers()[0].kill()
    next(parts)
    readers()[0].send_signal(signal.SIGSEGV)
    *_, last = parts
    assert last == FileError("internal", "the process that read the file ended 2 times: SIGSEGV")
    *_, last = reader.read(long_file)
    assert isinstance(last, Finished)


def test_where_no_process_can_be_started_threads_read(
    engine: Engine, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for process in reader_process._pool._idle:
        process.end()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        found = list(engine.transcribe(AudioFile(f"file://{clip.path}") for clip in librivox))
    assert {t.status for t in found} == {"ok"}
    assert "a thread reads files, for no process does" in caplog.text


def test_no_process_reads_on_when_a_pass_is_abandoned(engine: Engine, librivox: list[Clip]) -> None:
    running = engine.transcribe(AudioFile(f"file://{clip.path}") for clip in itertools.cycle(librivox))
    next(running)
    assert readers()
    running.close()
    assert sorted(process.pid for process in readers()) == idle()


def test_processes_start_while_the_model_is_loaded_and_serve_one_pass_after_the_other(
    model_dir: Path, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[int] = []

    def find(*arguments: Any) -> Path:
        ahead.extend(idle())
        return model_dir

    monkeypatch.setattr(transcriber, "find_model", find)
    engine = Engine(dataclasses.replace(OPTIONS, model=str(model_dir), prefetch_processes=2))
    assert len(ahead) == 2
    for _ in range(2):
        found = engine.transcribe(AudioFile(f"file://{clip.path}") for clip in librivox)
        assert {transcript.status for transcript in found} == {"ok"}
        assert sorted(process.pid for process in readers()) == idle() == sorted(ahead)


def test_a_process_that_is_used_again_works_in_the_folder_and_environment_of_its_new_pass(
    in_threads: FileReader, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        monkeypatch.chdir(folder)
        reader = ReaderProcess(OPTIONS, BANDS, {}, in_threads)
        assert_equal(
            reader.read(AudioFile(f"file://{librivox[0].path}")),
            in_threads.read(AudioFile(f"file://{librivox[0].path}")),
        )
        reader.close()
        [process] = readers()
        assert process.cwd() == str(folder)


def test_an_idle_process_that_ends_costs_nothing(in_threads: FileReader, librivox: list[Clip]) -> None:
    file = AudioFile(f"file://{librivox[0].path}")
    for _ in range(2):
        reader = ReaderProcess(OPTIONS, BANDS, {}, in_threads)
        assert_equal(reader.read(file), in_threads.read(file))
        reader.close()
        [process] = readers()
        process.kill()
        process.wait(GONE_SECONDS)
    assert not reader._useless


@pytest.mark.slow
def test_processes_end_with_whoever_started_them(librivox: list[Clip]) -> None:
    script = f"""
import time
from whisper_spark import WhisperOptions
from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader_process import ReaderProcess

parts = ReaderProcess(WhisperOptions(), {BANDS}, {{}}, None).read(AudioFile("file://{librivox[0].path}"))
next(parts)
print("reading", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "reading\n"
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
        child.wait(GONE_SECONDS)


@pytest.mark.parametrize(
    ("kind", "cores", "asked", "processes"),
    [
        ("cpu", 32, None, 0),
        ("cuda", 3, None, 0),
        ("cuda", 4, None, 4),
        ("cuda", 8, None, 8),
        ("cuda", 64, None, 16),
        ("cuda", 64, 0, 0),
        ("cpu", 2, 3, 3),
    ],
)
def test_processes_read_where_a_gpu_has_cores(
    kind: str, cores: int, asked: int | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(device, "_task_context", lambda: None)
    options = dataclasses.replace(OPTIONS, prefetch_processes=asked)
    assert reader_processes(options, Device(kind, 0, 1, 1)) == processes
