"""A file that kills the process which reads or decodes it costs its own row; all others are finished."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from speech import Clip
from standin_engine import LOG_SUFFIX

from whisper_spark import Transcript, WhisperOptions, transcribe_files
from whisper_spark.audio.files import AudioFile
from whisper_spark.decoding.model import ModelError
from whisper_spark.engine import engine_process, isolated
from whisper_spark.engine.isolated import EngineProcessError, IsolatedEngine
from whisper_spark.progress.counters import Progress
from whisper_spark.storage.objects import ObjectStorage

# Nearly all of them start processes.
pytestmark = pytest.mark.slow

OPTIONS = WhisperOptions(model="base")
STANDIN = "standin_engine:get_engine"


def file(folder: Path, name: str, orders: str = "") -> AudioFile:
    path = folder / name
    path.write_text(orders)
    return AudioFile(path.as_uri())


def transcribe(files: list[AudioFile], **engine: str) -> dict[str, Transcript]:
    found = list(IsolatedEngine(OPTIONS, engine=STANDIN, **engine).transcribe(files, ObjectStorage()))
    assert len(found) == len(files)
    return {Path(t.audio_uri).name: t for t in found}


def tries(file: AudioFile) -> int:
    log = Path(file.uri.removeprefix("file://") + LOG_SUFFIX)
    return log.stat().st_size if log.exists() else 0


def engine_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "engine_process" in " ".join(p.cmdline())]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_file_that_kills_the_engine_costs_its_own_row_after_two_tries(tmp_path: Path, name: str) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(20)]
    files[7] = file(tmp_path, "deadly.wav", f"kill {name}")
    found = transcribe(files)
    deadly = found.pop("deadly.wav")
    assert (deadly.status, deadly.error_code) == ("error", "internal")
    assert name in (deadly.error_message or "")
    assert {t.status for t in found.values()} == {"ok"}
    assert tries(files[7]) == 2


def test_whatever_files_kill_the_engine_all_others_are_finished(tmp_path: Path) -> None:
    deadly = set(random.Random(3).sample(range(60), 5)) | {0, 59}
    orders = dict.fromkeys(deadly, "kill SIGKILL")
    files = [file(tmp_path, f"{number}.wav", orders.get(number, "")) for number in range(60)]
    found = transcribe(files)
    assert {int(Path(name).stem) for name, t in found.items() if t.status == "error"} == deadly
    assert all(1 <= tries(files[number]) <= 2 for number in deadly)


def test_process_that_dies_once_costs_no_row(tmp_path: Path) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(5)]
    files[2] = file(tmp_path, "once.wav", f"crash-once {tmp_path}/crashed")
    assert {t.status for t in transcribe(files).values()} == {"ok"}
    assert tries(files[2]) == 2


def test_same_file_twice_kills_for_both_rows(tmp_path: Path) -> None:
    deadly, good = file(tmp_path, "deadly.wav", "kill SIGKILL"), file(tmp_path, "good.wav")
    files = [deadly, good, deadly]
    found = list(IsolatedEngine(OPTIONS, engine=STANDIN).transcribe(files, ObjectStorage()))
    assert sorted(t.status for t in found) == ["error", "error", "ok"]


def test_progress_counts_over_processes(tmp_path: Path) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(3)]
    files.insert(1, file(tmp_path, "deadly.wav", "kill SIGKILL"))
    progress = Progress(files=4)
    list(IsolatedEngine(OPTIONS, engine=STANDIN).transcribe(files, ObjectStorage(), progress))
    snapshot = progress.snapshot()
    assert (snapshot.state, snapshot.files, snapshot.errors) == ("done", 4, {"internal": 1})
    assert snapshot.audio_seconds == 6.0


@pytest.mark.parametrize("where", ["read-SIGSEGV", "decode-SIGKILL"])
def test_real_engine_survives_a_file_that_kills_it(
    speech: list[Clip], model_dir: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "ENGINE", "deadly_engine:get_engine")
    clips = sorted(speech, key=lambda clip: clip.seconds)[:20]
    paths = [tmp_path / f"{number}.wav" for number in range(20)]
    paths[9] = tmp_path / f"{where}.wav"
    for path, clip in zip(paths, clips, strict=True):
        path.symlink_to(clip.path)
    transcripts = transcribe_files(paths, WhisperOptions(model=str(model_dir)))
    found = {Path(t.audio_uri.removeprefix("file://")): t for t in transcripts}
    assert set(found) == set(paths)
    deadly = found.pop(paths[9])
    assert (deadly.status, deadly.error_code) == ("error", "internal")
    assert where.partition("-")[2] in (deadly.error_message or "")
    assert {t.status for t in found.values()} == {"ok"}


def test_engine_that_cannot_be_loaded_raises_what_it_raised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no faster-whisper model") as caught:
        list(transcribe_files([tmp_path / "a.wav"], WhisperOptions(model=str(tmp_path))))
    assert "In the engine's process" in caught.value.__notes__[0]
    assert not engine_processes()


def test_process_that_dies_before_any_file_fails_the_pass(tmp_path: Path) -> None:
    with pytest.raises(EngineProcessError, match="while it loaded the model: exit status 3"):
        list(
            IsolatedEngine(OPTIONS, engine="loading_engine:die").transcribe(
                [file(tmp_path, "a.wav")], ObjectStorage()
            )
        )


def test_error_of_the_iterator_of_files_reaches_the_caller(tmp_path: Path) -> None:
    def files() -> Iterator[AudioFile]:
        yield file(tmp_path, "a.wav")
        raise LookupError("no more files")

    with pytest.raises(LookupError, match="no more files"):
        list(IsolatedEngine(OPTIONS, engine=STANDIN).transcribe(files(), ObjectStorage()))


def test_process_waits_for_the_next_pass_and_ends_when_one_is_abandoned(tmp_path: Path) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(3)]
    transcribe(files)
    [process] = engine_processes()
    transcribe(files)
    assert [process] == engine_processes()
    threads = threading.active_count()
    running = IsolatedEngine(OPTIONS, engine=STANDIN).transcribe(files, ObjectStorage())
    next(running)
    running.close()
    assert not engine_processes()
    assert threading.active_count() <= threads


def test_idle_process_that_is_killed_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(3)]
    transcribe(files)
    [idle] = engine_processes()

    def killed_after_the_check(process: engine_process.EngineProcess) -> bool:
        idle.kill()
        idle.wait()
        return True

    monkeypatch.setattr(engine_process.EngineProcess, "is_usable", killed_after_the_check)
    assert {t.status for t in transcribe(files).values()} == {"ok"}
    assert [tries(f) for f in files] == [2, 2, 2]
    assert idle not in engine_processes()


def test_process_whose_thread_still_waits_gets_no_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file(tmp_path, f"{number}.wav") for number in range(3)]
    wanted = engine_process.EngineProcess.wanted
    feeders: list[threading.Thread] = []
    release = threading.Event()

    def slow_at_the_end(process: engine_process.EngineProcess) -> bool:
        feeders.append(threading.current_thread())
        # Three files, and the answer that there are no more.
        if feeders.count(feeders[0]) > 4 and feeders[-1] is feeders[0]:
            release.wait()
        return wanted(process)

    monkeypatch.setattr(engine_process.EngineProcess, "wanted", slow_at_the_end)
    monkeypatch.setattr(isolated, "_DONE_JOIN_SECONDS", 0.1)
    try:
        transcribe(files)
        assert feeders[0].is_alive()
        assert {t.status for t in transcribe(files).values()} == {"ok"}
    finally:
        release.set()
    feeders[0].join(20)
    assert not feeders[0].is_alive()


def test_environment_and_folder_of_the_caller_are_those_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file(tmp_path, "a.wav", "environment AWS_PROFILE")]
    here = Path.cwd()
    assert transcribe(files)["a.wav"].text == f"None {here}"
    [process] = engine_processes()
    monkeypatch.setenv("AWS_PROFILE", "another")
    monkeypatch.chdir(tmp_path)
    assert transcribe(files)["a.wav"].text == f"another {tmp_path}"
    monkeypatch.undo()
    assert transcribe(files)["a.wav"].text == f"None {here}"
    assert engine_processes() == [process]


def test_interrupt_ends_it_within_a_second(tmp_path: Path) -> None:
    slow = file(tmp_path, "slow.wav", "sleep 600")
    program = f"""
