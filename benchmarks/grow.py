"""Models with the cost of large Whisper models and the texts of whisper-base, grown from its weights.

    .venv/bin/python benchmarks/grow.py large-shape           prints the folder, in .cache/models

Speed depends on the shape of a model, not on its weights. A grown model has the layers and channels of a
larger one, so its speed, memory and batches are those of the larger one, but it computes what whisper-base
computes, so that its word errors can be compared with those of the original.

New channels and heads are zero, and new layers add nothing to what they read. Layer norms see the new
channels too: everything that is written into the residual stream is centred first, which they would do
themselves, and their scale makes up for the zeros. Only the mean of what the two convolutions write cannot
be taken out exactly; its average is (``_STEM_MEAN``).
"""

from __future__ import annotations

import re
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from convert import Weights, read_ctranslate2

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))


@dataclass(frozen=True)
class Shape:
    """Channels, and layers of the encoder and the decoder."""

    width: int
    encoder_layers: int
    decoder_layers: int


SHAPES = {
    # large-v3-turbo has four layers in its decoder, whisper-base six.
    "turbo-shape": Shape(1280, 32, 6),
    "large-shape": Shape(1280, 32, 32),
}
"""The shapes of openai/whisper-large-v3-turbo and openai/whisper-large-v3 by the names of grown models."""

# Channels of a head, in all Whisper models.
_HEAD = 64

# Mean over channels of what the convolutions of whisper-base write into the residual stream; it varies by
# 0.008 over time.
_STEM_MEAN = 0.101

# From CTranslate2's python/ctranslate2/specs/model_spec.py, version 6 of the format.
_DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
_VERSION, _SPEC, _REVISION = 6, "WhisperSpec", 3


def grown(name: str, folder: Path | None = None) -> Path:
    """Folder of a grown model, which is made on the first call.

    :param name: a key of :data:`SHAPES`.
    :param folder: in which its folder lies; ``.cache/models`` by default.
    """
    from assemble_model import assemble
    from build_folder import build_folder

    target = (folder or ROOT / ".cache" / "models") / name
    return build_folder(target, lambda empty: grow(assemble(), empty, SHAPES[name]))


def grow(source: Path, target: Path, shape: Shape) -> None:
    """Write a model of this shape that computes what the model in ``source`` computes."""
    weights = read_ctranslate2(source / "model.bin")
    # The projection shares the weights of the embedding, which must be centred while it must not.
    weights.setdefault("decoder/projection/weight", weights["decoder/embeddings/weight"])
    wide = {name: _widened(name, value, shape.width, _width(weights)) for name, value in weights.items()}
    for side, count in (("encoder", shape.encoder_layers), ("decoder", shape.decoder_layers)):
        _deepen(wide, side, count)
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    with (target / "model.bin").open("wb") as out:
        _write(out, wide)


def _width(weights: Weights) -> int:
    return int(weights["encoder/layer_norm/gamma"].shape[0])


def _widened(name: str, value: npt.NDArray[Any], width: int, own: int) -> npt.NDArray[Any]:
    """A variable of the model with ``width`` channels instead of ``own``."""
    if name.endswith("num_heads"):
        return np.array(width // _HEAD, value.dtype)
    if value.ndim == 0 or value.dtype != np.float16:
        return value
    value = value.astype(np.float32)
    side, part = name.split("/", 1)
    if part.endswith("layer_norm/gamma"):
        return _padded(value * np.sqrt(own / width), width)
    if part == "position_encodings/encodings":
        mean = _STEM_MEAN if side == "encoder" else 0.0
        return _padded(_centred(value, -1) - mean, value.shape[0], width)
    if part == "embeddings/weight":
        return _padded(_centred(value, -1), value.shape[0], width)
    if part == "projection/weight":
        return _padded(value, value.shape[0], width)
    if part.startswith("conv"):
        inputs = (value.shape[1] if part == "conv1/weight" else width,) if value.ndim > 1 else ()
        return _padded(value, width, *inputs, *value.shape[2:])
    return _layer(part, value, width)


def _layer(part: str, value: npt.NDArray[np.float32], width: int) -> npt.NDArray[Any]:
    """A weight or bias of a layer: of layer norms, attention or the feed-forward network."""
    inputs = (width,) if value.ndim > 1 else ()
    if "layer_norm" in part:
        return _padded(value, width)
    if _writes(part):
        hidden = (4 * width,) if "ffn" in part and value.ndim > 1 else inputs
        return _padded(_centred(value, 0), width, *hidden)
    if "ffn" in part:
        return _padded(value, 4 * width, *inputs)
    # Queries, keys and values stand below one another.
    blocks = {"self_attention/linear_0": 3, "attention/linear_0": 1, "attention/linear_1": 2}
    count = blocks["/".join(part.split("/")[-3:-1])]
    return np.concatenate([_padded(block, width, *inputs) for block in np.split(value, count)])


def _writes(part: str) -> bool:
    """Whether the output of this layer is added to the residual stream."""
    return bool(re.search(r"(ffn/linear_1|self_attention/linear_1|/attention/linear_2)/", part))


def _centred(value: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    return value - value.mean(axis, keepdims=True)


def _padded(value: npt.NDArray[np.float32], *shape: int) -> npt.NDArray[np.float16]:
    wide = np.zeros(shape, np.float16)
    wide[tuple(slice(0, size) for size in value.shape)] = value
    return wide


def _deepen(weights: Weights, side: str, count: int) -> None:
    """Add layers that add zero to the residual stream, at the cost of the first one."""
    numbers = (re.match(rf"{side}/layer_(\d+)/", name) for name in weights)
    own = len({found[1] for found in numbers if found})
    if count < own:
        raise ValueError(f"the {side} has {own} layers, which cannot become {count}")
    first = {name: value for name, value in weights.items() if name.startswith(f"{side}/layer_0/")}
    for number in range(own, count):
        for name, value in first.items():
            added = np.zeros_like(value) if _writes(name) else value
            weights[name.replace("layer_0", f"layer_{number}")] = added


def _write(out: BinaryIO, weights: Weights) -> None:
    def text(value: str) -> None:
        out.write(struct.pack("<H", len(value) + 1) + value.encode() + b"\0")

    out.write(struct.pack("<I", _VERSION))
    text(_SPEC)
    out.write(struct.pack("<II", _REVISION, len(weights)))
    for name, value in weights.items():
        text(name)
        out.write(struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape))
        out.write(struct.pack("<BI", _DTYPES[value.dtype.name], value.nbytes))
        out.write(np.ascontiguousarray(value).tobytes())
    # No variable has a second name.
    out.write(struct.pack("<I", 0))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    print(grown(sys.argv[1]))
