"""Write small ONNX models that take speech and return vectors, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def _tensor(value: Any, name: str) -> TensorProto:
    array = np.asarray(value)
    return numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)


def write_model(
    path: Path,
    shape: Shape,
    *,
    name: str = "feats",
    type_: int = TensorProto.FLOAT,
    exponent: float = 1,
    pooled: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A model whose embedding is the mean of the input's magnitude over time, after a random projection.

    :param shape: of the input: (batch, samples) or (batch, frames, bins).
    :param exponent: with 0 the embedding is the same for all inputs, with ``nan`` it is no number.
    :param pooled: ``False``: one vector for each frame instead of one for the input.
    """
    random = np.random.default_rng(0)
    bins = shape[-1] if isinstance(shape[-1], int) else 80
    nodes = [helper.make_node("Cast", [name], ["input"], to=TensorProto.FLOAT)]
    if len(shape) == 2:
        nodes += [
            helper.make_node("Unsqueeze", ["input", "one"], ["mono"]),
            helper.make_node("Conv", ["mono", "filters"], ["filtered"]),
            helper.make_node("Transpose", ["filtered"], ["projected"], perm=[0, 2, 1]),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["input", "projection"], ["projected"]))
    nodes += [
        helper.make_node("Abs", ["projected"], ["magnitude"]),
        helper.make_node("Pow", ["magnitude", "exponent"], ["raised" if pooled else "embedding"]),
    ]
    if pooled:
        nodes.append(helper.make_node("ReduceMean", ["raised", "one"], ["embedding"], keepdims=0))
    constants = {
        "one": np.array([1], np.int64),
        "exponent": np.float32(exponent),
        "projection": random.standard_normal((bins, 16)),
        "filters": random.standard_normal((16, 1, 64)),
    }
    output = [shape[0], 16] if pooled else [shape[0], "frames", 16]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, type_, list(shape))],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, output)],
        [_tensor(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path
