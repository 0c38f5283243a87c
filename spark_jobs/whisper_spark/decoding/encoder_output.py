"""What the encoder gave for a batch of windows, and how to get at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from whisper_spark.audio.features import Features


def storage_view(array: Features) -> Any:
    """An array as CTranslate2 wants it."""
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


class Encoded:
    """Output of the encoder, of shape (windows, positions, width).

    It stays where the encoder left it. CTranslate2 cannot pick rows of it there, so the first pick copies all
    of it to the host, once: 100 MB for a full batch of whisper-base on a GPU.

    :param on_device: ``ctranslate2.StorageView``.
    """

    def __init__(self, on_device: Any) -> None:
        self.on_device = on_device

    @property
    def windows(self) -> int:
        """How many windows."""
        return int(self.on_device.shape[0])

    @property
    def frames(self) -> int:
        """Frames of 10 ms that the encoder saw of each: two for each position."""
        return 2 * int(self.on_device.shape[1])

    @classmethod
    def of(cls, rows: Features) -> Encoded:
        """What has been on the host before."""
        return cls(storage_view(rows))

    @cached_property
    def on_host(self) -> Features:
        """All of it in NumPy."""
        import ctranslate2

        view = self.on_device
        if view.device != "cpu":
            view = view.to_device(ctranslate2.Device.cpu)
        if view.dtype == ctranslate2.DataType.bfloat16:  # NumPy has no such type
            view = view.to(ctranslate2.DataType.float32)
        return np.asarray(view)

    def rows(self, indices: Sequence[int]) -> Encoded:
        """Those of some windows, by position."""
        if list(indices) == list(range(self.windows)):
            return self
        return Encoded.of(self.on_host[list(indices)])
