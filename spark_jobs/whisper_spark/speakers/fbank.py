"""Kaldi's log-mel filter banks, which models of WeSpeaker and 3D-Speaker take.

The same as ``kaldi_native_fbank`` and ``torchaudio.compliance.kaldi.fbank`` with 80 bins, windows of 25 ms
every 10 ms and no dither; the other settings are Kaldi's defaults.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import SAMPLE_RATE

Floats = npt.NDArray[np.float32]

BINS = 80

_WINDOW = SAMPLE_RATE * 25 // 1000
_HOP = SAMPLE_RATE * 10 // 1000
_FFT = 512
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20.0

# Kaldi keeps energies at least this large, before the logarithm.
_FLOOR = float(np.finfo(np.float32).eps)


def kaldi_fbank(samples: Floats, window: str) -> Floats:
    """Filter banks of shape (batch, frames, 80), each minus its mean over time.

    :param samples: float32 of shape (batch, samples); the models of WeSpeaker expect the scale of 16-bit
        integers.
    :param window: ``"hamming"``, or Kaldi's ``"povey"``.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW, axis=1)[:, ::_HOP]
    frames = frames - frames.mean(axis=2, keepdims=True)
    # The first sample of a frame is its own predecessor.
    before = np.concatenate([frames[..., :1], frames[..., :-1]], axis=2)
    windowed = (frames - np.float32(_PREEMPHASIS) * before) * _window(window)
    power = np.abs(np.fft.rfft(windowed, _FFT)).astype(np.float32) ** 2
    energies = np.log(np.maximum(power @ _mel(), _FLOOR))
    return np.asarray(energies - energies.mean(axis=1, keepdims=True), np.float32)


@lru_cache
def _window(name: str) -> Floats:
    cosine = np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))
    values = 0.54 - 0.46 * cosine if name == "hamming" else (0.5 - 0.5 * cosine) ** 0.85
    return values.astype(np.float32)


@lru_cache
def _mel() -> Floats:
    """Triangular filters of shape (frequencies, bins), equally wide in mel."""

    def mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return 1127 * np.log(1 + np.asarray(hertz, np.float64) / 700)

    edges = np.linspace(mel(_LOWEST_HZ), mel(SAMPLE_RATE / 2), BINS + 2)
    frequencies = mel(np.arange(_FFT // 2 + 1) * SAMPLE_RATE / _FFT)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = np.maximum(np.minimum(rising, falling), 0)
    # Kaldi ignores the highest frequency.
    filters[-1] = 0
    return filters.astype(np.float32)
