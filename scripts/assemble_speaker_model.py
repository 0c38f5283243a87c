"""Convert the speaker encoder of the package Resemblyzer to ONNX, for tests and benchmarks.

    python scripts/assemble_speaker_model.py            prints the folder

The weights are those of Resemblyzer (Apache-2.0): an LSTM of three layers, trained with the GE2E loss (Wan et
al., "Generalized end-to-end loss for speaker verification", ICASSP 2018), 256 dimensions. The package itself
wants PyTorch, so only its file of weights is fetched and read with NumPy. The features that Resemblyzer
computes with librosa become part of the graph, so that the model takes waveforms of 16 kHz.

It is an old and small model: real users name a better one, see docs/speakers.md.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from build_folder import build_folder

PACKAGE = "resemblyzer==0.1.4"
SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
"""SHA-256 of ``pretrained.pt``, 17,090,379 bytes."""

MODEL_DIR = Path(__file__).resolve().parents[1] / ".cache" / "models" / "speakers"

# resemblyzer/hparams.py. Windows of 25 ms every 10 ms, 40 mel bands; quiet speech is amplified to -30 dBFS.
RATE = 16_000
WINDOW = 400
HOP = 160
BANDS = 40
SIZE = 256
LAYERS = 3
LEVEL = 10 ** (-30 / 20)

Floats = npt.NDArray[np.float32]


def assemble(target: Path = MODEL_DIR) -> Path:
    """Return the folder with the model, and build it on the first call.

    :raises RuntimeError: if the package cannot be fetched or its weights are not the expected ones.
    """
    return build_folder(target, _assemble)


def _assemble(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as package:
        write_model(read_weights(_fetched(Path(package))), folder / "ge2e.onnx")


def _fetched(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    path = folder / "resemblyzer" / "pretrained.pt"
    if done.returncode or not path.is_file():
        raise RuntimeError(f"{PACKAGE} cannot be fetched: {done.stderr.strip()[-1000:]}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"pretrained.pt of {PACKAGE} has SHA-256 {found}, expected {SHA256}")
    return path


def read_weights(path: Path) -> dict[str, Floats]:
    """Read the tensors of a checkpoint that PyTorch wrote before version 1.6, by name."""
    with path.open("rb") as file:
        for _ in ("magic number", "protocol version", "system"):
            pickle.load(file)
        tensors: dict[str, tuple[str, int, tuple[int, ...]]] = _Unpickler(file).load()["model_state"]
        storages = {key: _storage(file) for key in pickle.load(file)}
    return {
        name: storages[key][offset : offset + int(np.prod(shape))].reshape(shape)
        for name, (key, offset, shape) in tensors.items()
    }


def _storage(file: BinaryIO) -> Floats:
    count = int(np.frombuffer(file.read(8), "<i8")[0])
    return np.frombuffer(file.read(4 * count), "<f4")


class _Unpickler(pickle.Unpickler):
    """Reads the descriptions of tensors without PyTorch, and refuses everything else."""

    def persistent_load(self, pid: Any) -> str:
        return str(pid[2])

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "OrderedDict": collections.OrderedDict,
            "FloatStorage": None,
            "_rebuild_tensor_v2": lambda storage, offset, shape, *_: (storage, offset, shape),
        }
        if name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not expected in the weights")
        return known[name]


def write_model(weights: dict[str, Floats], path: Path) -> None:
    """Write the encoder with its features as an ONNX model: waveforms (batch, samples) to embeddings."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, npt.NDArray[Any]] = {
        "level": np.array([LEVEL], np.float32),
        "one": np.array([1], np.float32),
        "tiny": np.array([1e-6], np.float32),
        "channel": np.array([1], np.int64),
        "halves": np.array([WINDOW // 2 + 1] * 2, np.int64),
        "fourier": _fourier(),
        "mel": _mel(),
        "linear.weight": weights["linear.weight"].T,
        "linear.bias": weights["linear.bias"],
    }
    nodes = [
        # Amplify quiet speech.
        helper.make_node("ReduceL2", ["waveform", "channel"], ["norm"], keepdims=1),
        helper.make_node("Shape", ["waveform"], ["shape"], start=1),
        helper.make_node("Cast", ["shape"], ["samples"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["samples"], ["root"]),
        helper.make_node("Mul", ["root", "level"], ["wanted"]),
        helper.make_node("Add", ["norm", "tiny"], ["loudness"]),
        helper.make_node("Div", ["wanted", "loudness"], ["ratio"]),
        helper.make_node("Max", ["ratio", "one"], ["gain"]),
        helper.make_node("Mul", ["waveform", "gain"], ["loud"]),
        # Power in mel bands.
        helper.make_node("Unsqueeze", ["loud", "channel"], ["mono"]),
        helper.make_node("Conv", ["mono", "fourier"], ["parts"], strides=[HOP], pads=[WINDOW // 2] * 2),
        helper.make_node("Mul", ["parts", "parts"], ["squares"]),
        helper.make_node("Split", ["squares", "halves"], ["real", "imaginary"], axis=1),
        helper.make_node("Add", ["real", "imaginary"], ["power"]),
        helper.make_node("Transpose", ["power"], ["frames"], perm=[2, 0, 1]),
        helper.make_node("MatMul", ["frames", "mel"], ["features-0"]),
    ]
    for layer in range(LAYERS):
        for name, value in _lstm(weights, layer).items():
            constants[f"{name}-{layer}"] = value
        names = [f"{name}-{layer}" for name in ("features", "input", "recurrent", "bias")]
        outputs = [f"sequence-{layer}", f"last-{layer}", ""]
        nodes += [
            helper.make_node("LSTM", names, outputs, hidden_size=SIZE),
            helper.make_node("Squeeze", [f"sequence-{layer}", "channel"], [f"features-{layer + 1}"]),
        ]
    constants["first"] = np.array([0], np.int64)
    nodes += [
        helper.make_node("Squeeze", [f"last-{LAYERS - 1}", "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "linear.weight"], ["projected"]),
        helper.make_node("Add", ["projected", "linear.bias"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["positive"]),
        helper.make_node("LpNormalization", ["positive"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "GE2E",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", SIZE])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _lstm(weights: dict[str, Floats], layer: int) -> dict[str, Floats]:
    """The weights of one layer in the order of ONNX: PyTorch's gates are i f g o, those of ONNX i o f g."""

    def reordered(name: str) -> Floats:
        i, f, g, o = np.split(weights[f"lstm.{name}_l{layer}"], 4)
        return np.concatenate([i, o, f, g])

    return {
        "input": reordered("weight_ih")[None],
        "recurrent": reordered("weight_hh")[None],
        "bias": np.concatenate([reordered("bias_ih"), reordered("bias_hh")])[None],
    }


def _fourier() -> Floats:
    """Fourier transform with a Hann window as weights of a convolution: (real + imaginary, 1, samples)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    angles = 2 * np.pi / WINDOW * np.outer(np.arange(WINDOW // 2 + 1), np.arange(WINDOW))
    return np.concatenate([np.cos(angles) * window, np.sin(angles) * window]).astype(np.float32)[:, None]


def _mel() -> Floats:
    """Slaney's mel filters, which are librosa's default, of shape (frequencies, bands)."""
    edges = _to_hertz(np.linspace(0.0, _to_mel(RATE / 2), BANDS + 2))
    frequencies = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])
    return filters.astype(np.float32)


# Linear up to 1000 Hz (15 mel), then logarithmic with 27 mel for a factor of 6.4.
def _to_mel(hertz: float) -> float:
    return 15 + 27 * np.log(hertz / 1000) / np.log(6.4) if hertz >= 1000 else 3 * hertz / 200


def _to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel >= 15, 1000 * 6.4 ** ((mel - 15) / 27), 200 * mel / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert Resemblyzer's speaker encoder to ONNX.")
    parser.add_argument("target", nargs="?", type=Path, default=MODEL_DIR, help="default: %(default)s")
    try:
        print(os.fspath(assemble(parser.parse_args().target)))
    except RuntimeError as error:
        sys.exit(f"assemble_speaker_model: {error}")


if __name__ == "__main__":
    main()
