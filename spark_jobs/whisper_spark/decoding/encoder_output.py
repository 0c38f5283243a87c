"""The output of the encoder for a batch of windows, and selecting rows from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from whisper_spark.audio.features import Features


def storage_view(array: Features) -> Any:
    """An array as a ``ctranslate2.StorageView``."""
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


class Encoded:
    """Output of the encoder, of shape (windows, positions, width).

    It stays on the device. CTranslate2 cannot select rows there, so the first selection copies the whole
    output to the host: 100 MB for a full batch of whisper-base on a GPU.

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
        return Encoded.of(self.on_host[list(indices)])
