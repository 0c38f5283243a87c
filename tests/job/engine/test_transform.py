"""The user's function changes transcripts before they leave the engine, and its failure costs one row."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from speech import Clip

from whisper_spark import transcribe_files
from whisper_spark.audio.files import AudioFile
from whisper_spark.contract import TRANSIENT_ERRORS, Transcript, WhisperOptions
from whisper_spark.engine import isolated
from whisper_spark.engine.isolated import IsolatedEngine
from whisper_spark.engine.transform import TransformError
from whisper_spark.progress.counters import Progress
from whisper_spark.storage.objects import ObjectStorage

SECRET = "4111111111111111"

MODULE = '''
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from whisper_spark.redaction import redact

WRONG_TIMES = {
    "untimed": {"start": None, "end": None},
    "undefined": {"start": float("nan")},
    "early": {"start": -1.0},
    "late": {"end": 60.0},
    "swapped": {"start": 0.9, "end": 0.1},
    "unsaid": {"words": {"start": None}},
    "aftermath": {"words": {"end": 1e9}},
    "backwards": {},
}

def with_times(segment, changes):
    words = [replace(word, **changes.get("words", {})) for word in segment.words]
    return replace(segment, **{**changes, "words": tuple(words)})

async def later(transcript):
    return transcript

def with_other_types(transcript):
    """The same transcript of objects that no other process can read."""
    class Text(str):
        pass

    def other(item, **changes):
        values = {name: getattr(item, name) for name in item.__slots__}
        return SimpleNamespace(**{**values, **changes}, lock=threading.Lock())

    def segments():
        for segment in transcript.segments:
            words = [other(word, word=Text(word.word)) for word in segment.words]
            yield other(segment, text=Text(segment.text), start=np.float32(segment.start), words=words)

    return replace(transcript, text=Text(transcript.text), segments=segments())

def hide(transcript):
    """Hides the secret; a text that speaks of an error makes it fail, with the text in its message."""
    text = transcript.text
    if "explode" in text:
        raise ValueError(f"cannot hide {text}")
    if "forget" in text:
        return replace(transcript, text="forgotten")
    if "nothing" in text:
        return None
    if "number" in text:
        return replace(transcript, text=7, segments=())
    if "segments" in text:
        return replace(transcript, segments=[1, 2])
    if "wordless" in text:
        return replace(transcript, text="", segments=[replace(transcript.segments[0], text=None, words=None)])
    for name, changes in WRONG_TIMES.items():
        if name in text:
            changed = [with_times(segment, changes) for segment in transcript.segments]
            return replace(transcript, segments=reversed(changed) if name == "backwards" else changed)
    if "coroutine" in text:
        return later(transcript)
    if "exit" in text:
        sys.exit(text)
    if "kill" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in text:
        Path(transcript.audio_uri.removeprefix("file://") + ".hangs").open("a").write("x")
        time.sleep(3600)
    if "types" in text:
        return with_other_types(transcript)
    secret = "4111111111111111"
    place = text.find(secret)
    hidden = redact(transcript, [(place, place + len(secret))] if place >= 0 else [])
    return replace(hidden, audio_uri="elsewhere", fingerprint="another", quality_flags=("made_up",))

hide.version = "1"

def unversioned(transcript):
    return transcript
'''

EDITED = """
from dataclasses import replace

def hide(transcript):
    return replace(transcript, text="", segments=())

hide.version = 2
"""

_names = iter(f"hiding_{number}" for number in range(1_000))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module of a function, where the engine's process finds it. Each test has its own."""
    path = tmp_path / f"{next(_names)}.py"
    path.write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def options(module: Path, function: str = "hide@1") -> WhisperOptions:
    return WhisperOptions(model="base", transform=f"{module.stem}:{function}")


def transcribe(
    given: WhisperOptions,
    folder: Path,
    *texts: str,
    engine: str = "speaking_engine:get_engine",
    progress: Progress | None = None,
) -> list[Transcript]:
    files = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.wav"
        path.write_text(text)
        files.append(AudioFile(f"file://{path}", etag="e1", size=len(text), attempt=2))
    made = IsolatedEngine(given, engine=engine).transcribe(files, ObjectStorage(), progress)
    return sorted(made, key=lambda transcript: transcript.audio_uri)


