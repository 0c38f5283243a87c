"""What the Airflow side and the Spark side agree on: options, manifest, transcript row, error codes.

Needs only pyarrow, and imports that inside the functions that build schemas, so a DAG file can
import :class:`WhisperOptions` for the price of the standard library.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import typing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import pyarrow as pa

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
    "truncated": "only the first part of the file could be decoded",
    "empty_text_over_speech": "the voice detector heard speech, yet there is no text",
    "low_confidence": "average log probability of the text below log_prob_threshold",
    "repetitive": "compression ratio above compression_ratio_threshold, or a repeated phrase",
    "unlikely_speech_rate": "more than 40 characters or fewer than 1 token for a second of speech",
    "uncertain_language": "language probability below 0.5",
    "long_words": "a word too long to be one",
    "token_limit": "a window used up all the tokens it was allowed",
}
"""Warnings about a transcript, row by row, and what each one means."""

LANGUAGES: frozenset[str] = frozenset(
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu "
    "hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro "
    "ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh".split()
)
"""Whisper's language codes (openai/whisper, ``whisper/tokenizer.py``)."""

KNOWN_MODELS: frozenset[str] = frozenset(
    "tiny tiny.en base base.en small small.en medium medium.en large-v1 large-v2 large-v3 large large-v3-turbo "
    "turbo distil-small.en distil-medium.en distil-large-v2 distil-large-v3 distil-large-v3.5".split()
)
"""Names that faster-whisper resolves to a repository on the model hub (``faster_whisper.utils``)."""

COMPUTE_TYPES: frozenset[str] = frozenset(
    "auto default int8 int8_float32 int8_float16 int8_bfloat16 int16 float16 bfloat16 float32".split()
)
"""CTranslate2's weight types, and ``auto``: float16 on a GPU, int8 on a CPU."""

_FINGERPRINT_VERSION = 1
# Raise it whenever a default below changes, because defaults are left out of the fingerprint.

_URI = re.compile(r"^(s3|s3a|gs|gcs|az|abfs|abfss|file)://", re.IGNORECASE)
_HUB_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def _speed(default: Any) -> Any:
    """A field that changes how fast the text comes, not what it says: not part of the fingerprint."""
    return field(default=default, metadata={"speed_only": True})


