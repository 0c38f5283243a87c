"""``WhisperOptions``: the options that determine the text of transcripts, and those that affect only speed.

Needs nothing but the standard library, so that a DAG file can import it cheaply.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from whisper_spark.contract.names import COMPUTE_TYPES, KNOWN_MODELS, LANGUAGES
from whisper_spark.contract.option_checks import check_values, did_you_mean, shown, typed

__all__ = ["COMPUTE_TYPES", "KNOWN_MODELS", "LANGUAGES", "WhisperOptions"]

# Raise it whenever a default below changes, because defaults are left out of the fingerprint.
_FINGERPRINT_VERSION = 3

# Options that have no effect unless ``diarize`` is on.
_SPEAKER_OPTIONS = (
    "min_speakers",
    "max_speakers",
    "speaker_model",
    "speaker_model_revision",
    "speaker_model_sha256",
)


def _speed(default: Any) -> Any:
    """A field that affects only speed, not the text, and is therefore not part of the fingerprint."""
    return field(default=default, metadata={"speed_only": True})


@dataclass(frozen=True, kw_only=True)
class WhisperOptions:
    """The options that determine the text of transcripts, and those that affect only speed.

    .. code-block:: python

        WhisperOptions(model="large-v3-turbo", language="en", channels="split")

    Field names are those of ``faster_whisper.WhisperModel.transcribe`` wherever the meaning is the same.

    :param model: a name that faster-whisper knows (``"large-v3-turbo"``), a repository on the model
        hub (``"org/name"``), a folder (``"/models/base"``), or an object-store URI
        (``"s3://models/base/"``), which each host fetches once.
    :param revision: branch, tag or commit of a hub repository.
    :param model_sha256: expected SHA-256 of ``model.bin`` in hex, which does not cover
        ``tokenizer.json`` and the other files beside it. Checked before loading; it then also
        identifies the model in :meth:`fingerprint`, so moving the weights does not make transcripts stale.
    :param language: Whisper language code, or ``None`` to detect it for each file.
    :param task: ``"transcribe"``, or ``"translate"`` into English.
    :param multilingual: detect the language again for every window, for files that mix languages.
    :param word_timestamps: give each segment its words with start, end (seconds) and probability. They also
        reveal speech that is missing from the text: such windows are decoded again, and files that still lack
        words get the flag ``missed_speech``.
    :param vad: transcribe only what the Silero voice activity detector detects as speech.
    :param vad_threshold: speech probability from which a 32 ms frame counts as speech, 0 to 1.
    :param vad_min_silence_ms: a pause at least this long (milliseconds) separates two speech regions.
    :param vad_speech_pad_ms: audio kept on both sides of a speech region, in milliseconds.
    :param chunk_length: longest window that Whisper sees at once, in seconds, 5 to 30. Whisper's cost grows
        faster than the length of its window.
    :param channels: ``"mix"`` averages all channels of the default track; ``"split"`` transcribes each
        channel of all tracks separately and sets ``channel`` in each segment, for calls with one speaker per
        channel.
    :param diarize: tell speakers apart: segments and words get ``speaker``, and segments end where the
        speaker changes. Needs ``speaker_model``, ``word_timestamps`` and ``vad``.
    :param min_speakers: least number of speakers in a file, or in each channel with ``channels="split"``;
        ``None``: one.
    :param max_speakers: largest number of speakers; ``None``: as many as are heard, 100 at most.
    :param speaker_model: the ONNX model that turns speech into speaker embeddings: a folder or an
        object-store URI that holds one ``.onnx`` file, or a repository on the model hub, see
        ``docs/speakers.md``. Without ``diarize`` this and the options around it have no effect.
    :param speaker_model_revision: branch, tag or commit of a hub repository.
    :param speaker_model_sha256: expected SHA-256 of the ``.onnx`` file in hex. It then also identifies the
        model in :meth:`fingerprint`.
    :param initial_prompt: text in the desired style and spelling, given to every window. Whisper sees the
        last 223 tokens of hot words and prompt together.
    :param hotwords: words to prefer, given to every window as part of the prompt.
    :param beam_size: beams for windows whose greedy text is below ``greedy_log_prob_threshold``; 1 disables
        beam search for them. Whisper's own default of 5 takes longer and gives no fewer errors here
        (``benchmarks/RESULTS.md``).
    :param greedy_log_prob_threshold: greedy text with at least this average log probability per token is
        kept; other windows are decoded again with ``beam_size``. For windows without known previous text the
        threshold is 1.5 times this value. ``None``: beam search for every window from the start, without the
        text before it.
    :param condition_on_previous_text: windows that are decoded again with beam search get the text before
        them as a prompt, which tells Whisper names, spelling and style. Only text of the first, greedy
        decoding that passed the quality gate is used.
    :param best_of: candidates when sampling at a temperature above 0.
    :param patience: beam search patience (arXiv:2204.05424).
    :param length_penalty: exponential length penalty of beam search.
    :param repetition_penalty: above 1 penalises tokens already used.
    :param no_repeat_ngram_size: forbid repeating n-grams of this size; 0 is off.
    :param temperature: one to twenty numbers from 0 to 1. The first is used for all windows, the others are
        tried in turn for windows that fail the quality gate.
    :param compression_ratio_threshold: gzip ratio above which text counts as a loop (openai/whisper: 2.4).
    :param log_prob_threshold: average token log probability below which text is suspect (openai/whisper: -1).
    :param no_speech_threshold: no-speech probability above which a window with suspect text is silence
        (openai/whisper: 0.6).
    :param suppress_blank: forbid an empty first token.
    :param suppress_tokens: token ids never to produce; -1 stands for Whisper's non-speech symbols. ``()`` or
        ``None`` suppress nothing.
    :param max_duration_s: longer files (seconds) become an error row ``too_long``.
    :param transform: a function that each transcript passes through before any of it is written anywhere,
        as ``"package.module:function@version"``. It runs on the executors, and takes and returns a
        :class:`Transcript`, of which text and segments are kept, see ``docs/redaction.md``. The version is
        that of its attribute ``version``; a function with another version is refused.
    :param compute_type: CTranslate2 weight type. ``"auto"`` is float16 on a GPU, int8_float32 or float32 on
        one without fast float16 (before compute capability 7.0), and int8 on a CPU.
    :param device: ``"auto"`` takes the GPU that Spark assigned, else a CPU. Not in the fingerprint.
    :param batch_size: windows of 30 seconds decoded together, or a larger number of shorter ones. ``None``
        picks 64 on a GPU, or what fits into its free memory, and on a CPU 4, or 2 for medium and larger
        models: each window takes 40 MB there with base and half a gigabyte with large-v3. Reduced to the
        largest batch that CTranslate2 computes correctly: 95 with 20 attention heads, as large-v3 and turbo
        have. Not in the fingerprint, and neither are the options below.
    :param cpu_threads: threads of one decoder on a CPU; ``None``: one.
    :param num_workers: decoders that share one copy of the weights. ``None``: on a GPU that no other task
        shares, two from four cores on, three from twelve and four from sixteen (at most three of large
        models), if its memory has room for their batches, else one. On a CPU one for each core that Spark
        gave the task (``spark.task.cpus``), or without Spark for each core of the machine.
    :param prefetch_files: files fetched and decoded ahead of the device.
    :param prefetch_bytes: bytes of features that may wait for the device; ``None``: four batches for each
        decoder, 32 MiB at least and 390 MB for large-v3 for each decoder on a GPU.
    :param prefetch_processes: processes that fetch files, decode them and detect speech, at most
        ``prefetch_files``; each takes about 100 MB. 0: threads do this. ``None``: one process for each core,
        up to 16, on a GPU with four or more cores; otherwise threads.
    :param transform_timeout_s: longest time, in seconds, that ``transform`` may take for one transcript.
        Its process is ended then, and the file's row is the error ``transform_failed``.
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
    chunk_length: float = 20.0
    channels: Literal["mix", "split"] = "mix"
    diarize: bool = False
    min_speakers: int | None = None
    max_speakers: int | None = None
    speaker_model: str | None = None
    speaker_model_revision: str | None = None
    speaker_model_sha256: str | None = None
    initial_prompt: str | None = None
    hotwords: str | None = None
    beam_size: int = 3
    greedy_log_prob_threshold: float | None = -0.13
    condition_on_previous_text: bool = True
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
    transform: str | None = None
    compute_type: str = "auto"
    device: Literal["auto", "cuda", "cpu"] = _speed("auto")
    batch_size: int | None = _speed(None)
    cpu_threads: int | None = _speed(None)
    num_workers: int | None = _speed(None)
    prefetch_files: int = _speed(16)
    prefetch_bytes: int | None = _speed(None)
    prefetch_processes: int | None = _speed(None)
    transform_timeout_s: float = _speed(600.0)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(WhisperOptions)
        values = {name: typed(name, getattr(self, name), hint) for name, hint in hints.items()}
        check_values(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def fingerprint(self) -> str:
        """A hash of the options that change the text, as 16 hex digits.

        Equal options give equal fingerprints on every machine and in every release, however their values are
        written: ``temperature=0`` equals ``(0.0,)``. Fields at their default are left out, so that a release
        that adds a field does not make all transcripts stale.
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
        if self.speaker_model_sha256:
            changed.pop("speaker_model", None)
            changed.pop("speaker_model_revision", None)
        if not self.diarize:
            changed = {name: value for name, value in changed.items() if name not in _SPEAKER_OPTIONS}
        canonical = json.dumps([_FINGERPRINT_VERSION, changed], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """All fields as one JSON object, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> WhisperOptions:
        """The inverse of :meth:`to_json`.

        :raises ValueError: when the text is not a JSON object, or names a field that does not exist.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Whisper options are not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"Whisper options must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> WhisperOptions:
        """Options from a mapping, for example from Airflow Params.

        :raises ValueError: when a key is not an option; the message names the closest one.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ValueError(f"unknown Whisper option {shown(name)}{did_you_mean(str(name), known)}")
        return cls(**values)


def speed_options(options: WhisperOptions, overrides: dict[str, Any]) -> WhisperOptions:
    """A copy of the options with other values for options that affect only speed.

    :raises ValueError: for an option that changes the text: those are fixed by the manifest.
    """
    speed = {f.name for f in dataclasses.fields(WhisperOptions) if f.metadata.get("speed_only")}
    changed = {**json.loads(options.to_json()), **overrides}
    # Validate first: an unknown option gets its own message.
    result = WhisperOptions.from_dict(changed)
    others = sorted(set(overrides) - speed)
    if others:
        raise ValueError(
            f"{', '.join(others)} cannot be changed here: the manifest was made for certain options, and "
            f"these change the text. Run discovery again with other options, or change only "
            f"{', '.join(sorted(speed))}"
        )
    return result
