"""How much the encoder sees: the speech of a window and some padding behind it, not always 30 seconds."""

from __future__ import annotations

from whisper_spark.audio.features import FULL_FRAMES

MARGIN_FRAMES = 300
"""Padding behind the speech of a window, in frames of 10 ms, at least. Whisper was trained on 30 seconds;
with less, the encoder costs less, more than in proportion, but some windows loop or lose their end. The
quality gate catches those and decodes them again in full."""

LEAST_FRAMES = 1000
"""What the encoder sees at least, in frames of 10 ms. Below, words suffer that no gate can catch: on 150
prompts of 2 to 10 seconds, whisper-base made 298 word errors with 3 seconds of margin and 222 with 5."""

# Contexts come in steps of 2 seconds, so that windows find others to share a batch with.
_STEP_FRAMES = 200


def context_frames(frames: int) -> int:
    """Frames that the encoder is to see for a window of so many: with margin, in steps of 2 seconds."""
    wanted = max(frames + MARGIN_FRAMES, LEAST_FRAMES)
    return min(FULL_FRAMES, -(-wanted // _STEP_FRAMES) * _STEP_FRAMES)