@dataclass(frozen=True, kw_only=True)
class WhisperOptions:
    """Everything that decides what a transcript says, and how the work is done.

    .. code-block:: python

        WhisperOptions(model="large-v3-turbo", language="en", channels="split")

    Field names are those of ``faster_whisper.WhisperModel.transcribe`` wherever the meaning is the same.

    :param model: a name that faster-whisper knows (``"large-v3-turbo"``), a repository on the model
        hub (``"org/name"``), a folder (``"/models/base"``), or an object-store URI
        (``"s3://models/base/"``), which each host fetches once.
    :param revision: branch, tag or commit of a hub repository.
    :param model_sha256: expected SHA-256 of ``model.bin`` in hex. Checked before loading; it then also
        identifies the model in :meth:`fingerprint`, so moving the weights does not make transcripts stale.
    :param language: Whisper language code, or ``None`` to detect it for each file.
    :param task: ``"transcribe"``, or ``"translate"`` into English.
    :param multilingual: detect the language again for every window, for files that mix languages.
    :param word_timestamps: give each segment its words with start, end (seconds) and probability.
    :param vad: transcribe only what the Silero voice activity detector takes for speech.
    :param vad_threshold: speech probability from which a 32 ms frame counts as speech, 0 to 1.
    :param vad_min_silence_ms: a pause at least this long (milliseconds) separates two speech regions.
    :param vad_speech_pad_ms: kept on both sides of a speech region, in milliseconds.
    :param channels: ``"mix"`` averages all channels; ``"split"`` transcribes each channel by itself and
        segments carry the channel, as calls with one speaker per channel need.
    :param initial_prompt: text in the style and spelling wanted, given to every window.
    :param hotwords: words to prefer, given to every window as part of the prompt.
    :param beam_size: 1 decodes greedily; larger is slower and gains little on strong models.
    :param best_of: candidates when sampling at a temperature above 0.
    :param patience: beam search patience (arXiv:2204.05424).
    :param length_penalty: exponential length penalty of beam search.
    :param repetition_penalty: above 1 penalises tokens already used.
    :param no_repeat_ngram_size: forbid repeating n-grams of this size; 0 is off.
    :param temperature: tried in turn for windows that fail the quality gate.
    :param compression_ratio_threshold: gzip ratio above which text counts as a loop (openai/whisper: 2.4).
    :param log_prob_threshold: average token log probability below which text is suspect (openai/whisper: -1).
    :param no_speech_threshold: no-speech probability above which a window with suspect text is silence
        (openai/whisper: 0.6).
    :param suppress_blank: forbid an empty first token.
    :param suppress_tokens: token ids never to produce; -1 stands for Whisper's non-speech symbols.
    :param max_duration_s: longer files (seconds) become an error row ``too_long``.
    :param compute_type: CTranslate2 weight type; ``"auto"`` is float16 on a GPU and int8 on a CPU.
    :param device: ``"auto"`` takes the GPU that Spark assigned, else a CPU. Not in the fingerprint.
    :param batch_size: windows decoded together; ``None`` picks 64 on a GPU and 8 on a CPU. Not in the
        fingerprint, nor are those that follow.
    :param cpu_threads: threads of one decoder on a CPU; ``None``: one.
    :param num_workers: decoders that share one copy of the weights on a CPU; ``None``: one for each core
        that Spark gave the task (``spark.task.cpus``), or each core of the machine without Spark.
    :param prefetch_files: files fetched and decoded ahead of the device.
    :param prefetch_bytes: bytes of decoded audio that may wait for the device.
    :raises ValueError: for any value out of range, with the field's name and what it accepts.
    """

    model: str = "large-v3-turbo"
    revision: str | None = None
    model_sha256: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    multilingual: bool = False
    word_timestamps: bool = True
    vad: bool = True
    vad_threshold: float = 0.5
    vad_min_silence_ms: int = 160
    vad_speech_pad_ms: int = 400
    channels: Literal["mix", "split"] = "mix"
    initial_prompt: str | None = None
    hotwords: str | None = None
    beam_size: int = 1
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    log_prob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    suppress_blank: bool = True
    suppress_tokens: tuple[int, ...] = (-1,)
    max_duration_s: float = 86_400.0
    compute_type: str = "auto"
    device: Literal["auto", "cuda", "cpu"] = _speed("auto")
    batch_size: int | None = _speed(None)
    cpu_threads: int | None = _speed(None)
    num_workers: int | None = _speed(None)
    prefetch_files: int = _speed(16)
    prefetch_bytes: int = _speed(256 * 1024 * 1024)

    def __post_init__(self) -> None:
        for name in ("temperature", "suppress_tokens"):
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                value = (value,)
            object.__setattr__(self, name, tuple(value))
        _check_types(self)
        _check_values(self)

    def fingerprint(self) -> str:
        """16 hex digits that name the text-changing part of these options.

        Equal options give equal fingerprints on every machine and in every release. Fields at their
        default are left out, so that a release which adds a field does not make all transcripts stale.
        """
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("speed_only") and getattr(self, f.name) != f.default
        }
        changed["model"] = self.model
        if self.model_sha256:
            changed.pop("model")
            changed.pop("revision", None)
        canonical = json.dumps([_FINGERPRINT_VERSION, changed], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """All fields as one JSON object, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WhisperOptions:
        """The inverse of :meth:`to_json`.

        :raises ValueError: when the text is no JSON object, or names a field that does not exist.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"Whisper options are not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"Whisper options must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WhisperOptions:
        """Options from a mapping, for example from Airflow Params.

        :raises ValueError: when a key is no option; the message names the closest one.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown Whisper option {name!r}{_did_you_mean(name, known)}")
        return cls(**values)


def _check_types(options: WhisperOptions) -> None:
    """Annotations decide: JSON and Airflow Params bring strings where numbers are meant."""
    hints = typing.get_type_hints(WhisperOptions)
    for name, hint in hints.items():
        value = getattr(options, name)
        allowed = typing.get_args(hint) or (hint,)
        if type(None) in allowed and value is None:
            continue
        if typing.get_origin(hint) is Literal:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
            continue
        if typing.get_origin(hint) is tuple:
            number = (int, float) if allowed[0] is float else (int,)
            if not value or not all(isinstance(v, number) and not isinstance(v, bool) for v in value):
                raise ValueError(f"{name} must be a sequence of {allowed[0].__name__}s, got {value!r}")
            continue
        kinds = tuple(t for t in allowed if t is not type(None))
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(options, name, float(value))
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(t.__name__ for t in kinds)
            raise ValueError(f"{name} must be {names}, got {value!r} of type {type(value).__name__}")


def _check_values(options: WhisperOptions) -> None:
    model = options.model
    if not (model in KNOWN_MODELS or _URI.match(model) or _HUB_REPO.match(model) or _is_path(model)):
        raise ValueError(
            f"unknown model {model!r}{_did_you_mean(model, KNOWN_MODELS)}. Use one of "
            f"{', '.join(sorted(KNOWN_MODELS))}, a hub repository 'org/name', an absolute path, "
            "or a URI such as 's3://bucket/models/base/'"
        )
    if options.model_sha256 is not None and not _SHA256.match(options.model_sha256):
        raise ValueError("model_sha256 must be 64 lower-case hex digits: the SHA-256 of model.bin")
    if options.language is not None and options.language not in LANGUAGES:
        raise ValueError(
            f"unknown language {options.language!r}{_did_you_mean(options.language, LANGUAGES)}. "
            "Use a Whisper language code such as 'en', or None to detect it for each file"
        )
    if options.language is not None and options.multilingual:
        raise ValueError("language and multilingual contradict each other: leave one of them out")
    if options.compute_type not in COMPUTE_TYPES:
        raise ValueError(f"compute_type must be one of {', '.join(sorted(COMPUTE_TYPES))}, got {options.compute_type!r}")
    if not all(0.0 <= t <= 1.0 for t in options.temperature):
        raise ValueError(f"temperature must lie between 0 and 1, got {options.temperature!r}")
    for name, low, high in _RANGES:
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("vad_threshold", 0.01, 0.99),
    ("vad_min_silence_ms", 0, 30_000),
    ("vad_speech_pad_ms", 0, 5_000),
    ("beam_size", 1, 32),
    ("best_of", 1, 32),
    ("patience", 0.1, 10.0),
    ("length_penalty", 0.0, 10.0),
    ("repetition_penalty", 0.1, 10.0),
    ("no_repeat_ngram_size", 0, 100),
    ("compression_ratio_threshold", 0.1, 1_000.0),
    ("log_prob_threshold", -100.0, 0.0),
    ("no_speech_threshold", 0.0, 1.0),
    ("max_duration_s", 1.0, 31_536_000.0),
    ("batch_size", 1, 1_024),
    ("cpu_threads", 1, 1_024),
    ("num_workers", 1, 1_024),
    ("prefetch_files", 1, 10_000),
    ("prefetch_bytes", 4 * 1024 * 1024, 2**40),
)


def _is_path(model: str) -> bool:
    return model.startswith(("/", "./", "../", "~"))


def _did_you_mean(name: str, known: typing.Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# --- transcripts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word. ``start`` and ``end`` are seconds from the start of the file."""

    start: float
    end: float
    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of text. ``start`` and ``end`` are seconds from the start of the file.

    ``channel`` is the channel's index when channels are split, else ``None``. ``words`` is ``None``
    when word timestamps are off.
    """

    id: int
    channel: int | None
    start: float
    end: float
    text: str
    language: str | None
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The outcome for one audio file: a transcript, or an error. One row of the table.

    ``duration_s`` and ``speech_s`` are seconds of audio and of detected speech; ``transcribed_at`` is UTC.
    """

    audio_uri: str
    audio_etag: str | None = None
    audio_bytes: int | None = None
    status: Literal["ok", "error"] = "ok"
    error_code: str | None = None
    error_message: str | None = None
    attempt: int = 1
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float | None = None
    channels: int | None = None
    text: str | None = None
    segments: tuple[Segment, ...] = ()
    quality_flags: tuple[str, ...] = ()
    model: str = ""
    fingerprint: str = ""
    engine_version: str = ""
    transcribed_at: datetime | None = None

    def to_row(self) -> dict[str, Any]:
        """This transcript as plain lists and dicts, in the shape of :func:`transcript_schema`."""
        row = dataclasses.asdict(self)
        row["segments"] = [{**s, "words": None if s["words"] is None else list(s["words"])} for s in row["segments"]]
        row["quality_flags"] = list(self.quality_flags)
        return row


# --- partitions --------------------------------------------------------------------------------------


def check_partition(partition: typing.Mapping[str, str]) -> dict[str, str]:
    """The partition as a plain dict, keys in the order given.

    :raises ValueError: without keys, with a key that is no column name or clashes with a transcript
        column, or with an empty or non-string value.
    """
    if not partition:
        raise ValueError("partition needs at least one key, for example {'dt': '{{ ds }}'}")
    for key, value in partition.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"partition key {key!r} is no column name: use letters, digits and underscores")
        if key.lower() in _TRANSCRIPT_COLUMNS | _MANIFEST_COLUMNS:
            raise ValueError(f"partition key {key!r} is already a column of the transcripts table; choose another name")
        if not isinstance(value, str) or not value:
            raise ValueError(f"partition value of {key!r} must be a non-empty string, got {value!r}")
    return dict(partition)


