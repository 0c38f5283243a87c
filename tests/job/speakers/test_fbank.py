"""Filter banks are those of Kaldi, because models were trained with them."""

from __future__ import annotations

import kaldi_native_fbank
import numpy as np
import pytest
from recordings import samples_of
from speech import Clip

from whisper_spark.speakers.fbank import BINS, kaldi_fbank


def kaldi(samples: np.ndarray, window: str) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = BINS
    options.energy_floor = 0
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(16_000, samples.tolist())
    bank.input_finished()
    frames = np.array([bank.get_frame(number) for number in range(bank.num_frames_ready)])
    return frames - frames.mean(axis=0)


@pytest.mark.parametrize(("window", "scale"), [("hamming", 1 << 15), ("povey", 1)])
def test_filter_banks_are_those_of_kaldi(librivox: list[Clip], window: str, scale: int) -> None:
    speech = samples_of(librivox[0].path)[:48_000] * np.float32(scale)
    ours = kaldi_fbank(speech.reshape(2, -1), window)
    assert ours.shape == (2, 148, BINS)
    for own, samples in zip(ours, speech.reshape(2, -1), strict=True):
        np.testing.assert_allclose(own, kaldi(samples, window), atol=2e-3)


def test_digital_silence_has_finite_features() -> None:
    assert np.isfinite(kaldi_fbank(np.zeros((1, 24_000), np.float32), "hamming")).all()
