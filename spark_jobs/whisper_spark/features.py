"""Samples -> log-mel features, as Whisper wants them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import WINDOW_SECONDS

Features = npt.NDArray[np.float32]

FULL_FRAMES = int(WINDOW_SECONDS * 100)
"""What Whisper was trained on: 30 seconds, one frame of features every 10 ms."""


_UNSHARED_OPERATIONS = 262_144
# Multiplications below which OpenBLAS takes no further threads (interface/gemm.c: SMP_THRESHOLD_MIN times
# GEMM_MULTITHREAD_THRESHOLD).


class LogMel:
    """faster-whisper's feature extractor, for several threads at once.

    :param bands: mel bands, 80 or 128.
    """

    def __init__(self, bands: int) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self._extract = FeatureExtractor(feature_size=bands)
        self._extract.mel_filters = _InBlocks(self._extract.mel_filters)

    def __call__(self, samples: npt.NDArray[np.float32]) -> Features:
        """Features of at most 30 seconds of samples at 16 kHz: float32 of shape (mel bands, frames)."""
        features = self._extract(samples)[..., :-1]  # the extractor pads 10 ms
        return np.ascontiguousarray(features[:, :FULL_FRAMES], dtype=np.float32)


class _InBlocks:
    """A matrix of filters that is applied to a few frames at a time, by the calling thread alone.

    Shared among OpenBLAS's threads, the product takes five times the processor time for a clip: they spin
    while they wait for each other, and every reading thread has them spin.
    """

    def __init__(self, filters: Features) -> None:
        self._filters = filters
        self._block = max(1, _UNSHARED_OPERATIONS // filters.size)

    def __matmul__(self, spectrum: Features) -> Features:
        product = np.empty((len(self._filters), spectrum.shape[1]), np.float32)
        for first in range(0, spectrum.shape[1], self._block):
            part = slice(first, first + self._block)
            product[:, part] = self._filters @ spectrum[:, part]
        return product
