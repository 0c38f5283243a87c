"""Computes log-mel features, the input of Whisper's encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import WINDOW_SECONDS

Features = npt.NDArray[np.float32]

FULL_FRAMES = int(WINDOW_SECONDS * 100)
"""Frames in a full window: Whisper was trained on 30 seconds, with a frame of features every 10 ms."""


class LogMel:
    """faster-whisper's feature extractor. Thread-safe.

    :param bands: number of mel bands, 80 or 128.
    """

    def __init__(self, bands: int) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self.bands = bands
        self._extract = FeatureExtractor(feature_size=bands)

    def __call__(self, samples: npt.NDArray[np.float32]) -> Features:
        """Features of at most 30 seconds of samples at 16 kHz: float32 of shape (mel bands, frames)."""
        # Without the last frame: the extractor pads 10 ms.
        features = self._extract(samples)[..., :-1]
        return np.ascontiguousarray(features[:, :FULL_FRAMES], dtype=np.float32)
