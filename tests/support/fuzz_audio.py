"""Damage files of every format at random and decode them. Decoding may only succeed or raise AudioError.

    python tests/support/fuzz_audio.py SPEECH.wav FIRST LAST

It decodes one file for each number from FIRST to LAST - 1. It prints each number before decoding, so that a
crash can be traced to its file.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from audio_matrix import FORMATS, RATE, encode
from recordings import samples_of

from whisper_spark.audio.decode import AudioError, open_audio

SECONDS = 3


def originals(speech: Path) -> list[bytes]:
    """Return a file of each format and number of channels."""
    sound = samples_of(speech)[: SECONDS * RATE]
    return [
        encode(form, np.stack([sound * (1 + row) / channels for row in range(channels)]))
        for form in FORMATS
        for channels in form.layouts
        if channels <= 9
    ]


def damaged(files: list[bytes], seed: int) -> bytes:
    """Return one of the files, damaged in up to three ways."""
    chance = np.random.default_rng(seed)
    data = bytearray(files[int(chance.integers(len(files)))])
    for _ in range(int(chance.integers(1, 4))):
        _damage(data, files, chance)
    return bytes(data)


def _damage(data: bytearray, files: list[bytes], chance: np.random.Generator) -> None:
    size = max(len(data), 2)
    # Half of the damage is confined to the first kilobyte, where the headers are.
    span = size if chance.integers(2) else min(size, 1024)
    at = int(chance.integers(span))
    length = int(chance.integers(1, 4096))
    match int(chance.integers(7)):
        case 0:
            for position in chance.integers(0, min(span, len(data)), 30 if data else 0).tolist():
                data[position] ^= 1 << int(chance.integers(8))
        case 1:
            data[at : at + length] = chance.bytes(length)
        case 2:
            data[at : at + length] = bytes(length)
        case 3:
            del data[at:]
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = data[at : at + length]
        case _:
            data += files[int(chance.integers(len(files)))]


def decode(data: bytes, split: bool) -> str:
    """Decode a file and return the outcome: an error code, ``truncated`` or ``whole``."""
    try:
        audio = open_audio(io.BytesIO(data), split=split, max_duration_s=600)
        for samples, channel in audio.blocks():
            if not np.isfinite(samples).all() or channel < 0:
                raise ArithmeticError("samples that are no numbers")
    except AudioError as error:
        return error.code
    return "truncated" if audio.truncated else "whole"


def main() -> None:
    """Run the command that the module's docstring describes."""
    files = originals(Path(sys.argv[1]))
    for seed in range(int(sys.argv[2]), int(sys.argv[3])):
        print(seed, end=" ", flush=True)
        print(decode(damaged(files, seed), bool(seed % 2)), flush=True)


if __name__ == "__main__":
    main()
