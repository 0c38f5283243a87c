"""Sounds in which nobody says a word, as recordings of calls and meetings hold them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from recordings import RATE, Samples, samples_of
from speech import SOUNDS, TEXTS

_PROMPTS = ("ascending-2tone", "beep", "beeperr", "confbridge-join", "confbridge-leave", "descending-2tone")
# Recorded signals among Debian's prompts: their reference text is a description in brackets.

_DTMF = {
    **dict(zip("147*", ((f, 1209) for f in (697, 770, 852, 941)), strict=True)),
    **dict(zip("2580", ((f, 1336) for f in (697, 770, 852, 941)), strict=True)),
    **dict(zip("369#", ((f, 1477) for f in (697, 770, 852, 941)), strict=True)),
}
# ITU-T Q.23: a row and a column frequency in Hz.

_CHORDS = ((220.0, 277.18, 329.63), (174.61, 220.0, 261.63), (130.81, 164.81, 196.0), (196.0, 246.94, 293.66))
# A major, F, C, G.


def nonspeech_sounds(root: Path) -> Iterator[tuple[str, Samples]]:
    """Name and samples of each sound.

    :param root: of the recorded speech, see ``speech.speech_root``.
    """
    chance = np.random.default_rng(7)
    white = chance.standard_normal(60 * RATE)
    yield "silence", _level(np.zeros(30 * RATE), 0.0)
    yield "faint-noise", _level(white[: 45 * RATE], 0.001)
    yield "white-noise", _level(white[: 30 * RATE], 0.1)
    yield "pink-noise", _level(_shaped(white, 0.5), 0.1)
    yield "brown-noise", _level(_shaped(white, 1.0)[: 40 * RATE], 0.2)
    yield "tone-440", _level(np.sin(2 * np.pi * 440 * _time(20)), 0.2)
    yield "sweep", _level(np.sin(2 * np.pi * (100 + 60 * _time(30)) * _time(30)), 0.2)
    yield "hum-50", _level(_harmonics(50.0, _time(60), 8), 0.1)
    yield "clicks", _clicks(chance, 30)
    yield "dtmf", _dtmf("0123456789*#4155550100")
    yield "ringback", _cadence((440.0, 480.0), on=2.0, off=4.0, seconds=60)
    yield "busy", _cadence((480.0, 620.0), on=0.5, off=0.5, seconds=20)
    yield "music", _music(chance, 60)
    yield "hold-music-noise", _level(_music(chance, 120) + 0.02 * chance.standard_normal(120 * RATE), 0.1)
    recorded = _recorded(root)
    gap = np.zeros(RATE, np.float32)
    yield "signals", np.concatenate([part for sound in recorded for part in (sound, gap)])


def _recorded(root: Path) -> list[Samples]:
    lines = gzip.decompress((root / TEXTS.format("en")).read_bytes()).decode("utf-8-sig").splitlines()
    listed = {line.partition(":")[0].strip() for line in lines}
    folder = next(iter(sorted((root / SOUNDS).glob("en_*_*"))))
    return [samples_of(folder / f"{name}.wav") for name in _PROMPTS if name in listed]


def _time(seconds: float) -> npt.NDArray[np.float64]:
    return np.arange(int(seconds * RATE)) / RATE


def _level(samples: npt.NDArray[np.float64], rms: float) -> Samples:
    now = float(np.sqrt((samples**2).mean()))
    return np.clip(samples * (rms / now if now else 0.0), -1, 1).astype(np.float32)


def _shaped(white: npt.NDArray[np.float64], slope: float) -> npt.NDArray[np.float64]:
    """Noise whose amplitude falls with frequency to the power of ``slope``: 0.5 is pink, 1 is brown."""
    spectrum = np.fft.rfft(white)
    frequency = np.maximum(np.fft.rfftfreq(len(white), 1 / RATE), 20.0)
    return np.fft.irfft(spectrum / frequency**slope, len(white))


def _harmonics(pitch: float, time: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    return sum((np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, count + 1)), np.zeros_like(time))


def _clicks(chance: np.random.Generator, seconds: int) -> Samples:
    samples = np.zeros(seconds * RATE)
    for start in chance.integers(0, len(samples) - 400, 2 * seconds):
        samples[start : start + 400] += np.exp(-np.arange(400) / 40) * chance.choice((-0.8, 0.8))
    return np.clip(samples, -1, 1).astype(np.float32)


def _dtmf(keys: str) -> Samples:
    time, gap = _time(0.12), np.zeros(int(0.1 * RATE))
    tones = [sum(np.sin(2 * np.pi * f * time) for f in _DTMF[key]) for key in keys]
    return _level(
        np.concatenate([part for tone in tones for part in (tone, gap)] + [np.zeros(2 * RATE)]), 0.1
    )


def _cadence(frequencies: tuple[float, ...], on: float, off: float, seconds: int) -> Samples:
    time = _time(seconds)
    tone = sum((np.sin(2 * np.pi * f * time) for f in frequencies), np.zeros_like(time))
    return _level(tone * (time % (on + off) < on), 0.1)


def _music(chance: np.random.Generator, seconds: int) -> Samples:
    """Chords, a tune over them and a drum, 120 beats a minute."""
    samples, beat = np.zeros(seconds * RATE), RATE // 2
    time = _time(0.5)
    for number in range(seconds * 2):
        chord = _CHORDS[number // 4 % len(_CHORDS)]
        tune = float(chance.choice(chord)) * 2
        sound = sum((_harmonics(pitch, time, 6) for pitch in chord), np.zeros_like(time))
        sound += 1.5 * _harmonics(tune, time, 4) * np.exp(-3 * time)
        sound += 3 * np.sin(2 * np.pi * 60 * time) * np.exp(-20 * time)
        sound[: RATE // 20] += chance.standard_normal(RATE // 20) * (number % 2)
        samples[number * beat : (number + 1) * beat] = sound * np.minimum(1, (0.5 - time) * 50)
    return _level(samples, 0.1)
