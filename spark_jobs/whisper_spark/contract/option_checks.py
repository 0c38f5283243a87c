"""Validation of the values passed to :class:`~whisper_spark.contract.options.WhisperOptions`.

An invalid value raises ``ValueError`` with the name of the field, what it accepts and the value it was given.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from whisper_spark.contract.names import COMPUTE_TYPES, KNOWN_MODELS, LANGUAGES, language_code

_URI = re.compile(r"^(s3|s3a|gs|gcs|az|abfs|abfss|file)://", re.IGNORECASE)
_HUB_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The repositories of OpenAI hold weights for other programs.
_OPENAI = re.compile(r"^(openai/)?whisper-")
_LIKE_A_VALUE = re.compile(r"-?\d+(\.\d+)?|true|false", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# module:function@version
_TRANSFORM = re.compile(r"(?P<function>[^\W\d][\w.]*:[^\W\d][\w.]*)(@(?P<version>[\w.+-]+))?")
_TEMPLATE = re.compile(r"\{\{|\{%")
# Control characters, and lone surrogates, which cannot be encoded as UTF-8.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SPACES = str.maketrans("\t\n\r", "   ")

# Whisper sees 223 tokens of a prompt. This many characters are more than that in every script.
_MOST_PROMPT_CHARS = 10_000
_MOST_NAME_CHARS = 2_000
_MOST_TEMPERATURES = 20
# More than any model has; which tokens a model knows is checked when it is loaded.
_MOST_TOKENS = 2**20

# Options whose blank text means None: an unset template variable renders as blank.
_PROMPTS = ("initial_prompt", "hotwords")

_SPEAKER_MODELS = (
    "Good ones are the ONNX files of WeSpeaker, such as 'Wespeaker/wespeaker-voxceleb-resnet34-LM' (code "
    "Apache-2.0, weights CC BY 4.0), and of 3D-Speaker, CAM++ and ERes2Net (Apache-2.0)"
)
_DIARIZE_NEEDS = {
    "word_timestamps": "the times of words tell who said them",
    "vad": "speakers are told apart in detected speech",
}

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("vad_threshold", 0.01, 0.99),
    ("vad_min_silence_ms", 0, 30_000),
    ("vad_speech_pad_ms", 0, 5_000),
    ("chunk_length", 5.0, 30.0),
    ("beam_size", 1, 32),
    ("best_of", 1, 32),
    ("patience", 0.1, 10.0),
    ("greedy_log_prob_threshold", -100.0, 0.0),
    ("length_penalty", 0.0, 10.0),
    ("repetition_penalty", 0.1, 10.0),
    ("no_repeat_ngram_size", 0, 100),
    ("compression_ratio_threshold", 0.1, 1_000.0),
    ("log_prob_threshold", -100.0, 0.0),
    ("no_speech_threshold", 0.0, 1.0),
    ("min_speakers", 1, 100),
    ("max_speakers", 1, 100),
    ("max_duration_s", 1.0, 31_536_000.0),
    ("batch_size", 1, 1_024),
    ("cpu_threads", 1, 1_024),
    ("num_workers", 1, 1_024),
    ("prefetch_files", 1, 10_000),
    ("prefetch_bytes", 4 * 1024 * 1024, 2**40),
    ("prefetch_processes", 0, 256),
    ("transform_timeout_s", 0.1, 86_400.0),
)


def typed(name: str, value: Any, hint: Any) -> Any:
    """The value converted to the type of its annotation, so that equal values have one representation.

    Only integers are converted to floats, and sequences to tuples. A string in place of a number, as JSON or
    Airflow Params may contain, is refused.

    :param hint: annotation of the field.
    :raises ValueError: for a value of another type.
    """
    if typing.get_origin(hint) is tuple:
        return _typed_numbers(name, value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return _one_of(name, value, typing.get_args(hint))
    kinds = tuple(t for t in typing.get_args(hint) or (hint,) if t is not type(None))
    if value is None and type(None) in typing.get_args(hint):
        return None
    if float in kinds and _is_number(value):
        return _float(name, value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(t.__name__ for t in kinds)
        got = f"{shown(value)} of type {type(value).__name__}"
        raise ValueError(f"{name} must be {names}, got {got}{_rendered(name, value)}")
    return _text(name, value) if isinstance(value, str) else value


def _rendered(name: str, value: Any) -> str:
    """What to do about text that looks like a number or a boolean, as templates of Airflow render them."""
    if not isinstance(value, str) or not _LIKE_A_VALUE.fullmatch(value):
        return ""
    return f". Where a template makes text of it, write the options as JSON: '{{\"{name}\": {{{{ ... }}}}}}'"


def _typed_numbers(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    values = [value] if _is_number(value) else [] if value is None and name == "suppress_tokens" else value
    if not isinstance(values, (list, tuple)) or not all(_is_number(v, kind) for v in values):
        raise ValueError(f"{name} must be a sequence of {kind.__name__}s, got {shown(value)}")
    return tuple(_float(name, v) if kind is float else v for v in values)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def _is_number(value: Any, kind: type = float) -> bool:
    return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)


def _float(name: str, value: float) -> float:
    try:
        # Adding 0.0 turns -0.0 into 0.0, which is equal to it but has another JSON form.
        return float(value) + 0.0
    except OverflowError:
        raise ValueError(f"{name} is too large: {shown(value)}") from None


def _text(name: str, value: str) -> str | None:
    if _TEMPLATE.search(value):
        raise ValueError(
            f"{name}={shown(value)} holds a template, but Airflow renders none inside WhisperOptions(...). "
            f"Give the operator a dict, which it renders: options={{'{name}': '{{{{ ... }}}}', ...}}"
        )
    most = _MOST_PROMPT_CHARS if name in _PROMPTS else _MOST_NAME_CHARS
    if len(value) > most:
        raise ValueError(f"{name} must have at most {most:,} characters, got {len(value):,}")
    if _NO_TEXT.search(value.translate(_SPACES) if name in _PROMPTS else value):
        raise ValueError(f"{name} must be text without control characters, got {shown(value)}")
    if name in _PROMPTS and not value.strip():
        return None
    return value


def check_values(values: Mapping[str, Any]) -> None:
    """Check the values of all fields, as far as that is possible without the model.

    :raises ValueError: for the first invalid value.
    """
    _check_model(values["model"], values["revision"], values["model_sha256"])
    _check_speakers(values)
    _check_transform(values["transform"])
    _check_language(values["model"], values["language"], values["multilingual"])
    if values["compute_type"] not in COMPUTE_TYPES:
        raise ValueError(
            f"compute_type must be one of {', '.join(sorted(COMPUTE_TYPES))}, "
            f"got {shown(values['compute_type'])}"
        )
    _check_temperatures(values["temperature"])
    _check_tokens(values["suppress_tokens"])
    for name, low, high in _RANGES:
        value = values[name]
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise ValueError(f"{name} must be between {low} and {high}, got {shown(value)}")


def _check_model(model: str, revision: str | None, sha256: str | None) -> None:
    plain = _OPENAI.sub("", model)
    if plain != model and plain in KNOWN_MODELS:
        raise ValueError(
            f"model {shown(model)} is not in the format of CTranslate2: write {plain!r}, for which "
            "faster-whisper knows a converted model"
        )
    if not (model in KNOWN_MODELS or _URI.match(model) or _HUB_REPO.fullmatch(model) or _is_path(model)):
        raise ValueError(
            f"unknown model {shown(model)}{did_you_mean(model, KNOWN_MODELS)}. Use one of "
            f"{', '.join(sorted(KNOWN_MODELS))}, a hub repository 'org/name', an absolute path, "
            "or a URI such as 's3://bucket/models/base/'"
        )
    _check_revision("revision", revision)
    _check_sha256("model_sha256", sha256, "model.bin")


def _check_revision(name: str, revision: str | None) -> None:
    if revision is not None and not revision.strip():
        raise ValueError(f"{name} must be a branch, tag or commit, or None, not an empty string")


def _check_sha256(name: str, sha256: str | None, of: str) -> None:
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name} must be 64 lower-case hex digits: the SHA-256 of {of}")


def _check_speakers(values: Mapping[str, Any]) -> None:
    model, least, most = values["speaker_model"], values["min_speakers"], values["max_speakers"]
    if model is not None and not (_URI.match(model) or _HUB_REPO.fullmatch(model) or _is_path(model)):
        raise ValueError(
            f"unknown speaker_model {shown(model)}: use a hub repository 'org/name', an absolute path, or a "
            f"URI such as 's3://bucket/models/speakers/'. {_SPEAKER_MODELS}"
        )
    if model is not None and model.endswith(".onnx") and not _HUB_REPO.fullmatch(model):
        folder = f"{model.rpartition('/')[0]}/"
        raise ValueError(
            f"speaker_model {shown(model)} is a file: name the folder that holds this .onnx file and no "
            f"other, such as {shown(folder)}"
        )
    _check_revision("speaker_model_revision", values["speaker_model_revision"])
    _check_sha256("speaker_model_sha256", values["speaker_model_sha256"], "the .onnx file")
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_speakers={shown(least)} is larger than max_speakers={shown(most)}")
    if not values["diarize"]:
        return
    if model is None:
        raise ValueError(f"diarize=True needs speaker_model: no model is shipped. {_SPEAKER_MODELS}")
    for name, why in _DIARIZE_NEEDS.items():
        if not values[name]:
            raise ValueError(f"diarize=True needs {name}=True: {why}")


def _check_transform(transform: str | None) -> None:
    match = transform and _TRANSFORM.fullmatch(transform)
    if transform is None or (match and match["version"]):
        return
    if match:
        raise ValueError(
            f"transform={shown(transform)} lacks the version of the function, without which transcripts "
            "would not be made again when it changes: give the function an attribute, "
            f"{match['function'].rpartition(':')[2]}.version = '1', and write {match['function'] + '@1'!r}"
        )
    raise ValueError(f"transform must be 'package.module:function@version', got {shown(transform)}")


def _check_language(model: str, language: str | None, multilingual: bool) -> None:
    if language is not None and language not in LANGUAGES:
        code = language_code(language)
        meant = f" (did you mean {code!r}?)" if code else did_you_mean(language, LANGUAGES)
        raise ValueError(
            f"unknown language {shown(language)}{meant}. "
            "Use a Whisper language code such as 'en', or None to detect it for each file"
        )
    if language is not None and multilingual:
        raise ValueError("language and multilingual contradict each other: leave one of them out")
    if model in KNOWN_MODELS and model.endswith(".en") and (multilingual or language not in (None, "en")):
        wrong = "multilingual" if multilingual else f"language={language!r}"
        raise ValueError(
            f"model {model!r} knows English only: leave out {wrong}, or use {model.removesuffix('.en')!r}"
        )


def _check_temperatures(temperatures: tuple[float, ...]) -> None:
    if not 1 <= len(temperatures) <= _MOST_TEMPERATURES:
        raise ValueError(f"temperature must have 1 to {_MOST_TEMPERATURES} values, got {len(temperatures):,}")
    if not all(0.0 <= t <= 1.0 for t in temperatures):
        raise ValueError(f"temperature must lie between 0 and 1, got {shown(temperatures)}")


def _check_tokens(tokens: tuple[int, ...]) -> None:
    if len(tokens) > _MOST_TOKENS:
        raise ValueError(f"suppress_tokens must have at most {_MOST_TOKENS:,} values, got {len(tokens):,}")
    wrong = next((token for token in tokens if not -1 <= token < _MOST_TOKENS), None)
    if wrong is not None:
        raise ValueError(
            f"suppress_tokens must hold token ids from 0 to {_MOST_TOKENS - 1:,}, or -1, got {shown(wrong)}"
        )


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest of the known names as a hint to append, or nothing."""
    close = difflib.get_close_matches(name[:_MOST_NAME_CHARS], list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any) -> str:
    """The ``repr`` of a value for a message, shortened when it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a whole number of {value.bit_length():,} bits"
    if isinstance(value, (list, tuple)) and len(value) > 20:
        return f"{len(value):,} values"
    if isinstance(value, str) and len(value) > 100:
        return f"{value[:100]!r}... ({len(value):,} characters)"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
