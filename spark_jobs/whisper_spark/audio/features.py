"""Computes log-mel features, the input of Whisper's encoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whisper_spark.audio.channels import Samples
from whisper_spark.contract import SAMPLE_RATE, WINDOW_SECONDS

Features = npt.NDArray[np.float32]

FULL_FRAMES = int(WINDOW_SECONDS * 100)
"""Frames in a full window: Whisper was trained on 30 seconds, with a frame of features every 10 ms."""

# The spectrogram that Whisper was trained on (openai/whisper, ``audio.py``): 25 ms of samples every 10 ms.
_WINDOW = 400
_STEP = SAMPLE_RATE // 100
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)

# Values are logarithms of powers: the smallest power, and how far a value may be below the loudest (80 dB).
_LEAST_POWER = 1e-10
_RANGE = 8.0

# Frames of a step. Their arrays fit into the second-level cache of a core and are small enough for the
# allocator to keep. A whole window at a time takes twice the processor time, and causes 200,000 page faults
# for an hour of audio.
_BATCH = 128


class LogMel:
    """Whisper's features, to the last bit those of faster-whisper. Thread-safe.

    :param bands: number of mel bands, 80 or 128.
    """

    def __init__(self, bands: int) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self.bands = bands
        # The filters, of shape (mel bands, frequencies).
        self._filters: Features = FeatureExtractor(feature_size=bands).mel_filters

    def __call__(self, samples: Samples) -> Features:
        """Features of at most 30 seconds of samples at 16 kHz: float32 of shape (mel bands, frames)."""
        # One frame more than there are samples for, which only takes part in finding the loudest value.
        padded = np.pad(np.pad(samples, (0, _STEP)), _WINDOW // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_STEP][:-1]
        power = np.empty((len(frames), _WINDOW // 2 + 1), np.float32)
        for first in range(0, len(frames), _BATCH):
            spectra = np.fft.rfft(frames[first : first + _BATCH] * _HANN)
            step = power[first : first + _BATCH]
            # NumPy 1 computes the transform in float64.
            np.abs(spectra.astype(np.complex64, copy=False), out=step)
            step *= step
        # At once, because the last bits of a matrix product depend on the number of columns, and with 8-bit
        # weights some texts depend on those bits.
        mel = self._filters @ power.T
        np.maximum(mel, _LEAST_POWER, out=mel)
        np.log10(mel, out=mel)
        np.maximum(mel, mel.max() - np.float32(_RANGE), out=mel)
        mel += 4.0
        mel /= 4.0
        return np.ascontiguousarray(mel[:, : min(len(frames) - 1, FULL_FRAMES)])
