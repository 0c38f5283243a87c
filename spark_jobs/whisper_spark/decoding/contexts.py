"""Chooses the length of the encoder's input: the speech of a window and some padding, up to 30 seconds."""

from __future__ import annotations

from collections.abc import Sequence

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model_shape import LARGE_WIDTH, ModelShape

MARGIN_FRAMES = 300
"""Minimum padding behind the speech of a window, in frames of 10 ms. Whisper was trained on 30 seconds. A
shorter input reduces the cost of the encoder more than proportionally, but some texts then loop or lose their
end. The quality gate detects these, and their windows are decoded again with 30 seconds."""

LEAST_FRAMES = 1000
"""Minimum length of the encoder's input, in frames of 10 ms. Below it come word errors that the quality gate
cannot detect: on 150 prompts of 2 to 10 seconds, whisper-base made 298 word errors with 3 seconds of margin
and 222 with 5."""

# There are only some lengths, so that more windows can share a batch. A CPU has small batches, and short
# contexts save most of its time: every even number of seconds. A GPU needs full batches. Most windows of a
# long file have about 20 seconds of speech, so that one length is that of these with their margin. The
# encoders of large models cost so much that more lengths are worth their less full batches.
_ON_CPU = tuple(range(LEAST_FRAMES, FULL_FRAMES + 1, 200))
_ON_GPU = (1000, 1600, 2400, FULL_FRAMES)
_ON_GPU_OF_LARGE = (1000, 1400, 1800, 2200, 2400, FULL_FRAMES)


def context_lengths(device: Device, shape: ModelShape) -> tuple[int, ...]:
    """The lengths that the encoder's input may have, in frames of 10 ms, the shortest first."""
    if device.kind == "cpu":
        return _ON_CPU
    return _ON_GPU_OF_LARGE if shape.width >= LARGE_WIDTH else _ON_GPU


def context_frames(frames: int, lengths: Sequence[int]) -> int:
    """Length of the encoder's input for a window of ``frames``: the shortest with room for the margin."""
    wanted = min(max(frames + MARGIN_FRAMES, LEAST_FRAMES), FULL_FRAMES)
    return next(length for length in lengths if length >= wanted)
