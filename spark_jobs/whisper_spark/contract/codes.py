"""The closed sets of the contract: error codes, changes, quality flags, and the constants of the audio."""

from __future__ import annotations

SAMPLE_RATE = 16_000
"""Hz. The only rate Whisper's feature extractor accepts."""

WINDOW_SECONDS = 30.0
"""Longest stretch of audio that Whisper's encoder sees at once, in seconds."""

ERROR_CODES: dict[str, str] = {
    "not_found": "the object was gone when the job came to read it",
    "forbidden": "the object store refused to let the job read the object",
    "changed_during_read": "the object was replaced between listing and reading",
    "empty": "zero bytes, or a container without a single decodable sample",
    "not_audio": "the bytes are no audio or video container that FFmpeg knows",
    "no_audio_stream": "a valid container, for example a video, that holds no audio",
    "corrupt": "an audio container of which nothing can be decoded",
    "too_long": "longer than WhisperOptions.max_duration_s",
    "out_of_memory": "the device ran out of memory even for a batch of one window",
    "internal": "anything else; error_message says what, and the executor log has the traceback",
}
"""The closed set of error codes and what each one means."""

FINAL_ERRORS: frozenset[str] = frozenset({"empty", "not_audio", "no_audio_stream", "corrupt", "too_long"})
"""Errors that lie in the file: trying the same bytes again cannot help."""

TRANSIENT_ERRORS: frozenset[str] = frozenset(ERROR_CODES) - FINAL_ERRORS
"""Errors that may pass: later runs try again, up to ``max_attempts`` for one etag."""

CHANGES: tuple[str, ...] = ("new", "changed", "stale", "retry")
"""Why a file is in a manifest. new: not in the table; changed: other etag; stale: made with other
options; retry: an error that may pass, with attempts left."""

QUALITY_FLAGS: dict[str, str] = {
    "no_speech": "nothing was said; the text is empty on purpose",
    "truncated": "not all of the file could be decoded",
    "other_tracks": "the file has more tracks with sound; only one is in the text",
    "empty_text_over_speech": "the voice detector heard speech, yet there is no text",
    "missed_speech": "somebody speaks for more than a second where the text has no word",
    "low_confidence": "average log probability of the text below log_prob_threshold",
    "repetitive": "compression ratio above compression_ratio_threshold, or a repeated phrase",
    "unlikely_speech_rate": "more than 40 characters or fewer than 1 token for a second of speech",
    "uncertain_language": "language probability below 0.5",
    "long_words": "a word too long to be one",
    "token_limit": "a window used up all the tokens it was allowed",
}
"""Warnings about a transcript, row by row, and what each one means."""
