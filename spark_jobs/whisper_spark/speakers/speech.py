"""Stretches of speech with their speaker embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STRETCH = 1.5
"""Seconds of speech in one embedding. With less, embeddings tell more about the sounds than about the
speaker; with more, short turns disappear."""


@dataclass(frozen=True, slots=True)
class Speech:
    """Stretches of speech of one channel, in order, and their embeddings.

    :param starts: start of each stretch in the file, in seconds.
    :param ends: end of each stretch, in seconds.
    :param regions: number of the region of speech that each stretch lies in.
    :param embeddings: float16 of shape (stretches, dimensions).
    """

    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    regions: npt.NDArray[np.int64]
    embeddings: npt.NDArray[np.float16]


def joined(parts: Sequence[Speech]) -> Speech:
    """The stretches of all parts."""
    return Speech(
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.regions for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
    )
