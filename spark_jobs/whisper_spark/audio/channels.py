"""Mixes the channels of a track into one, and scales samples to full scale 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

# The mix is checked for cancellation in steps of this many seconds: shorter than most words.
_STEP = 0.25

# Channels cancel each other out when the energy of their sum is below this share of the sum of their
# energies. The share is 1 for a single active channel and for independent channels, and equals the number of
# channels for identical ones.
_CANCELLED = 0.1

# Many float samples above this value mean that integers were stored as floats: no recorder exceeds full scale
# by 24 dB. A few of them are damage. _MANY is the share of samples that counts as many.
_INTEGERS = 16.0
_MANY = 0.05

# Full scale of 16, 24 and 32 bit.
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)

# A channel may be unheard in the mix when its loudest parts are this much quieter than those of the loudest
# channel, in decibels: of two speakers in turns, the quieter one is found down to 20 to 30 dB. Below the
# floor there is no speech in it, nor if its own level varies by less than speech does.
_UNHEARD_DB = 20.0
_FLOOR_DB = -80.0
_LEAST_RANGE_DB = 10.0


class Mixer:
    """Mixes channels to their average, or takes the loudest channel where they cancel each other out."""

    def __init__(self) -> None:
        self._loudest = 0
        # Mean square of each channel in its loudest and in its quietest step.
        self._peaks = np.zeros(0, np.float32)
        self._lows = np.zeros(0, np.float32)

    @property
    def quiet_channels(self) -> list[int]:
        """Channels so much quieter than the loudest one that their speech may be unheard in the mix."""
        levels, lows = (10 * np.log10(energies + 1e-20) for energies in (self._peaks, self._lows))
        quiet = (levels > _FLOOR_DB) & (levels < levels.max(initial=_FLOOR_DB) - _UNHEARD_DB)
        quiet &= levels - lows > _LEAST_RANGE_DB
        return [int(channel) for channel in np.flatnonzero(quiet)]

    def mix(self, samples: Samples, rate: int) -> Samples:
        """Mix a block of shape (samples, channels) at ``rate`` Hz to mono."""
        channels = samples.shape[1]
        if channels == 1:
            return samples[:, 0]
        mono: Samples = samples @ np.full(channels, 1 / channels, np.float32)
        step = max(int(_STEP * rate), 1)
        for start in range(0, len(samples), step):
            part = samples[start : start + step]
            products = part.T @ part
            energies = products.diagonal()
            if 2 * len(part) > step:
                self._note(energies / np.float32(len(part)))
            if products.sum() < _CANCELLED * energies.sum():
                if self._loudest >= channels or 2 * energies[self._loudest] < energies.max():
                    self._loudest = int(energies.argmax())
                mono[start : start + step] = part[:, self._loudest]
        return mono

    def _note(self, levels: Samples) -> None:
        if (more := len(levels) - len(self._peaks)) > 0:
            self._peaks = np.pad(self._peaks, (0, more))
            self._lows = np.pad(self._lows, (0, more), constant_values=np.inf)
        heard = slice(len(levels))
        self._peaks[heard] = np.maximum(self._peaks[heard], levels)
        self._lows[heard] = np.minimum(self._lows[heard], levels)


class Scale:
    """Scales samples to full scale 1. Float formats may contain integers, NaN and infinity.

    :ivar stored: the format stores float samples uncompressed, so that integers among them are possible.
        Large values that a codec decodes are damage.
    """

    def __init__(self) -> None:
        self.stored = False
        self._full = 1.0

    def scaled(self, samples: Samples) -> Samples:
        """Scale a block in place and return it."""
        # Comparisons with NaN are false, so that a block with NaN does not take this branch.
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