import signal, sys
sys.path[:0] = {sys.path!r}
# Processes that a shell started in the background ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
from whisper_spark import WhisperOptions
from whisper_spark.audio.files import AudioFile
from whisper_spark.engine.isolated import IsolatedEngine
from whisper_spark.storage.objects import ObjectStorage
engine = IsolatedEngine(WhisperOptions(model="base"), engine="{STANDIN}")
print("started", flush=True)
list(engine.transcribe([AudioFile("{slow.uri}")], ObjectStorage()))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "started\n"
        while not tries(slow):
            assert caller.poll() is None
            time.sleep(0.02)
        children = psutil.Process(caller.pid).children()
        start = time.monotonic()
        caller.send_signal(signal.SIGINT)
        _, errors = caller.communicate(timeout=20)
        assert time.monotonic() - start < 1.0
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert len(children) == 1
        assert not any(child.is_running() for child in children)


def test_log_of_the_engine_is_that_of_the_caller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_dir: Path
) -> None:
    caplog.set_level("INFO", "whisper_spark")
    list(transcribe_files([tmp_path / "gone.wav"], WhisperOptions(model=str(model_dir))))
    assert any("loaded on CPU" in record.getMessage() for record in caplog.records)


def test_caller_keeps_its_own_threads_and_allocator(
    tmp_path: Path, librivox: list[Clip], model_dir: Path
) -> None:
    program = f"""
import numpy, sys
from threadpoolctl import threadpool_info
from whisper_spark import WhisperOptions, transcribe_files
def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
before = blas()
assert before, "NumPy has no BLAS that threadpoolctl knows"
for transcript in transcribe_files([{str(librivox[0].path)!r}], WhisperOptions(model={str(model_dir)!r})):
    assert transcript.status == "ok"
    assert blas() == before
print(sorted({{"ctranslate2", "faster_whisper", "onnxruntime"}} & sys.modules.keys()))
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "[]\n", done.stderr


def test_where_no_process_can_be_started_the_engine_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(engine_process, "_idle", None)
    assert transcribe([file(tmp_path, "a.wav")])["a.wav"].status == "ok"
    assert "will end this process" in caplog.text
