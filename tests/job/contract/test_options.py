"""Options are checked where they are written, and their fingerprint says when transcripts are stale."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from faster_whisper import available_models, tokenizer

from whisper_spark import WhisperOptions
from whisper_spark.contract import Run, check_partition, parse_partition_path, partition_path
from whisper_spark.contract.names import LANGUAGES, language_code
from whisper_spark.contract.options import KNOWN_MODELS


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "larg-v3"}, "did you mean 'large-v3'"),
        ({"model": "bucket/model/base"}, "unknown model"),
        ({"beam_size": "5"}, "beam_size must be int"),
        ({"beam_size": "5"}, r"write the options as JSON: '\{\"beam_size\": \{\{ \.\.\. \}\}\}'"),
        ({"model": "whisper-base"}, "not in the format of CTranslate2: write 'base'"),
        ({"model": "openai/whisper-large-v3"}, "not in the format of CTranslate2: write 'large-v3'"),
        ({"beam_size": 0}, "beam_size must be between 1 and 32"),
        ({"task": "summarise"}, "'transcribe', 'translate'"),
        ({"language": "english"}, "unknown language 'english'"),
        ({"language": "en", "multilingual": True}, "contradict"),
        ({"channels": "left"}, "'mix', 'split'"),
        ({"compute_type": "fp16"}, "compute_type must be one of"),
        ({"temperature": (0.0, 2.0)}, "temperature must lie between 0 and 1"),
        ({"vad": "yes"}, "vad must be bool"),
        ({"model_sha256": "abc"}, "64 lower-case hex digits"),
        ({"max_duration_s": float("nan")}, "max_duration_s must be between"),
        ({"language": "English"}, r"unknown language 'English' \(did you mean 'en'\?\)"),
        ({"language": "en-US"}, "did you mean 'en'"),
        ({"language": "EN"}, "did you mean 'en'"),
        ({"language": "zh_TW"}, "did you mean 'zh'"),
        ({"language": "castilian"}, "did you mean 'es'"),
        ({"language": "nb"}, "did you mean 'no'"),
        ({"model": "base.en", "language": "de"}, "'base.en' knows English only.*use 'base'"),
        ({"model": "tiny.en", "multilingual": True}, "knows English only: leave out multilingual"),
        ({"model": "/models/\x00"}, "without control characters"),
        ({"revision": " "}, "revision must be"),
        ({"temperature": ()}, "temperature must have 1 to 20 values, got 0"),
        ({"temperature": None}, "temperature must be a sequence of floats, got None"),
        ({"temperature": (0.0, float("nan"))}, "temperature must lie between"),
        ({"temperature": True}, "temperature must be a sequence of floats, got True"),
        ({"temperature": "0.0"}, "temperature must be a sequence of floats"),
        ({"beam_size": True}, "beam_size must be int, got True"),
        ({"suppress_tokens": (True,)}, "suppress_tokens must be a sequence of ints"),
        ({"suppress_tokens": (1.0,)}, "suppress_tokens must be a sequence of ints"),
        ({"suppress_tokens": (-2,)}, "suppress_tokens must hold token ids.*got -2"),
        ({"suppress_tokens": (1_000_000_000,)}, "suppress_tokens must hold token ids.*got 1000000000"),
        ({"hotwords": "\ud800"}, "hotwords must be text"),
        ({"hotwords": "{{ params.words }}"}, r"template.*options=\{'hotwords': '\{\{ ... \}\}'"),
        (
            {"transform": "jobs.hide:numbers"},
            r"lacks the version.*numbers.version = '1'.*'jobs.hide:numbers@1'",
        ),
        ({"transform": "jobs.hide.numbers@1"}, "transform must be 'package.module:function@version'"),
        ({"transform": "jobs.hide:numbers@"}, "transform must be"),
        ({"transform": "os;import x:y@1"}, "transform must be"),
        ({"transform": ""}, "transform must be"),
        ({"language": "{% if x %}en{% endif %}"}, "Airflow renders none inside WhisperOptions"),
        (
            {"diarize": True},
            "speaker_model: no model is shipped.*WeSpeaker.*CC BY 4.0.*3D-Speaker.*Apache-2.0",
        ),
        ({"speaker_model": "resnet34"}, "unknown speaker_model 'resnet34'.*WeSpeaker"),
        (
            {"speaker_model": "s3://b/models/cam.onnx"},
            "is a file: name the folder .* such as 's3://b/models/'",
        ),
        ({"diarize": "yes"}, "diarize must be bool"),
        ({"diarize": True, "speaker_model": "/m", "vad": False}, "diarize=True needs vad=True"),
        (
            {"diarize": True, "speaker_model": "/m", "word_timestamps": False},
            "diarize=True needs word_timestamps=True",
        ),
        ({"min_speakers": 3, "max_speakers": 2}, "min_speakers=3 is larger than max_speakers=2"),
        ({"max_speakers": 0}, "max_speakers must be between 1 and 100"),
        ({"speaker_model_sha256": "abc"}, "speaker_model_sha256 must be 64 .* of the .onnx file"),
        ({"speaker_model_revision": ""}, "speaker_model_revision must be a branch"),
    ],
)
def test_a_wrong_option_fails_at_once_and_says_what_is_accepted(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WhisperOptions(**wrong)


@pytest.mark.parametrize(
    "absurd",
    [
        {"temperature": [0.0] * 1_000_000},
        {"temperature": [10**400]},
        {"suppress_tokens": [0] * (2**20 + 1)},
        {"suppress_tokens": [2**63]},
        {"suppress_tokens": [10**5000]},
        {"initial_prompt": "word " * 2_000_000},
        {"hotwords": "w" * 10_001},
        {"model": "org/" + "m" * 10_000_000},
        {"language": "e" * 10_000_000},
        {"beam_size": 10**5000},
        {"batch_size": 2**64},
        {"patience": 10**400},
        {"max_duration_s": -(10**400)},
        {"length_penalty": float("inf")},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_absurd_values_are_refused_with_a_message_that_can_be_read(absurd: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(absurd))) as refused:
        WhisperOptions(**absurd)
    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"beam_size": ' + "9" * 5000 + "}", "[]", "null"])
def test_json_that_holds_no_options_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="Whisper options"):
        WhisperOptions.from_json(text)


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("temperature", 0, (0.0,)),
        ("temperature", [0, 0.5, 1], (0.0, 0.5, 1.0)),
        ("temperature", (-0.0, 0.2), (0.0, 0.2)),
        ("length_penalty", 2, 2.0),
        ("length_penalty", -0.0, 0.0),
        ("chunk_length", 15, 15.0),
        ("suppress_tokens", 5, [5]),
        ("suppress_tokens", None, []),
        ("initial_prompt", " ", None),
        ("hotwords", "", None),
    ],
)
def test_equal_options_have_equal_fingerprints_however_they_are_written(
    field: str, one: object, other: object
) -> None:
    first, second = WhisperOptions(**{field: one}), WhisperOptions(**{field: other})
    assert first == second
    assert first.to_json() == second.to_json()
    assert first.fingerprint() == second.fingerprint()
    assert WhisperOptions.from_json(first.to_json()).fingerprint() == first.fingerprint()


def test_nothing_to_suppress_is_not_the_default() -> None:
    assert WhisperOptions(suppress_tokens=()).fingerprint() != WhisperOptions().fingerprint()


@pytest.mark.parametrize(
    "model",
    [
        "base",
        "org/name",
        "/models/base",
        "./base",
        "s3://bucket/models/base/",
        "gs://b/m",
        "az://c/m",
        "file:///m",
    ],
)
def test_every_kind_of_model_location_is_accepted(model: str) -> None:
    assert WhisperOptions(model=model).model == model


def test_the_short_names_of_models_are_those_of_faster_whisper() -> None:
    assert set(available_models()) == KNOWN_MODELS


def test_the_codes_of_languages_are_those_of_faster_whisper() -> None:
    assert set(tokenizer._LANGUAGE_CODES) == LANGUAGES
    assert all(language_code(code) == code for code in LANGUAGES)
    assert language_code("Klingon") is None


def test_options_survive_json() -> None:
    options = WhisperOptions(model="base", temperature=(0.0, 0.5), hotwords="Zürich", vad=False)
    assert WhisperOptions.from_json(options.to_json()) == options


def test_json_with_an_unknown_option_names_the_closest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown Whisper option 'beamsize' .*'beam_size'"):
        WhisperOptions.from_json('{"beamsize": 5}')


def test_what_changes_only_speed_does_not_make_transcripts_stale() -> None:
    slow, fast = (
        WhisperOptions(model="base"),
        WhisperOptions(model="base", device="cpu", batch_size=2, num_workers=1),
    )
    assert slow.fingerprint() == fast.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "small"},
        {"language": "en"},
        {"vad": False},
        {"channels": "split"},
        {"beam_size": 4},
        {"hotwords": "x"},
        {"temperature": (0.0,)},
        {"suppress_tokens": ()},
        {"suppress_tokens": (-1, 5)},
        {"log_prob_threshold": None},
    ],
)
def test_what_changes_the_text_changes_the_fingerprint(change: dict) -> None:
    base = WhisperOptions(model="base")
    assert dataclasses.replace(base, **change).fingerprint() != base.fingerprint()


def test_moving_a_model_that_is_named_by_its_hash_keeps_transcripts_fresh() -> None:
    sha256 = "0" * 64
    here, there = (
        WhisperOptions(model="/a", model_sha256=sha256),
        WhisperOptions(model="s3://b/a", model_sha256=sha256),
    )
    assert here.fingerprint() == there.fingerprint()


SPEAKERS = WhisperOptions(model="base", diarize=True, speaker_model="/models/speakers")


@pytest.mark.parametrize(
    "change",
    [
        {"diarize": False},
        {"min_speakers": 2},
        {"max_speakers": 2},
        {"speaker_model": "org/other"},
        {"speaker_model_revision": "v2"},
        {"speaker_model_sha256": "0" * 64},
    ],
)
def test_what_changes_speakers_changes_the_fingerprint(change: dict) -> None:
    assert dataclasses.replace(SPEAKERS, **change).fingerprint() != SPEAKERS.fingerprint()


def test_options_for_speakers_do_not_make_transcripts_stale_while_diarize_is_off() -> None:
    sha256 = "0" * 64
    off = WhisperOptions(
        model="base",
        min_speakers=1,
        max_speakers=2,
        speaker_model="/m",
        speaker_model_revision="v2",
        speaker_model_sha256=sha256,
    )
    assert off.fingerprint() == WhisperOptions(model="base").fingerprint()


def test_moving_a_speaker_model_that_is_named_by_its_hash_keeps_transcripts_fresh() -> None:
    here = dataclasses.replace(SPEAKERS, speaker_model_sha256="0" * 64)
    there = dataclasses.replace(here, speaker_model="org/name", speaker_model_revision="v2")
    assert here.fingerprint() == there.fingerprint()


def test_fingerprints_are_the_same_in_every_release() -> None:
    # Pinned: a change here makes every transcript of every user stale, and costs them their GPU hours again.
    assert WhisperOptions(model="base").fingerprint() == "3ebd40757f909d2d"


def test_importing_options_needs_neither_spark_nor_whisper_nor_arrow() -> None:
    code = (
        "import sys; from whisper_spark import WhisperOptions; WhisperOptions();"
        "heavy = ('pyspark', 'faster_whisper', 'ctranslate2', 'pyarrow', 'numpy', 'av');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "partition", [{"dt": "2026-11-01"}, {"dt": "a/b=c", "hour": "13"}, {"city": "Zürich 1%?#"}]
)
def test_partition_paths_go_there_and_back(partition: dict[str, str]) -> None:
    assert parse_partition_path(partition_path(partition)) == partition
    assert partition_path(partition).count("/") == len(partition) - 1


@pytest.mark.parametrize("partition", [{}, {"dt": ""}, {"d t": "x"}, {"text": "x"}, {"language": "en"}])
def test_a_partition_without_usable_keys_is_refused(partition: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="partition"):
        check_partition(partition)


def test_a_run_survives_the_metadata_of_its_manifest() -> None:
    run = Run(
        table="speech.transcripts",
        partition={"dt": "2026-11-01"},
        source="s3://calls/raw/",
        options=WhisperOptions(model="base", temperature=0.0),  # type: ignore[arg-type]
        run_uri="s3://calls/staging/speech.transcripts/dt=2026-11-01/f/m",
        manifest_id="m",
        base_snapshot_id=2**62,
        counts={"new": 1},
        audio_bytes=10,
    )
    assert Run.from_metadata(run.to_metadata()) == run


def test_transform_and_its_version_are_part_of_the_fingerprint() -> None:
    prints = {
        WhisperOptions(transform=transform).fingerprint()
        for transform in (None, "jobs.hide:numbers@1", "jobs.hide:numbers@2", "jobs.hide:names@1")
    }
    assert len(prints) == 4
    given = WhisperOptions(transform="jobs.hide:numbers@1.2+a")
    assert WhisperOptions.from_json(given.to_json()) == given
