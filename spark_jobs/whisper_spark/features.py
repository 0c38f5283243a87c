"""Samples -> log-mel features, as Whisper wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import WINDOW_SECONDS

Features = npt.NDArray[np.float32]

FULL_FRAMES = int(WINDOW_SECONDS * 100)
"""What Whisper was trained on: 30 seconds, one frame of features every 10 ms."""


class LogMel:
    """faster-whisper's feature extractor, for several threads at once.

    :param bands: mel bands, 80 or 128.
    """

    def __init__(self, bands: int) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self._extract = FeatureExtractor(feature_size=bands)
        self._extract.mel_filters = _InPieces(self._extract.mel_filters)

    def __call__(self, samples: npt.NDArray[np.float32]) -> Features:
        """Features of at most 30 seconds of samples at 16 kHz: float32 of shape (mel bands, frames)."""
        features = self._extract(samples)[..., :-1]  # the extractor pads 10 ms
        return np.ascontiguousarray(features[:, :FULL_FRAMES], dtype=np.float32)


class _InPieces:
    """A matrix that multiplies 16 columns at a time.

    OpenBLAS gives anything larger to all its threads, which then wait for each other spinning: two threads
    that make features spend twice the processor time, 14 ms instead of 7 ms for 8 seconds of audio.
    """

    _COLUMNS = 16

    def __init__(self, matrix: Features) -> None:
        self._matrix = np.ascontiguousarray(matrix)

    def __matmul__(self, other: Features) -> Any:
        rows, columns = other.shape
        padded = np.pad(other, ((0, 0), (0, -columns % self._COLUMNS)))
        pieces = padded.reshape(rows, -1, self._COLUMNS).transpose(1, 0, 2)
        product = np.matmul(self._matrix, pieces).transpose(1, 0, 2)
        return product.reshape(len(self._matrix), -1)[:, :columns]
