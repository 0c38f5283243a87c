"""The ways to decode a window: greedily first, then with beams, and again for what cannot be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whisper_spark.contract import WhisperOptions

MAX_LENGTH = 448
"""Tokens that Whisper's decoder can hold, prompt included (openai/whisper ``n_text_ctx``)."""

MAX_NEW_TOKENS = MAX_LENGTH // 2
"""Tokens of text for one window (openai/whisper ``sample_len``)."""

RETRY_BEAM = 5
"""Beams for windows that failed the quality gate, at least (openai/whisper's default)."""


@dataclass(frozen=True, slots=True)
class DecodingPass:
    """One way to decode.

    :param beam_size: beams of the search; 1 decodes greedily.
    :param temperature: above 0 tokens are drawn by chance, and there is no search.
    :param timestamps: the model writes timestamps between the words, as it was trained to do.
    """

    beam_size: int
    temperature: float = 0.0
    timestamps: bool = False


def first_pass(options: WhisperOptions) -> DecodingPass:
    """How every window is decoded first."""
    greedy = options.greedy_log_prob_threshold is not None
    return DecodingPass(1 if greedy else options.beam_size, options.temperature[0])


def refining_pass(options: WhisperOptions) -> DecodingPass | None:
    """How windows are decoded that the first pass was unsure of; ``None`` when that would be no better."""
    first = first_pass(options)
    if first.temperature or first.beam_size >= options.beam_size:
        return None
    return DecodingPass(options.beam_size)


def retry_passes(options: WhisperOptions) -> Iterator[DecodingPass]:
    """How windows are decoded that failed the quality gate, when the full context alone did not help."""
    if not first_pass(options).temperature:
        beams = max(RETRY_BEAM, options.beam_size)
        yield DecodingPass(beams)
        yield DecodingPass(beams, timestamps=True)
    for temperature in options.temperature[1:]:
        yield DecodingPass(1, temperature)


def token_cap(seconds: float, *, timestamps: bool = False) -> int:
    """Tokens that this much speech can need.

    Fast speech in scripts that Whisper spells byte by byte reaches 20 tokens a second; a loop would run on
    to 224 and take longer than everything else in the batch. A pair of timestamps for each second comes on
    top.
    """
    return min(MAX_NEW_TOKENS, 24 + int((22 if timestamps else 20) * seconds))
