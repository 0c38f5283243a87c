"""The dimensions of a model, and from these the largest correct batch and the memory per window."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from whisper_spark.audio.features import FULL_FRAMES

# On a GPU, CTranslate2 indexes the elements of a tensor with 32 bits (``index_t`` in src/cuda/helpers.h and
# ``row * classes`` in src/ops/softmax_gpu.cu of 4.8.5). With more elements it accesses wrong addresses
# without an error: 128 windows of a model with 20 heads gave 28 % word errors instead of 10.5 %.
_MOST_ELEMENTS = 2**32 - 1

# Frames of 10 ms per position of the encoder's output (openai/whisper: a convolution of stride 2).
_FRAMES_PER_POSITION = 2

# Ratio of the width of feed-forward layers to that of the model (openai/whisper, ``n_mlp``).
_FEED_FORWARD = 4


LARGE_WIDTH = 1024
"""Width of medium, the smallest of the large models of openai/whisper."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a model that determine the batch size.

    :param heads: number of attention heads of a layer.
    :param width: size of the vector at each position.
    :param decoder_layers: number of layers of the decoder.
    """

    heads: int
    width: int
    decoder_layers: int

    def most_windows(self, frames: int, *, beams: int = 1) -> int:
        """The largest batch that is computed correctly, in windows; at least 1.

        The largest tensor is that of the encoder's attention scores (heads x positions x positions per
        window), or with short inputs that of a feed-forward layer. The decoder's attention has one query per
        beam instead of per position.

        :param frames: length of the encoder's input, in frames of 10 ms.
        :param beams: beams of the search, or number of texts sampled per window.
        """
        positions = -(-frames // _FRAMES_PER_POSITION)
        attention = self.heads * positions * max(positions, beams)
        feed_forward = positions * _FEED_FORWARD * self.width
        return max(1, _MOST_ELEMENTS // max(attention, feed_forward))

    def window_bytes(self, *, tokens: int, number_bytes: int) -> int:
        """Peak memory of a window of 30 seconds on a GPU, in bytes, without the weights.

        While encoding, these are the attention scores of one layer, before and after softmax, and the
        feed-forward layer. While decoding, these are keys and values of cross-attention and self-attention in
        all layers.

        :param tokens: number of tokens of prompt and text, in all beams together.
        :param number_bytes: size of a number, in bytes.
        """
        positions = FULL_FRAMES // _FRAMES_PER_POSITION
        encoding = 2 * self.heads * positions**2 + 2 * positions * _FEED_FORWARD * self.width
        decoding = 2 * self.decoder_layers * self.width * (positions + tokens)
        return number_bytes * max(encoding, decoding)


LARGEST = ModelShape(heads=20, width=1280, decoder_layers=32)
"""The shape of large-v1 to large-v3, the largest models of openai/whisper."""


def read_shape(folder: Path) -> ModelShape:
    """The shape of a model, from ``model.bin``; :data:`LARGEST` if it cannot be read."""
    heads = width = 0
    layers: set[str] = set()
    with contextlib.suppress(OSError, ValueError, struct.error), (folder / "model.bin").open("rb") as file:
        for name, shape, value in _variables(file):
            if name == "encoder/num_heads":
                heads = int.from_bytes(value, "little")
            elif name == "encoder/layer_norm/gamma":
                [width] = shape
            elif name.startswith("decoder/layer_"):
                layers.add(name.split("/")[1])
        if heads and width and layers:
            # decoder/layer_norm matches the prefix, but is not a layer.
            return ModelShape(heads, width, len(layers - {"layer_norm"}))
    return LARGEST


def _variables(file: BinaryIO) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name and shape of the variables in a ``model.bin``, with the bytes of scalars.

    ``ctranslate2.specs.ModelSpec.save`` defines the format.
    """

    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])

    def string() -> str:
        return file.read(number("H"))[:-1].decode()

    # Version of the format; name and revision of the architecture.
    number("I"), string(), number("I")
    for _ in range(number("I")):
        name = string()
        shape = tuple(number("I") for _ in range(number("B")))
        # Type of the variable.
        number("B")
        size = number("I")
        value = file.read(size) if not shape else b""
        if shape:
            file.seek(size, 1)
        yield name, shape, value
