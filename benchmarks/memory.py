"""Peak memory of the engine, and the time of what is not the model, against the length of one file.

    .venv/bin/python benchmarks/memory.py                        11 min, 1 h, 3 h and 11 h of a quiet line
    .venv/bin/python benchmarks/memory.py --constant --speech 0.6   the same of talk, without the model
    .venv/bin/python benchmarks/memory.py --speech 0.25 11 60       other lengths, in minutes
    .venv/bin/python benchmarks/memory.py --speakers                and tell speakers apart

Each length runs in a Python of its own; its memory is that of all processes together. The file repeats
recorded prompts with pauses between. ``--speech`` is the share of speech in it; the default is low, because
the time of a run is that of its speech, while its memory is not. ``--constant`` replaces CTranslate2's model
by one that answers every window with the same sentence at once, so that everything around the model can be
measured with many windows; nothing is transcribed then. The ``transcript`` column is the time from windows'
texts to segments, scores and flags.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import wave
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from measure import measure
from note import table, write_block

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

MINUTES = (11, 60, 180, 660)
MOST_MIB = 300
TIMEOUT_S = 3_600.0
"""What the longest file may need more than the shortest."""

COLUMNS = ("minutes", "windows", "words", "wall s", "x real time", "peak MiB")
STAGES = {
    "decode": "decode",
    "voice detection": "vad",
    "features": "features",
    "speakers": "speakers",
    "transcript": "assemble",
}
# Their seconds for each hour of audio: equal for all lengths when the work is linear.


def make_file(path: Path, minutes: float, share: float) -> None:
    """A WAV of 16 kHz mono: written piece by piece, so that making it needs no memory either."""
    from recordings import RATE, samples_of
    from speech import prompts, speech_root

    clips = [samples_of(c.path) for c in prompts(speech_root()) if c.language == "en" and c.seconds > 2]
    random.Random(1).shuffle(clips)
    left = int(minutes * 60 * RATE)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        number = 0
        while left > 0:
            clip = clips[number % len(clips)]
            piece = np.concatenate([clip, np.zeros(int(len(clip) * (1 / share - 1)), np.float32)])[:left]
            file.writeframes((piece * 32767).astype("<i2").tobytes())
            left -= len(piece)
            number += 1


class ConstantModel:
    """Stands in for ``ctranslate2.models.Whisper``: the same sentence for each window, in no time."""

    is_multilingual = True
    n_mels = 80
    _text = " The quick brown fox jumps over the lazy dog, and then it does something else."

    def __init__(self, folder: Path) -> None:
        import tokenizers

        self._ids = (
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            .encode(self._text, add_special_tokens=False)
            .ids
        )

    def encode(self, features: Any, **_: Any) -> Any:
        import ctranslate2

        rows, _, frames = features.shape
        return ctranslate2.StorageView.from_array(np.zeros((rows, frames // 2, 512), np.float32))

    def detect_language(self, encoded: Any) -> list[list[tuple[str, float]]]:
        return [[("<|en|>", 1.0)]] * encoded.shape[0]

    def generate(self, encoded: Any, prompts: Sequence[Any], **_: Any) -> list[Any]:
        return [
            SimpleNamespace(sequences_ids=[self._ids], scores=[-0.1], no_speech_prob=0.0) for _ in prompts
        ]

    def align(
        self, encoded: Any, start: Any, tokens: Sequence[Sequence[int]], frames: Any, **_: Any
    ) -> list[Any]:
        frames = [frames] * len(tokens) if isinstance(frames, int) else frames
        return [
            SimpleNamespace(
                alignments=[(i, i * (count // 2) // (len(ids) + 1)) for i in range(len(ids) + 1)],
                text_token_probs=[0.9] * len(ids),
            )
            for ids, count in zip(tokens, frames, strict=True)
        ]


def constant_engine(options: Any, storage: Mapping[str, str] | None = None) -> Any:
    """The engine with a :class:`ConstantModel`, in the process that the engine has for itself."""
    from whisper_spark.decoding import decoder
    from whisper_spark.engine.transcriber import get_engine

    decoder.load_weights = lambda folder, *_: ConstantModel(folder)
    return get_engine(options, storage)


def run_one(path: str, constant: bool, speakers: bool) -> None:
    """Transcribe one file, and write what that took beside it as JSON."""
    from assemble_model import assemble
    from assemble_speaker_model import assemble as assemble_speaker_model

    from whisper_spark import WhisperOptions
    from whisper_spark.audio.files import AudioFile
    from whisper_spark.engine.isolated import IsolatedEngine
    from whisper_spark.progress.counters import Progress
    from whisper_spark.storage.objects import ObjectStorage

    model = str(assemble_speaker_model()) if speakers else None
    options = WhisperOptions(model=str(assemble()), language="en", diarize=speakers, speaker_model=model)
    engine = IsolatedEngine(options, engine="memory:constant_engine" if constant else None)
    storage, progress = ObjectStorage(), Progress()
    list(engine.transcribe([], storage))  # loads the model
    started = time.monotonic()
    [transcript] = engine.transcribe([AudioFile(f"file://{path}")], storage, progress)
    end = progress.snapshot()
    found = {
        "minutes": round((transcript.duration_s or 0) / 60, 1),
        "windows": end.windows,
        "words": len((transcript.text or "").split()),
        "wall s": round(time.monotonic() - started, 1),
        "x real time": round((transcript.duration_s or 0) / (time.monotonic() - started), 1),
    }
    hours = (transcript.duration_s or 1) / 3600
    found |= {name: round(end.stages[key] / hours, 2) for name, key in STAGES.items()}
    Path(path).with_suffix(".json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", nargs="*", type=float, default=[*MINUTES])
    parser.add_argument("--speech", type=float, default=0.05, help="share of speech (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--constant", action="store_true", help="without the model")
    parser.add_argument("--speakers", action="store_true", help="tell speakers apart")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.constant, arguments.speakers)
        return
    model = "a constant answer instead of the model" if arguments.constant else "whisper-base int8"
    model += ", speakers told apart" if arguments.speakers else ""
    print(f"{model}, {arguments.speech:.0%} speech", flush=True)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.wav"
            make_file(path, minutes, arguments.speech)
            command = [sys.executable, __file__, "--one", str(path)]
            command += ["--constant"] if arguments.constant else []
            command += ["--speakers"] if arguments.speakers else []
            measured = measure(command, os.environ, path.with_suffix(".log"), TIMEOUT_S)
            row = json.loads(path.with_suffix(".json").read_text())
            found.append(row | {"peak MiB": round(measured.peak_mib)})
            print(found[-1], flush=True)
            path.unlink()
    more = found[-1]["peak MiB"] - found[0]["peak MiB"]
    first, last = arguments.minutes[0], arguments.minutes[-1]
    what = f"{model}, {arguments.speech:.0%} speech, {datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"{what}; {more:+,} MiB from {first:g} to {last:g} minutes, {MOST_MIB} are allowed:",
        "",
        *table(
            [*COLUMNS, *(f"{name}, s for 1 h" for name in STAGES)],
            [[f"{row[name]:,}" for name in (*COLUMNS, *STAGES)] for row in found],
        ),
    ]
    print("", *lines, sep="\n")
    if arguments.write:
        name = "memory without the model" if arguments.constant else "memory"
        write_block(f"{name} with speakers" if arguments.speakers else name, lines)
    sys.exit(more > MOST_MIB)


if __name__ == "__main__":
    main()
