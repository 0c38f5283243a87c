"""Audio for peers that would call the program ffmpeg: decoded by the same libraries, without a process."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt

RATE = 16_000


def decoded(file: str) -> npt.NDArray[np.float32]:
    """All samples of a file: float32, mono, 16 kHz."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(file) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])
