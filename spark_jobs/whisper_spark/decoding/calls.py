"""Calls CTranslate2, and refuses batches that are too large for it to compute correctly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whisper_spark.audio.features import Features
from whisper_spark.decoding.encoder_output import Encoded, storage_view
from whisper_spark.decoding.model_shape import ModelShape


class BatchTooLargeError(RuntimeError):
    """CTranslate2 would compute this batch incorrectly. It can be decoded in smaller parts."""


class Model:
    """A loaded model. Thread-safe.

    :param weights: ``ctranslate2.models.Whisper``.
    :param shape: determines the largest batch.
    """

    def __init__(self, weights: Any, shape: ModelShape) -> None:
        self._weights = weights
        self._shape = shape
        self.bands = int(weights.n_mels)
        self.multilingual = bool(weights.is_multilingual)

    def encode(self, batch: Features) -> Encoded:
        """Run the encoder over features of shape (windows, mel bands, frames)."""
        self._check(batch.shape[0], batch.shape[2])
        return Encoded(self._weights.encode(storage_view(batch)))

    def detect_language(self, encoded: Encoded) -> list[dict[str, float]]:
        """Probability of each language, for each window."""
        self._check(encoded.windows, encoded.frames)
        results = self._weights.detect_language(encoded.on_device)
        return [{token[2:-2]: float(probability) for token, probability in row} for row in results]

    def generate(self, encoded: Encoded, prompts: list[list[int]], **settings: Any) -> list[Any]:
        """A ``WhisperGenerationResult`` for each window; ``settings`` are those of ``Whisper.generate``."""
        beams = max(settings.get("beam_size", 1), settings.get("num_hypotheses", 1))
        self._check(encoded.windows, encoded.frames, beams)
        return list(self._weights.generate(encoded.on_device, prompts, **settings))

    def align(
        self, encoded: Encoded, start: Sequence[int], tokens: list[list[int]], frames: list[int]
    ) -> list[Any]:
        """A ``WhisperAlignmentResult`` for each window.

        :param start: tokens before the text, the same for all windows.
        :param tokens: text tokens of each window.
        :param frames: number of frames of each window, without padding.
        """
        self._check(encoded.windows, encoded.frames)
        return list(self._weights.align(encoded.on_device, start, tokens, frames))

    def _check(self, windows: int, frames: int, beams: int = 1) -> None:
        most = self._shape.most_windows(frames, beams=beams)
        if windows > most:
            raise BatchTooLargeError(f"{windows} windows of {frames / 100:g} s are more than {most}")
