"""The last check: transcribe a known clip with the model, device and options that a job will use."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from whisper_spark.contract import Transcript, WhisperOptions
from whisper_spark.doctor.checks import Check, ok

_NAME = "known clip"


def check_clip(options: WhisperOptions, model_storage: Mapping[str, str]) -> Check:
    """Load the model in a process of its own, as the job does, and transcribe the clip of the self-test."""
    from whisper_spark.decoding.device import choose_device
    from whisper_spark.engine.self_test import is_heard

    started = time.monotonic()
    try:
        device = choose_device(options).name
        transcript = _transcribed(options, model_storage)
    except Exception as error:
        fix = "see the message; after putting it right, run the check again"
        return Check(_NAME, "failed", f"{type(error).__name__}: {error}", fix)
    seconds = time.monotonic() - started
    if transcript.status == "error":
        found = f"{transcript.error_code}: {transcript.error_message}"
        return Check(_NAME, "failed", found, "see the message; the executor's log has the traceback")
    found = f"{transcript.text!r} on {device}, {seconds:.1f} s with loading the model"
    if not is_heard(transcript.text or ""):
        fix = "expected 'He was not an ill-disposed young man.': check that the model is what you want to use"
        return Check(_NAME, "warning", found, fix)
    return ok(_NAME, found)


def _transcribed(options: WhisperOptions, model_storage: Mapping[str, str]) -> Transcript:
    from whisper_spark.audio.files import AudioFile
    from whisper_spark.audio.known_clip import clip_bytes
    from whisper_spark.engine.isolated import IsolatedEngine
    from whisper_spark.storage.objects import ObjectStorage

    # A file of its own, because the package may be a zip archive.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.flac"
        path.write_bytes(clip_bytes())
        file = AudioFile(f"file://{path}", language="en")
        [transcript] = IsolatedEngine(options, model_storage).transcribe([file], ObjectStorage())
        return transcript
