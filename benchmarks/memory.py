"""Peak memory of the engine against the length of one file.

    .venv/bin/python benchmarks/memory.py 3 180          minutes; prints a line for each, and the difference

Each length runs in a process of its own. The file repeats recorded prompts with pauses between; its share of
speech is ``--speech`` (default 0.35, a quiet call), because only the time to transcribe depends on it.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]


def make_file(path: Path, minutes: float, share: float) -> None:
    """A WAV of 16 kHz mono: written piece by piece, so that making it needs no memory either."""
    import numpy as np
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


def run_one(path: str) -> None:
    from assemble_model import assemble

    from whisper_spark import WhisperOptions, transcribe_files

    started = time.monotonic()
    [transcript] = transcribe_files([path], WhisperOptions(model=str(assemble()), language="en"))
    wall = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    words = len((transcript.text or "").split())
    seconds = transcript.duration_s or 0.0
    speed = f"{wall:7.0f} s {seconds / wall:6.1f} x real time"
    print(f"{seconds / 60:8.1f} min {words:7d} words {speed} {peak:7.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("minutes", nargs="*", type=float, default=[3, 180])
    parser.add_argument("--speech", type=float, default=0.35, help="share of speech, 0 to 1")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one)
        return
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.wav"
            make_file(path, minutes, arguments.speech)
            command = [sys.executable, __file__, "--one", str(path)]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()
            print(line, flush=True)
            peaks.append(float(line.split()[-2]))
            path.unlink()
    print(
        f"{peaks[-1] - peaks[0]:+.0f} MiB from {arguments.minutes[0]:g} to {arguments.minutes[-1]:g} minutes"
    )


if __name__ == "__main__":
    main()
