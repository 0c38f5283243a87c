"""The decoding passes: greedy first, then beam search, then the retries after a failed quality gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from whisper_spark.contract import WhisperOptions

MAX_LENGTH = 448
"""Context length of Whisper's decoder in tokens, including the prompt (openai/whisper ``n_text_ctx``)."""

MAX_NEW_TOKENS = MAX_LENGTH // 2
"""Maximum number of text tokens for one window (openai/whisper ``sample_len``)."""

RETRY_BEAM = 5
"""Minimum number of beams for windows that failed the quality gate (openai/whisper's default)."""


@dataclass(frozen=True, slots=True)
class DecodingPass:
    """The settings of one decoding pass.

    :param beam_size: beams of the search; 1 is greedy decoding.
    :param temperature: above 0, tokens are sampled, without beam search.
    :param timestamps: whether the model generates timestamp tokens between the words, as it was trained to
        do.
    """

    beam_size: int
    temperature: float = 0.0
    timestamps: bool = False


def first_pass(options: WhisperOptions) -> DecodingPass:
    """The first pass, for all windows."""
    greedy = options.greedy_log_prob_threshold is not None
    return DecodingPass(1 if greedy else options.beam_size, options.temperature[0])


def refining_pass(options: WhisperOptions) -> DecodingPass | None:
    """The pass for windows whose first text is uncertain; ``None`` if it would be no better."""
    first = first_pass(options)
    if first.temperature or first.beam_size >= options.beam_size:
        return None
    return DecodingPass(options.beam_size)


def retry_passes(options: WhisperOptions) -> Iterator[DecodingPass]:
    """The passes for windows that failed the quality gate, also with the full context."""
    if not first_pass(options).temperature:
        beams = max(RETRY_BEAM, options.beam_size)
        yield DecodingPass(beams)
        yield DecodingPass(beams, timestamps=True)
    for temperature in options.temperature[1:]:
        yield DecodingPass(1, temperature)


def token_cap(seconds: float, *, timestamps: bool = False) -> int:
    """Maximum number of tokens for a window with this many seconds of audio.

    Fast speech in scripts that Whisper encodes byte by byte reaches 20 tokens per second. Without this limit
    a loop would generate 224 tokens and take longer than the rest of the batch. With timestamps, two more
    tokens per second are allowed.
    """
    return min(MAX_NEW_TOKENS, 24 + int((22 if timestamps else 20) * seconds))