def partition_path(partition: typing.Mapping[str, str]) -> str:
    """Canonical Hive form, ``dt=2026-11-01/hour=13``; special characters in values percent-encoded."""
    return "/".join(f"{key}={quote(value, safe=' :,@+')}" for key, value in partition.items())


def parse_partition_path(path: str) -> dict[str, str]:
    """The inverse of :func:`partition_path`.

    :raises ValueError: when a component is not ``key=value``.
    """
    partition = {}
    for component in path.strip("/").split("/"):
        key, separator, value = component.partition("=")
        if not separator:
            raise ValueError(f"{path!r} is no partition path: {component!r} is not of the form key=value")
        partition[key] = unquote(value)
    return check_partition(partition)


# --- a run and its folder in staging --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every task after discovery needs to know. Lives in the Parquet metadata of the manifest.

    :param table: ``namespace.table``.
    :param partition: the one partition that this run brings up to date.
    :param source: URI prefix that was listed.
    :param options: what the transcripts are made with.
    :param run_uri: folder of this run in staging, without a slash at the end.
    :param manifest_id: 32 hex digits, a hash of everything that this run was asked to do.
    :param base_snapshot_id: snapshot of the table that the source was compared with; ``None``: no table yet.
    :param counts: files per change, and ``removed`` and ``unchanged``; ``unchanged_errors`` are those of the
        ``unchanged`` whose row is an error.
    :param audio_bytes: bytes of audio in the manifest.
    """

    table: str
    partition: dict[str, str]
    source: str
    options: WhisperOptions
    run_uri: str
    manifest_id: str
    base_snapshot_id: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    audio_bytes: int = 0

    @property
    def manifest_uri(self) -> str:
        """The audio to transcribe, :func:`manifest_schema`."""
        return f"{self.run_uri}/manifest.parquet"

    @property
    def removed_uri(self) -> str:
        """Rows to delete from the table, one column ``audio_uri``. Exists when ``counts["removed"]`` is not 0."""
        return f"{self.run_uri}/removed.parquet"

    @property
    def rows_uri(self) -> str:
        """Folder of the staged rows, Parquet files of :func:`transcript_schema`."""
        return f"{self.run_uri}/rows"

    @property
    def result_uri(self) -> str:
        """JSON that the job writes last: the staged files, and counts."""
        return f"{self.run_uri}/result.json"

    @property
    def report_uri(self) -> str:
        """JSON that validation writes."""
        return f"{self.run_uri}/report.json"

    @property
    def siblings_uri(self) -> str:
        """Folder that holds this run and all others of the same partition and fingerprint."""
        return self.run_uri.rsplit("/", 1)[0]

    @property
    def idempotency_key(self) -> str:
        """Stored in the snapshot that registers this run."""
        return f"{partition_path(self.partition)}#{self.manifest_id}"

    def to_metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata for the schema of the manifest."""
        values = dataclasses.asdict(self)
        values["options"] = json.loads(self.options.to_json())
        return {_RUN_METADATA_KEY: json.dumps(values, sort_keys=True).encode()}

    @classmethod
    def from_metadata(cls, metadata: typing.Mapping[bytes, bytes] | None) -> Run:
        """The inverse of :meth:`to_metadata`.

        :raises ValueError: when the metadata is not that of a manifest.
        """
        if not metadata or _RUN_METADATA_KEY not in metadata:
            raise ValueError("this Parquet file is no manifest: DiscoverAudioOperator did not write it")
        values = json.loads(metadata[_RUN_METADATA_KEY])
        values["options"] = WhisperOptions.from_dict(values["options"])
        return cls(**values)