def test_what_the_function_hides_never_leaves_the_engine(module: Path, tmp_path: Path) -> None:
    given = options(module)
    hidden, plain = transcribe(given, tmp_path, f"my card is\n{SECRET} thanks", "good morning")
    assert hidden.text == "my card is [...] thanks"
    assert [segment.text for segment in hidden.segments] == ["my card is", "[...] thanks"]
    assert SECRET not in repr(hidden)
    assert plain.text == "good morning"
    # Only the text is the function's: everything else identifies the file and the options.
    assert (hidden.audio_uri, hidden.fingerprint) == (f"file://{tmp_path}/0.wav", given.fingerprint())
    assert (hidden.attempt, hidden.quality_flags, hidden.status) == (2, (), "ok")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"explode {SECRET}", r"ValueError in hide \(.*hiding_\d+.py:\d+\)"),
        (f"forget {SECRET}", "no longer that of its segments and words"),
        (f"nothing {SECRET}", "it returned NoneType instead of a Transcript"),
        (f"number {SECRET}", "whose text is int"),
        (f"segments {SECRET}", "no rows of the table"),
        (f"wordless {SECRET}", "a segment or word without text"),
        (f"coroutine {SECRET}", "it returned coroutine instead of a Transcript"),
        (f"exit {SECRET}", r"SystemExit in hide"),
    ],
)
def test_function_that_fails_costs_its_file_and_repeats_no_text(
    module: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    text: str,
    says: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    failed, plain = transcribe(options(module), tmp_path, text, "good morning")
    assert (failed.status, failed.error_code, failed.text, failed.segments) == (
        "error",
        "transform_failed",
        None,
        (),
    )
    assert failed.error_code in TRANSIENT_ERRORS
    assert plain.text == "good morning"
    assert failed.error_message is not None
    assert re.search(says, failed.error_message)
    assert f"failed for file://{tmp_path}/0.wav" in caplog.text
    everything = repr(failed) + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in everything


@pytest.mark.parametrize(
    "text", ["untimed", "undefined", "early", "late", "swapped", "unsaid", "aftermath", "backwards\nand on"]
)
def test_times_that_no_row_may_have_cost_their_file_and_not_the_checks_of_all(
    module: Path, tmp_path: Path, text: str
) -> None:
    failed, plain = transcribe(options(module), tmp_path, text, "good morning")
    assert (failed.status, failed.error_code) == ("error", "transform_failed")
    assert "times outside the file, out of order or missing" in (failed.error_message or "")
    assert plain.text == "good morning"


def test_result_arrives_in_plain_types(module: Path, tmp_path: Path) -> None:
    changed, plain = transcribe(options(module), tmp_path, "types of words", "kinds of words")
    assert (changed.status, changed.text, type(changed.text)) == ("ok", "types of words", str)
    assert changed.segments[0].words is not None
    kinds = replace(plain.segments[0], text=changed.text, words=changed.segments[0].words)
    assert changed.segments == (kinds,)
    assert [word.word for word in changed.segments[0].words] == [" types", " of", " words"]


@pytest.mark.slow
def test_function_that_hangs_costs_its_file(module: Path, tmp_path: Path) -> None:
    given = replace(options(module), transform_timeout_s=2)
    texts = ["good morning"] * 20
    texts[3] = texts[11] = "hang on"
    found = transcribe(given, tmp_path, *texts)
    failed = [transcript for transcript in found if transcript.status == "error"]
    assert sorted(transcript.audio_uri for transcript in failed) == sorted(
        f"file://{tmp_path}/{number}.wav" for number in (3, 11)
    )
    for transcript in failed:
        assert transcript.error_code == "transform_failed"
        assert "did not come to an end within 2 s (transform_timeout_s)" in (transcript.error_message or "")
        assert (transcript.attempt, transcript.audio_etag) == (2, "e1")
        # Nobody waits for it twice.
        assert Path(transcript.audio_uri.removeprefix("file://") + ".hangs").read_text() == "x"
    assert {transcript.text for transcript in found} == {None, "good morning"}


def test_function_that_kills_its_process_costs_its_file(module: Path, tmp_path: Path) -> None:
    found = transcribe(options(module), tmp_path, "hello", "kill it", "goodbye")
    assert [transcript.status for transcript in found] == ["ok", "error", "ok"]
    assert (found[1].error_code, found[1].text) == ("transform_failed", None)
    assert re.search(r"hide@1 ended its process 2 times: SIGKILL", found[1].error_message or "")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("hide@2", "names version '2', but .*:hide has the version '1' on host"),
        ("unversioned@1", "has the version None"),
        ("missing@1", "cannot be imported on host .*missing.*py_files"),
        ("hide.version@1", "has the version None"),
    ],
)
def test_function_that_is_not_the_one_named_stops_the_job_before_the_model_is_loaded(
    module: Path, tmp_path: Path, function: str, says: str
) -> None:
    with pytest.raises(TransformError, match=says):
        # Loading this engine would end with another error.
        transcribe(options(module, function), tmp_path, "hello", engine="no_such_engine:get_engine")


def test_module_that_is_missing_on_the_executor_stops_the_job(tmp_path: Path) -> None:
    given = WhisperOptions(model="base", transform="not_there:hide@1")
    with pytest.raises(TransformError, match=r"not_there.*py_files"):
        transcribe(given, tmp_path, "hello", engine="no_such_engine:get_engine")


def test_function_that_was_edited_is_used_in_its_new_version(module: Path, tmp_path: Path) -> None:
    transcribe(options(module), tmp_path, "good morning")
    module.write_text(EDITED)
    (edited,) = transcribe(options(module, "hide@2"), tmp_path, "good morning")
    assert (edited.status, edited.text) == ("ok", "")


def test_engine_in_the_same_process_hides_as_well(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process() -> None:
        raise OSError("Windows")

    monkeypatch.setattr(isolated, "take_process", no_process)
    progress = Progress()
    hidden, failed = transcribe(
        options(module), tmp_path, f"it is {SECRET}", f"exit {SECRET}", progress=progress
    )
    assert hidden.text == "it is [...]"
    assert failed.error_code == "transform_failed"
    snapshot = progress.snapshot()
    assert (snapshot.files, snapshot.errors) == (2, {"transform_failed": 1})
    assert snapshot.speech_seconds == 1.0


def test_real_engine_is_transformed(
    module: Path, model_dir: Path, speech: list[Clip], tmp_path: Path
) -> None:
    module.write_text(
        "from whisper_spark.redaction import redact\n"
        "def hide(t):\n    return redact(t, [(0, len(t.text))], '[all]')\nhide.version = '1'\n"
    )
    given = WhisperOptions(model=str(model_dir), language="en", transform=f"{module.stem}:hide@1")
    (transcript,) = transcribe_files([speech[0].path], given)
    assert transcript.status == "ok"
    assert set(transcript.text.split()) == {"[all]"}  # type: ignore[union-attr]
    assert {word.word.strip() for segment in transcript.segments for word in segment.words or ()} == {"[all]"}
