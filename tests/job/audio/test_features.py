"""Features are those that Whisper was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor
from speech import Clip

from whisper_spark.audio.decode import open_audio
from whisper_spark.audio.features import LogMel


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
