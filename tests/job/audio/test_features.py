"""Features are those that Whisper was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from recordings import RATE, samples_of
from speech import Clip
from threadpoolctl import threadpool_limits

from whisper_spark.audio.decode import open_audio
from whisper_spark.audio.features import FULL_FRAMES, LogMel


@pytest.mark.parametrize("bands", [80, 128])
def test_features_are_those_of_faster_whisper(speech: list[Clip], bands: int) -> None:
    with speech[0].path.open("rb") as stream:
        samples = np.concatenate([block[0] for block in open_audio(stream).blocks()])
    expected = FeatureExtractor(feature_size=bands)(samples)[:, :-1]
    found = LogMel(bands)(samples)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    # The last bits of a matrix product depend on the processor and on the number of threads.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 7.77, 19.995, 30.0])
def test_features_are_equal_to_the_last_bit_because_texts_depend_on_it(
    speech: list[Clip], seconds: float
) -> None:
    spoken = np.concatenate([samples_of(clip.path) for clip in speech[:12]])
    samples = np.resize(spoken, int(seconds * RATE))
    # With 8-bit weights a difference of 1e-7 changes the text of a third of files.
    with threadpool_limits(1, user_api="blas"):
        expected = FeatureExtractor(feature_size=80)(samples)[:, :-1][:, :FULL_FRAMES]
        np.testing.assert_array_equal(LogMel(80)(samples), expected)
