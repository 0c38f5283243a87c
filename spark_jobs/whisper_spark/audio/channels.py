"""Samples of several channels -> one, or each by itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

# Seconds for which a mix is judged at once: shorter than most words.
_STEP = 0.25

# A mix whose energy is less than this share of what independent channels would give has cancelled out. One
# channel that speaks alone, and independent ones, give 1; equal ones as much as there are channels.
_CANCELLED = 0.1

# Float samples beyond this are integers that were stored as floats, where there are many of them: no recorder
# is 24 dB over full scale. Single ones are damage.
_INTEGERS = 16.0
_MANY = 0.05

# Full scale of 16, 24 and 32 bit.
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)


class Mixer:
    """The average of all channels; where they cancel each other out, the loudest channel."""

    def __init__(self) -> None:
        self._loudest = 0

    def mix(self, samples: Samples, rate: int) -> Samples:
        """Mono of a block of shape (samples, channels), at ``rate`` Hz."""
        channels = samples.shape[1]
        if channels == 1:
            return samples[:, 0]
        mono: Samples = samples @ np.full(channels, 1 / channels, np.float32)
        step = max(int(_STEP * rate), 1)
        for start in range(0, len(samples), step):
            part = samples[start : start + step]
            products = part.T @ part
            energies = products.diagonal()
            if products.sum() < _CANCELLED * energies.sum():
                if self._loudest >= channels or 2 * energies[self._loudest] < energies.max():
                    self._loudest = int(energies.argmax())
                mono[start : start + step] = part[:, self._loudest]
        return mono


class Scale:
    """Brings samples to full scale 1: those of float formats may be integers in disguise, or no numbers.

    :ivar stored: the samples are stored as they are. What a codec makes of damage are no integers.
    """

    def __init__(self) -> None:
        self.stored = False
        self._full = 1.0

    def scaled(self, samples: Samples) -> Samples:
        """The same block, changed in place."""
        # Not a number compares as false.
        if max(samples.max(initial=0.0), -samples.min(initial=0.0)) <= _INTEGERS:
            if self._full != 1.0:
                samples /= self._full
            return samples
        np.nan_to_num(samples, copy=False, nan=0.0, posinf=self._full, neginf=-self._full)
        loud = np.abs(samples)
        if self.stored and self._full == 1.0 and float(np.mean(loud > _INTEGERS)) > _MANY:
            usual = float(np.quantile(loud, 0.99))
            self._full = next((full for full in _FULL_SCALES if usual <= full), 1.0)
        samples /= self._full
        samples[np.abs(samples) > _INTEGERS] = 0.0
        return samples
