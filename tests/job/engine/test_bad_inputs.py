"""Files that are not what they seem, through the real engine: one row each, and never an invented word."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bad_inputs import NAMES, Expected, make_bad_inputs
from speech import Clip

from airflow_whisper.validation.row_checks import RowChecks
from whisper_spark import Transcript, WhisperOptions, transcribe_files
from whisper_spark.audio.decode import AudioError, open_audio
from whisper_spark.contract import ERROR_CODES, FINAL_ERRORS, Run, transcript_schema

Outcomes = dict[str, tuple[Expected, Transcript]]


@pytest.fixture(scope="module")
def clip(librivox: list[Clip]) -> Clip:
    """The shortest clip that is long enough to be cut."""
    return min((c for c in librivox if c.seconds > 3), key=lambda c: c.seconds)


@pytest.fixture(scope="module")
def options(model_dir: Path) -> WhisperOptions:
    return WhisperOptions(model=str(model_dir))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, clip: Clip, options: WhisperOptions) -> Outcomes:
    folder = tmp_path_factory.mktemp("bad inputs")
    expected = make_bad_inputs(folder, clip.path)
    return dict(_outcomes(folder, expected, options))


def _outcomes(
    folder: Path, expected: dict[str, Expected], options: WhisperOptions
) -> Iterator[tuple[str, tuple[Expected, Transcript]]]:
    for transcript in transcribe_files([folder / name for name in expected], options):
        name = transcript.audio_uri.removeprefix(f"file://{folder}/")
        yield name, (expected[name], transcript)


def words(text: str | None) -> list[str]:
    return re.findall(r"[a-z]+", (text or "").lower())


def test_every_file_gives_one_row(outcomes: Outcomes, tmp_path: Path, clip: Clip) -> None:
    assert outcomes.keys() == make_bad_inputs(tmp_path, clip.path).keys()


def test_each_file_gets_the_documented_code(outcomes: Outcomes) -> None:
    wrong = {
        name: f"{transcript.error_code} ({transcript.error_message}), expected {expected.code}"
        for name, (expected, transcript) in outcomes.items()
        if (transcript.status, transcript.error_code) != (expected.status, expected.code)
    }
    assert wrong == {}


def test_errors_lie_in_the_file_and_say_what_is_wrong(outcomes: Outcomes) -> None:
    errors = [transcript for _, transcript in outcomes.values() if transcript.status == "error"]
    assert {e.error_code for e in errors} == {"empty", "not_audio", "no_audio_stream", "corrupt"}
    for transcript in errors:
        assert transcript.error_code in FINAL_ERRORS & ERROR_CODES.keys()
        assert transcript.error_message
        assert not transcript.text
        assert not transcript.segments


@pytest.mark.parametrize("name", NAMES)
def test_awkward_name_is_transcribed(outcomes: Outcomes, clip: Clip, name: str) -> None:
    _, transcript = outcomes[name]
    assert words(transcript.text) == words(clip.text)
    assert transcript.quality_flags == ()


def test_damaged_file_keeps_what_decodes(outcomes: Outcomes, clip: Clip) -> None:
    said = words(clip.text)
    parts = {
        n: t for n, (expected, t) in outcomes.items() if expected.text == "part" and expected.code is None
    }
    assert {"truncated.mp3", "truncated.flac"} <= parts.keys()
    for name, transcript in parts.items():
        heard = words(transcript.text)
        assert heard[:3] == said[:3], name
        assert len(heard) < len(said), name
        assert 0.4 < (transcript.duration_s or 0) / clip.seconds < 0.7, name


def test_whole_sound_is_transcribed_whatever_the_header_says(outcomes: Outcomes, clip: Clip) -> None:
    for name, (expected, transcript) in outcomes.items():
        if expected.text == "whole":
            assert words(transcript.text) == words(clip.text), name
            assert transcript.duration_s == pytest.approx(clip.seconds, abs=0.15), name


def test_flags_say_what_is_missing(outcomes: Outcomes) -> None:
    flags = {name: set(transcript.quality_flags) for name, (_, transcript) in outcomes.items()}
    wanted = {name: expected.flags for name, (expected, _) in outcomes.items() if expected.flags}
    assert {name: flags[name] for name in wanted} == wanted
    assert not any("truncated" in found for name, found in flags.items() if name not in wanted)


def test_silence_noise_and_tone_invent_no_words(outcomes: Outcomes) -> None:
    silent = {name: t.text for name, (_, t) in outcomes.items() if "no_speech" in outcomes[name][0].flags}
    assert len(silent) == 9
    assert set(silent.values()) == {""}


def test_rows_of_bad_inputs_are_fit_to_publish(outcomes: Outcomes, options: WhisperOptions) -> None:
    run = Run(
        table="speech.transcripts",
        partition={"dt": "2026-11-01"},
        source="file:///calls/",
        options=options,
        run_uri="file:///staging/run",
        manifest_id="0" * 32,
    )
    rows = [{**transcript.to_row(), **run.partition} for _, transcript in outcomes.values()]
    checks = RowChecks(run)
    checks.add(pa.RecordBatch.from_pylist(rows, schema=transcript_schema(run.partition)))
    assert [check for check in checks.results() if not check.passed] == []


def test_random_bytes_are_not_audio_whatever_they_look_like() -> None:
    for seed in range(60):
        data = np.random.default_rng(seed).bytes(200_000)
        with pytest.raises(AudioError) as raised:
            open_audio(io.BytesIO(data))
        assert raised.value.code == "not_audio", seed


def test_suffix_of_a_local_file_does_not_decide(tmp_path: Path) -> None:
    """FFmpeg believes a suffix more than bytes; in an object store there is none to believe."""
    path = tmp_path / "random.flac"
    path.write_bytes(np.random.default_rng(7).bytes(200_000))
    with path.open("rb") as file, pytest.raises(AudioError) as raised:
        open_audio(file)
    assert raised.value.code == "not_audio"
    assert str(tmp_path) not in raised.value.message
