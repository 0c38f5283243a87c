"""Reads the weights of the Silero voice detector from the ONNX file that faster-whisper brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[np.float32]]

# The part of onnx.proto3 that holds the weights: name, number, type and label of each field. Protobuf skips
# the others. The package `onnx` would bring 20 MB to each executor for it.
_MESSAGES = {
    "Model": [("graph", 7, "Graph", False)],
    "Graph": [("initializer", 5, "Tensor", True)],
    "Tensor": [
        ("dims", 1, "TYPE_INT64", True),
        ("data_type", 2, "TYPE_INT32", False),
        ("name", 8, "TYPE_STRING", False),
        ("raw_data", 9, "TYPE_BYTES", False),
    ],
}

# TensorProto.DataType.FLOAT
_FLOAT32 = 1

# The LSTM's weights have no other names in the file.
_LSTM = {"input": "onnx::LSTM_209", "recurrent": "onnx::LSTM_210", "biases": "onnx::LSTM_211"}
_CONVOLUTIONS = 4


def load_weights() -> Weights:
    """Weights by their names in ``assets/silero_graph.onnx``.

    :raises RuntimeError: If this version of faster-whisper brings another Silero.
    """
    from faster_whisper.utils import get_assets_path

    path = Path(get_assets_path()) / "silero_vad_v6.onnx"
    try:
        found = _initializers(path.read_bytes())
        weights = {name: found[source] for name, source in _LSTM.items()}
        for number in range(_CONVOLUTIONS):
            kernel = found[f"encoder.conv_layers.{number}.weight"]
            # The taps of a convolution below one another, so that one matrix product computes it.
            weights[f"kernel{number}"] = np.concatenate(list(kernel.transpose(2, 1, 0)))
            weights[f"bias{number}"] = found[f"encoder.conv_layers.{number}.bias"]
        weights["last"] = found["decoder.conv1d.weight"][:, :, 0].T
        weights["last_bias"] = found["decoder.conv1d.bias"]
    except Exception as error:
        raise RuntimeError(
            f"cannot read the weights of the Silero voice detector from {path} ({error!r}): "
            "install a version of faster-whisper that this release allows"
        ) from error
    return {name: np.ascontiguousarray(value) for name, value in weights.items()}


def _initializers(model: bytes) -> Weights:
    """The float32 initializers of a serialised ``ModelProto``, by name."""
    return {
        tensor.name: np.frombuffer(tensor.raw_data, "<f4").reshape(tensor.dims)
        for tensor in _model_class().FromString(model).graph.initializer
        if tensor.data_type == _FLOAT32
    }


def _model_class() -> Any:
    """The class of ``ModelProto``, with the fields of ``_MESSAGES``."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="weights.proto", package="weights", syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = described.field.add(name=name, number=number)
            field.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".weights.{kind}"
            else:
                field.type = field_type.Type.Value(kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("weights.Model"))
