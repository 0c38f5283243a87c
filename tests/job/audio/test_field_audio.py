"""Recordings of kinds that come from the field, through the real model: nothing lost, all in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from whisper_spark import Transcript, WhisperOptions, transcribe_files

AUDIO = Path(__file__).resolve().parents[2] / "data" / "audio"
EXPECTED: dict[str, dict[str, Any]] = json.loads((AUDIO / "expected.json").read_text())


@pytest.fixture(scope="module")
def transcripts(model_dir: Path) -> dict[str, Transcript]:
    return dict(_transcripts(model_dir))


def _transcripts(model_dir: Path) -> Iterator[tuple[str, Transcript]]:
    for channels in ("mix", "split"):
        options = WhisperOptions(model=str(model_dir), language="en", channels=channels)
        names = [n for n, e in EXPECTED.items() if e["options"].get("channels", "mix") == channels]
        for transcript in transcribe_files([AUDIO / name for name in names], options):
            yield transcript.audio_uri.rsplit("/", 1)[-1], transcript


def words(text: str | None) -> list[str]:
    return re.findall(r"[a-z0-9]+", (text or "").lower())


def sentence_starts(transcript: Transcript) -> list[float]:
    """Starts of the words behind a pause of more than half a second, or a full stop."""
    spoken = [word for segment in transcript.segments for word in segment.words or ()]
    ends = [0.0, *(word.end if not word.word.endswith(".") else -1.0 for word in spoken)]
    return [word.start for word, end in zip(spoken, ends, strict=False) if end <= 0 or word.start > end + 0.5]


def test_every_recording_is_covered() -> None:
    assert {path.name for path in AUDIO.iterdir()} - {"expected.json", "LICENSE.md"} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_field_recording_is_transcribed(name: str, transcripts: dict[str, Transcript]) -> None:
    expected, transcript = EXPECTED[name], transcripts[name]
    assert (transcript.status, transcript.error_message) == (expected["status"], None)

    said, heard = words(expected["text_about"]), words(transcript.text)
    common = sum(
        block.size for block in SequenceMatcher(None, said, heard, autojunk=False).get_matching_blocks()
    )
    # One or two words depend on the processor: with AVX2 alone, whisper-base hears "ill-sposed young".
    assert common >= 0.7 * len(said), transcript.text
    assert len(heard) <= 1.2 * len(said) + (2 if len(said) > 1 else 0), transcript.text

    starts = sentence_starts(transcript)
    if "start_s" in expected:
        assert starts[0] == pytest.approx(expected["start_s"], abs=0.6)
    if "sentence_starts_s" in expected:
        assert starts == pytest.approx(expected["sentence_starts_s"], abs=0.6)
    if "duration_s" in expected:
        assert transcript.duration_s == pytest.approx(expected["duration_s"], abs=1)
    assert set(expected.get("flags_with", ())) <= set(transcript.quality_flags)
    assert not set(expected.get("flags_without", ())) & set(transcript.quality_flags)
