"""Chooses the length of the encoder's input: the speech of a window and some padding, up to 30 seconds."""

from __future__ import annotations

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model_shape import ModelShape

MARGIN_FRAMES = 300
"""Minimum padding behind the speech of a window, in frames of 10 ms. Whisper was trained on 30 seconds. A
shorter input reduces the cost of the encoder more than proportionally, but some texts then loop or lose their
end. The quality gate detects these, and their windows are decoded again with 30 seconds."""

LEAST_FRAMES = 1000
"""Minimum length of the encoder's input, in frames of 10 ms. Below it come word errors that the quality gate
cannot detect: on 150 prompts of 2 to 10 seconds, whisper-base made 298 word errors with 3 seconds of margin
and 222 with 5."""

# Lengths are multiples of a step, so that more windows can share a batch. A CPU has small batches, and short
# contexts save most of its time. A GPU needs full batches: with steps of 10 instead of 2 seconds, an H100
# transcribed calls with whisper-base 1.4 times as fast. The encoders of large models are too expensive for
# steps as long.
_CPU_STEP, _GPU_STEP, _GPU_STEP_OF_LARGE = 200, 1000, 500

# Width of medium and larger models.
_LARGE_WIDTH = 1024


def context_step(device: Device, shape: ModelShape) -> int:
    """The step between the lengths of the encoder's input, in frames of 10 ms."""
    if device.kind == "cpu":
        return _CPU_STEP
    return _GPU_STEP_OF_LARGE if shape.width >= _LARGE_WIDTH else _GPU_STEP


def context_frames(frames: int, step: int) -> int:
    """Length of the encoder's input for a window of ``frames``: with margin, a multiple of ``step``."""
    wanted = max(frames + MARGIN_FRAMES, LEAST_FRAMES)
    return min(FULL_FRAMES, -(-wanted // step) * step)
