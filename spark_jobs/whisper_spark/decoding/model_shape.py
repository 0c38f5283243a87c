"""The size of a model, and what follows: how many windows are computed right at once, and their memory."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from whisper_spark.audio.features import FULL_FRAMES

# On a GPU, CTranslate2 numbers the elements of a tensor with 32 bits (``index_t`` in src/cuda/helpers.h and
# ``row * classes`` in src/ops/softmax_gpu.cu of 4.8.5). Beyond, it reads and writes at wrong places, and says
# nothing: 128 windows of a model with 20 heads gave 28 % word errors instead of 10.5.
_MOST_ELEMENTS = 2**32 - 1

# Frames of 10 ms for each position of the encoder's output (openai/whisper: a convolution of stride 2).
_FRAMES_PER_POSITION = 2

# Feed-forward layers are so many times as wide as the others (openai/whisper, ``n_mlp``).
_FEED_FORWARD = 4


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the size of a batch depends on.

    :param heads: attention heads of a layer.
    :param width: numbers for each position.
    :param decoder_layers: layers of the decoder.
    """

    heads: int
    width: int
    decoder_layers: int

    def most_windows(self, frames: int, *, beams: int = 1) -> int:
        """The largest batch that is computed right, in windows; at least one.

        Of all tensors, the scores of the encoder's attention are the largest (heads x positions x positions
        for each window), or the feed-forward layers where contexts are short. The decoder's attention has one
        query for each beam instead of each position.

        :param frames: that the encoder sees of each window, 10 ms each.
        :param beams: of the search, or texts that are drawn for each window.
        """
        positions = -(-frames // _FRAMES_PER_POSITION)
        attention = self.heads * positions * max(positions, beams)
        feed_forward = positions * _FEED_FORWARD * self.width
        return max(1, _MOST_ELEMENTS // max(attention, feed_forward))

    def window_bytes(self, *, beams: int, tokens: int, number_bytes: int) -> int:
        """Bytes that a window of 30 seconds takes on a GPU at the worst moment, without the weights.

        While encoding these are the scores of one layer's attention, before and after softmax, and the
        feed-forward layer; while decoding keys and values of all layers, of what was heard and what was said.

        :param beams: of the search.
        :param tokens: of prompt and text.
        :param number_bytes: bytes of a number.
        """
        positions = FULL_FRAMES // _FRAMES_PER_POSITION
        encoding = 2 * self.heads * positions**2 + 2 * positions * _FEED_FORWARD * self.width
        decoding = 2 * self.decoder_layers * self.width * (positions + beams * tokens)
        return number_bytes * max(encoding, decoding)


LARGEST = ModelShape(heads=20, width=1280, decoder_layers=32)
"""large-v1 to large-v3 and turbo: the largest that openai/whisper has."""


def read_shape(folder: Path) -> ModelShape:
    """The shape of a model, from ``model.bin``; :data:`LARGEST` where that cannot be read."""
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
            # One of the names is decoder/layer_norm.
            return ModelShape(heads, width, len(layers - {"layer_norm"}))
    return LARGEST


def _variables(file: BinaryIO) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Name, shape and, for scalars, bytes of the variables in a ``model.bin``.

    The format is that of ``ctranslate2.specs.ModelSpec.save``.
    """

    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])

    def string() -> str:
        return file.read(number("H"))[:-1].decode()

    number("I"), string(), number("I")  # version of the format; name and revision of the architecture
    for _ in range(number("I")):
        name = string()
        shape = tuple(number("I") for _ in range(number("B")))
        number("B")  # type
        size = number("I")
        value = file.read(size) if not shape else b""
        if shape:
            file.seek(size, 1)
        yield name, shape, value
