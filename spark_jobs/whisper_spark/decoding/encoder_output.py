"""The output of the encoder for a batch of windows, and selecting rows from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whisper_spark.audio.features import Features
from whisper_spark.decoding import gpu_memory

log = logging.getLogger(__name__)


def storage_view(array: Any) -> Any:
    """An array as a ``ctranslate2.StorageView``, without a copy if possible.

    :param array: a NumPy array, or one in the memory of a GPU.
    """
    import ctranslate2

    array = np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array
    return ctranslate2.StorageView.from_array(array)


class Encoded:
    """Output of the encoder, of shape (windows, positions, width). It stays on the device.

    :param on_device: ``ctranslate2.StorageView``.
    """

    def __init__(self, on_device: Any) -> None:
        self.on_device = on_device

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(self.on_device.shape[0])

    @property
    def frames(self) -> int:
        """Length of the encoder's input for each window, in frames of 10 ms: two per position."""
        return 2 * int(self.on_device.shape[1])

    @classmethod
    def of(cls, rows: Features) -> Encoded:
        """Output that is on the host already."""
        return cls(storage_view(rows))

    @cached_property
    def on_host(self) -> Features:
        """The whole output as a NumPy array."""
        import ctranslate2

        view = self.on_device
        if view.device != "cpu":
            view = view.to_device(ctranslate2.Device.cpu)
        # NumPy has no bfloat16.
        if view.dtype == ctranslate2.DataType.bfloat16:
            view = view.to(ctranslate2.DataType.float32)
        return np.asarray(view)

    def rows(self, indices: Sequence[int]) -> Encoded:
        """The output for some windows, by position."""
        if list(indices) == list(range(self.windows)):
            return self
        return gathered([EncodedRow(self, i) for i in indices])


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRow:
    """The output for one window. Keeps that of its whole batch in memory.

    :param index: position in ``batch``.
    """

    batch: Encoded
    index: int

    @property
    def host_bytes(self) -> int:
        """Memory of the host that the output for the window occupies; none if it is on a GPU.

        There it takes at most five times the size of the window's features.
        """
        return 0 if self.batch.on_device.device == "cuda" else int(self.batch.on_host[self.index].nbytes)


def gathered(rows: Sequence[EncodedRow]) -> Encoded:
    """Rows of outputs with the same number of positions, as one output.

    On a GPU they are copied from place to place there. If that cannot be done (bfloat16, an old driver), they
    go through the host: 100 MB for a full batch of whisper-base.
    """
    on_gpu = _gathered_on_gpu(rows)
    if on_gpu is not None:
        return Encoded(on_gpu)
    if all(row.batch is rows[0].batch for row in rows):
        return Encoded.of(rows[0].batch.on_host[[row.index for row in rows]])
    return Encoded.of(np.stack([row.batch.on_host[row.index] for row in rows]))


def _gathered_on_gpu(rows: Sequence[EncodedRow]) -> Any | None:
    import ctranslate2

    views = [row.batch.on_device for row in rows]
    if any(v.device != "cuda" or v.dtype == ctranslate2.DataType.bfloat16 for v in views):
        return None
    gpu = gpu_memory.gpu(views[0].device_index)
    if gpu is None:
        return None
    return storage_view(gpu.gathered([(view, row.index) for view, row in zip(views, rows, strict=True)]))
