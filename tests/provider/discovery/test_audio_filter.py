"""Which objects are audio, told by their names."""

from __future__ import annotations

import pytest

from airflow_whisper.discovery.audio_filter import AudioFilter, Kind


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("a.wav", "audio"),
        ("A.WAV", "audio"),
        ("no-ending", "audio"),
        ("2026.11.01", "audio"),
        ("a.unheard-of", "audio"),
        ("deep/a.json.wav", "audio"),
        ("json", "audio"),
        ("a.wav.gz", "audio"),
        ("_SUCCESS", "hidden"),
        ("_a.json", "hidden"),
        ("deep/.part/a.wav", "hidden"),
        ("deep_$folder$", "hidden"),
        ("deep/", "hidden"),
        ("a.json", "sidecar"),
        ("a.wav.json", "sidecar"),
        ("deep/A.XML", "sidecar"),
        ("a.vtt", "sidecar"),
        ("a.TextGrid", "sidecar"),
        ("a.wav.md5", "sidecar"),
        ("index.jsonl.gz", "sidecar"),
        (".json", "hidden"),
    ],
)
def test_kind_without_a_pattern(key: str, kind: Kind) -> None:
    assert AudioFilter().kind(key) == kind


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("calls/a.wav", "audio"),
        ("calls/deep/B.Mp3", "audio"),
        ("calls/c.txt", "audio"),
        ("calls/c.json", "sidecar"),
        ("calls/d.flac", "unmatched"),
        ("calls/xwav", "unmatched"),
        ("a.wav", "unmatched"),
        ("calls/_a.wav", "hidden"),
    ],
)
def test_kind_by_pattern_and_extensions_together(key: str, kind: Kind) -> None:
    assert AudioFilter("calls/*", ("wav", ".MP3", "txt")).kind(key) == kind


@pytest.mark.parametrize("name", ["a.wav.part", "a.tmp", "a.wav.filepart", "a.mp3.crdownload", "Thumbs.db"])
def test_upload_that_is_not_complete_is_no_audio(name: str) -> None:
    assert AudioFilter().kind(name) == "sidecar"


@pytest.mark.parametrize("extensions", [("",), (".",), (" ",), (3,)])
def test_wrong_extension_is_refused(extensions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must be a list such as"):
        AudioFilter(None, extensions)


@pytest.mark.parametrize("pattern", ["call[0-9].wav", "[[]draft[]].wav", "[]]", "[!]a]*", "*.wav"])
def test_pattern_with_closed_brackets_is_a_glob(pattern: str) -> None:
    AudioFilter(pattern)
