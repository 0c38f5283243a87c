"""Makes ``whisper_spark/assets/silero_graph.onnx``, the graph of the voice detector, without weights.

    uv run --with onnx scripts/voice_detector.py

It computes what the Silero VAD v6 of faster-whisper computes (github.com/snakers4/silero-vad), with the same
weights, in a quarter of the processor time. Silero's convolutions have four positions in each frame, and ONNX
Runtime multiplies their matrices frame by frame. Here each layer is one product over all frames of a call,
taps that fall on padding are left out, and NumPy computes the Fourier transform (``audio/silero.py``).
``audio/silero_weights.py`` reads the weights from faster-whisper when the graph is loaded.
``tests/job/audio/test_windows.py`` compares both. Run it again for a newer Silero with the same layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TARGET = Path(__file__).resolve().parents[1] / "spark_jobs/whisper_spark/assets/silero_graph.onnx"

# Positions of a frame in the spectrogram, and the frequencies of each: 256 samples, every 128 samples.
POSITIONS, FREQUENCIES = 4, 129
STATE = 128

# Input channels of the four convolutions.
CHANNELS = (129, 128, 64, 64)

# The weights, and their shapes.
WEIGHTS = {
    **{f"kernel{n}": (3 * c, o) for n, (c, o) in enumerate(zip(CHANNELS, (128, 64, 64, 128), strict=True))},
    **{f"bias{n}": (o,) for n, o in enumerate((128, 64, 64, 128))},
    "input": (1, 4 * STATE, STATE),
    "recurrent": (1, 4 * STATE, STATE),
    "biases": (1, 8 * STATE),
    "last": (STATE, 1),
    "last_bias": (1,),
}


class Graph:
    """The nodes and constants of a network, each under the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant. Returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        """Add a constant whose value is given when the graph is loaded. Returns its name."""
        tensor = TensorProto(
            name=name, data_type=TensorProto.FLOAT, dims=WEIGHTS[name], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="faster-whisper")
        self.constants.append(tensor)
        return name

    def node(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: int) -> str:
        """Add a node. Returns the name of its first output."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def part(self, source: str, start: int, end: int, axis: int, name: str) -> str:
        """Rows (``axis=0``) or columns (``axis=1``) of a matrix."""
        edges = [
            self.constant(f"{name}.{i}", np.array([value])) for i, value in enumerate((start, end, axis))
        ]
        return self.node("Slice", [source, *edges], name)

    def dense(self, source: str, weights: str, bias: str, name: str) -> str:
        """A dense layer with ReLU."""
        return self.node("Relu", [self.node("Gemm", [source, weights, bias], f"{name}.sum")], name)


def network() -> onnx.ModelProto:
    """The graph. Its input is the magnitudes of the spectrum, of shape (frames, POSITIONS x FREQUENCIES)."""
    graph = Graph()
    for name in WEIGHTS:
        graph.weight(name)

    def layer(number: int, source: str, first: int, last: int, name: str) -> str:
        """One position of a convolution, with the taps ``first`` to ``last`` of its three."""
        edges = first * CHANNELS[number], (last + 1) * CHANNELS[number]
        return graph.dense(
            source, graph.part(f"kernel{number}", *edges, 0, f"{name}.kernel"), f"bias{number}", name
        )

    def seen(first: int, last: int) -> str:
        """Positions of the spectrum."""
        return graph.part(
            "magnitudes", first * FREQUENCIES, (last + 1) * FREQUENCIES, 1, f"seen{first}{last}"
        )

    # Stride 1, four positions. The first and the last tap of the outer ones fall on padding.
    first = [
        layer(0, seen(0, 1), 1, 2, "first0"),
        layer(0, seen(0, 2), 0, 2, "first1"),
        layer(0, seen(1, 3), 0, 2, "first2"),
        layer(0, seen(2, 3), 0, 1, "first3"),
    ]
    # Stride 2, two positions; then stride 2 again, one position, of which the next layer sees the middle tap.
    second = [
        layer(1, graph.node("Concat", first[:2], "before", axis=1), 1, 2, "second0"),
        layer(1, graph.node("Concat", first[1:], "after", axis=1), 0, 2, "second1"),
    ]
    third = layer(2, graph.node("Concat", second, "both", axis=1), 1, 2, "third")
    fourth = layer(3, third, 1, 1, "fourth")

    sequence = graph.node("Unsqueeze", [fourth, graph.constant("one", np.array([1]))], "sequence")
    graph.node(
        "LSTM",
        [sequence, "input", "recurrent", "biases", "", "h", "c"],
        "states",
        "hn",
        "cn",
        hidden_size=STATE,
    )
    flat = graph.node("Reshape", ["states", graph.constant("rows", np.array([-1, STATE]))], "flat")
    logits = graph.node("Gemm", [graph.node("Relu", [flat], "positive"), "last", "last_bias"], "logits")
    graph.node("Sigmoid", [logits], "probabilities")

    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = helper.make_graph(
        graph.nodes,
        "silero_vad_v6",
        [value("magnitudes", "frames", POSITIONS * FREQUENCIES), *(value(n, 1, 1, STATE) for n in "hc")],
        [value("probabilities", "frames", 1), *(value(n, 1, 1, STATE) for n in ("hn", "cn"))],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    # The version of the file format, which ONNX Runtime has known since 1.14.
    model.ir_version = 8
    return model


def main() -> None:
    TARGET.write_bytes(network().SerializeToString(deterministic=True))
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
