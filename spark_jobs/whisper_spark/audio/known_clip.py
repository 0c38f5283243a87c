"""A known clip of speech, with which models and devices are checked before the first file."""

from __future__ import annotations

from importlib.resources import files as resources

# LibriVox recording of "Sense and Sensibility" (public domain).
_CLIP = "he_was_not_an_ill_disposed_young_man.flac"


def clip_bytes() -> bytes:
    """The clip as a FLAC file: 2.5 seconds, "He was not an ill-disposed young man."."""
    return (resources("whisper_spark") / "assets" / _CLIP).read_bytes()