_RUN_METADATA_KEY = b"whisper_spark.run"


def run_folder(staging: str, table: str, partition: typing.Mapping[str, str], fingerprint: str, manifest_id: str) -> str:
    """URI of a run's folder: ``STAGING/TABLE/PARTITION/FINGERPRINT/MANIFEST_ID``."""
    return "/".join([staging.rstrip("/"), table, partition_path(partition), fingerprint, manifest_id])


# --- Arrow schemas -----------------------------------------------------------------------------------

_MANIFEST_COLUMNS = frozenset(
    "audio_uri audio_etag audio_bytes last_modified change attempt language".split()
)
_TRANSCRIPT_COLUMNS = frozenset(f.name for f in dataclasses.fields(Transcript))


def manifest_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of a manifest: the audio that one run has to bring into one partition, largest file first."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("audio_bytes", pa.int64()),
            pa.field("last_modified", pa.timestamp("us", tz="UTC")),
            pa.field("change", pa.string(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("language", pa.string()),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )


def transcript_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of a transcript row, in staging and in the table. Times are seconds (float64)."""
    import pyarrow as pa

    word = pa.struct(
        [
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("word", pa.string()),
            pa.field("probability", pa.float64()),
        ]
    )
    segment = pa.struct(
        [
            pa.field("id", pa.int32()),
            pa.field("channel", pa.int32()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("text", pa.string()),
            pa.field("language", pa.string()),
            pa.field("avg_logprob", pa.float64()),
            pa.field("compression_ratio", pa.float64()),
            pa.field("no_speech_prob", pa.float64()),
            pa.field("words", pa.list_(pa.field("element", word))),
        ]
    )
    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("audio_bytes", pa.int64()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("language", pa.string()),
            pa.field("language_probability", pa.float64()),
            pa.field("duration_s", pa.float64()),
            pa.field("speech_s", pa.float64()),
            pa.field("channels", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("segments", pa.list_(pa.field("element", segment))),
            pa.field("quality_flags", pa.list_(pa.field("element", pa.string()))),
            pa.field("model", pa.string()),
            pa.field("fingerprint", pa.string()),
            pa.field("engine_version", pa.string()),
            pa.field("transcribed_at", pa.timestamp("us", tz="UTC")),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )
