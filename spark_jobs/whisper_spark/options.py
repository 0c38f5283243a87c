"""``WhisperOptions`` and the names that its arguments may have: see :mod:`whisper_spark.contract.options`."""

from __future__ import annotations

from whisper_spark.contract.options import KNOWN_MODELS, LANGUAGES, WhisperOptions

__all__ = ["KNOWN_MODELS", "LANGUAGES", "WhisperOptions"]
