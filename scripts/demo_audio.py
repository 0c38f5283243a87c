"""The demo's recordings: read sentences, and calls joined from telephone prompts in five languages."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech import LANGUAGES, Clip, prompts, speech_root

DAY = "2026-11-01"
BUNDLED = Path(__file__).resolve().parents[1] / "demo" / "audio" / f"dt={DAY}"
FORMATS = (("mp3", "libmp3lame"), ("ogg", "libopus"), ("m4a", "aac"))
CALLS_PER_LANGUAGE = 2
CALL_SECONDS = 45.0
PAUSE_SECONDS = 0.7
RATE = 16_000


def prepare_recordings(folder: Path) -> str | None:
    """Create the demo's audio in ``folder`` if it does not exist.

    :return: the reason why the calls could not be created, or ``None``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(BUNDLED.iterdir()):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    if len(list(folder.glob("call-*"))) == len(LANGUAGES) * CALLS_PER_LANGUAGE:
        return None
    try:
        clips = prompts(speech_root(), min_words=6)
    except RuntimeError as error:
        return str(error)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as building:
        for number, (name, call) in enumerate(_calls(clips)):
            extension, codec = FORMATS[number % len(FORMATS)]
            part = Path(building, f"call-{name}.{extension}")
            join([clip.path for clip in call], part, codec)
            part.rename(folder / part.name)
    return None


def _calls(clips: list[Clip]) -> Iterator[tuple[str, list[Clip]]]:
    for language in LANGUAGES:
        spoken = [clip for clip in clips if clip.language == language and "(" not in clip.text]
        # Shuffle the prompts: neighbours in name order are almost equal and would be flagged as repetitive.
        own = iter(random.Random(DAY).sample(spoken, len(spoken)))
        for number in range(1, CALLS_PER_LANGUAGE + 1):
            call: list[Clip] = []
            while sum(clip.seconds + PAUSE_SECONDS for clip in call) < CALL_SECONDS:
                call.append(next(own))
            yield f"{language}-{number}", call


def join(paths: list[Path], target: Path, codec: str, pause_seconds: float = PAUSE_SECONDS) -> None:
    """Write recordings one after the other to one compressed file."""
    import av
    import numpy as np

    pause = np.zeros((1, int(pause_seconds * RATE)), dtype=np.int16)
    container = {".m4a": "mp4"}.get(target.suffix, target.suffix[1:])
    with av.open(str(target), "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000 if codec == "libopus" else RATE, layout="mono")
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=stream.rate)
        for path in paths:
            for samples in (*_samples(path), pause):
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                frame.sample_rate = RATE
                for resampled in resampler.resample(frame):
                    out.mux(stream.encode(resampled))
        for resampled in resampler.resample(None):
            out.mux(stream.encode(resampled))
        out.mux(stream.encode(None))


def _samples(path: Path) -> Iterator[Any]:
    import av

    with av.open(str(path)) as recording:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        for frame in recording.decode(audio=0):
            yield from (part.to_ndarray() for part in resampler.resample(frame))
        yield from (part.to_ndarray() for part in resampler.resample(None))
