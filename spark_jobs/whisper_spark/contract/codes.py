"""Error codes, change kinds and quality flags (all closed sets), and constants of the audio."""

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
    "transform_failed": "the function in WhisperOptions.transform failed; its row holds no text",
    "internal": "anything else; error_message says what, and the executor log has the traceback",
}
"""The closed set of error codes and what each one means."""

FINAL_ERRORS: frozenset[str] = frozenset({"empty", "not_audio", "no_audio_stream", "corrupt", "too_long"})
"""Errors caused by the file itself: another try with the same bytes would fail the same way."""

TRANSIENT_ERRORS: frozenset[str] = frozenset(ERROR_CODES) - FINAL_ERRORS
"""Transient errors: the file is tried again, up to ``max_attempts`` times for one etag."""

GONE_ERRORS: frozenset[str] = frozenset({"not_found", "changed_during_read"})
"""Errors which say that the version of the audio that a manifest lists does not exist any more."""

CHANGES: tuple[str, ...] = ("new", "changed", "stale", "retry")
"""Why a file is in a manifest. ``new``: not in the table; ``changed``: the etag differs; ``stale``: its row
was made with other options; ``retry``: its row is a transient error, and tries are left."""

STAYING: tuple[str, ...] = ("unchanged", "kept_stale", "kept_removed", "kept_left_out", "kept_elsewhere")
"""Why a row of the partition stays as it is, in the counts of a run."""

QUALITY_FLAGS: dict[str, str] = {
    "no_speech": "the file contains no speech; the text is empty",
    "truncated": "not all of the file could be decoded",
    "other_tracks": "the file has more tracks with sound; only one is in the text",
    "empty_text_over_speech": "the voice detector found speech, but the text is empty",
    "missed_speech": (
        "more than a second of detected speech has no word in the text: it was not understood, "
        "or its channel is too quiet to be heard in the mix"
    ),
    "low_confidence": "average log probability of the text below log_prob_threshold",
    "repetitive": "compression ratio above compression_ratio_threshold, or a repeated phrase",
    "unlikely_speech_rate": (
        "more than 40 characters (15 in Chinese, Japanese and Korean) "
        "or fewer than 1 token for a second of speech"
    ),
    "uncertain_language": "language probability below 0.5",
    "long_words": "a word too long to be one",
    "uncertain_speakers": "it is not certain who speaks in a part of the speech, or how many there are",
    "token_limit": "the text of a window reached the maximum number of tokens",
}
"""The closed set of quality flags, which warn about a transcript, and what each one means."""
