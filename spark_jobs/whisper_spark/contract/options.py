"""``WhisperOptions``: everything that decides what a transcript says, and how the work is done.

Needs nothing but the standard library, so that a DAG file can import it.
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
    :param model_sha256: expected SHA-256 of ``model.bin`` in hex, which does not cover
        ``tokenizer.json`` and the other files beside it. Checked before loading; it then also
        identifies the model in :meth:`fingerprint`, so moving the weights does not make transcripts stale.
    :param language: Whisper language code, or ``None`` to detect it for each file.
    :param task: ``"transcribe"``, or ``"translate"`` into English.
    :param multilingual: detect the language again for every window, for files that mix languages.
    :param word_timestamps: give each segment its words with start, end (seconds) and probability. They also
        show speech that a text leaves out: it is decoded again, and what stays without words is flagged.
    :param vad: transcribe only what the Silero voice activity detector takes for speech.
    :param vad_threshold: speech probability from which a 32 ms frame counts as speech, 0 to 1.
    :param vad_min_silence_ms: a pause at least this long (milliseconds) separates two speech regions.
    :param vad_speech_pad_ms: kept on both sides of a speech region, in milliseconds.
    :param chunk_length: longest window that Whisper sees at once, in seconds, 5 to 30. Whisper's cost grows
        faster than the length of its window.
    :param channels: ``"mix"`` averages all channels of the track that players play; ``"split"``
        transcribes each channel of all tracks by itself and
        segments carry the channel, as calls with one speaker per channel need.
    :param initial_prompt: text in the style and spelling wanted, given to every window. Whisper sees the last
        223 tokens of hot words and prompt together.
    :param hotwords: words to prefer, given to every window as part of the prompt.
    :param beam_size: beams for windows that greedy decoding is not sure of; 1 decodes greedily throughout.
        Five, Whisper's own default, cost more and spare no errors here (``benchmarks/RESULTS.md``).
    :param greedy_log_prob_threshold: greedy text at least this sure (average log probability of a token) is
        kept, the rest is decoded again with ``beam_size``. Where no text before the window is known, the
        threshold is half as much again. ``None``: beam search at once for every window, without the text
        before it.
    :param condition_on_previous_text: such windows are given the text before them, which tells Whisper names,
        spelling and style. Only text that passed the quality gate, and only of the first, greedy decoding.
    :param best_of: candidates when sampling at a temperature above 0.
    :param patience: beam search patience (arXiv:2204.05424).
    :param length_penalty: exponential length penalty of beam search.
    :param repetition_penalty: above 1 penalises tokens already used.
    :param no_repeat_ngram_size: forbid repeating n-grams of this size; 0 is off.
    :param temperature: the first is that of all windows, the others are tried in turn for those that fail the
        quality gate. One to twenty numbers from 0 to 1.
    :param compression_ratio_threshold: gzip ratio above which text counts as a loop (openai/whisper: 2.4).
    :param log_prob_threshold: average token log probability below which text is suspect (openai/whisper: -1).
    :param no_speech_threshold: no-speech probability above which a window with suspect text is silence
        (openai/whisper: 0.6).
    :param suppress_blank: forbid an empty first token.
    :param suppress_tokens: token ids never to produce; -1 stands for Whisper's non-speech symbols. ``()`` or
        ``None`` suppress nothing.
    :param max_duration_s: longer files (seconds) become an error row ``too_long``.
    :param compute_type: CTranslate2 weight type; ``"auto"`` is float16 on a GPU and int8 on a CPU.
    :param device: ``"auto"`` takes the GPU that Spark assigned, else a CPU. Not in the fingerprint.
    :param batch_size: windows of 30 seconds decoded together, or more shorter ones in their place; ``None``
        picks 64 on a GPU, or what fits into its free memory, and on a CPU 4, or 2 for medium and larger
        models: each takes 40 MB there with base and half a gigabyte with large-v3. Cut to what CTranslate2
        computes right: 95 with 20 attention heads, as large-v3 and turbo have. Not in the fingerprint, nor
        are those that follow.
    :param cpu_threads: threads of one decoder on a CPU; ``None``: one.
    :param num_workers: decoders that share one copy of the weights; ``None``: one on a GPU, and on a CPU one
        for each core that Spark gave the task (``spark.task.cpus``), or each of the machine without Spark.
    :param prefetch_files: files fetched and decoded ahead of the device.
    :param prefetch_bytes: bytes of features that may wait for the device; ``None``: four batches for each
        decoder, 32 MiB at least and 390 MB for large-v3 on a GPU.
    :param prefetch_processes: processes that fetch, decode and cut files, each some 100 MB, at most
        ``prefetch_files``; 0: threads do. ``None``: one for each core, up to 16, where a GPU has six or more.
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
    compute_type: str = "auto"
    device: Literal["auto", "cuda", "cpu"] = _speed("auto")
    batch_size: int | None = _speed(None)
    cpu_threads: int | None = _speed(None)
    num_workers: int | None = _speed(None)
    prefetch_files: int = _speed(16)
    prefetch_bytes: int | None = _speed(None)
    prefetch_processes: int | None = _speed(None)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(WhisperOptions)
        values = {name: typed(name, getattr(self, name), hint) for name, hint in hints.items()}
        check_values(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def fingerprint(self) -> str:
        """16 hex digits that name the text-changing part of these options.

        Equal options give equal fingerprints on every machine and in every release, however their values are
        written: ``temperature=0`` is ``(0.0,)``. Fields at their
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
        except (ValueError, RecursionError) as error:
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
                raise ValueError(f"unknown Whisper option {shown(name)}{did_you_mean(str(name), known)}")
        return cls(**values)


def speed_options(options: WhisperOptions, overrides: dict[str, Any]) -> WhisperOptions:
    """The options with other values for what changes only speed.

    :raises ValueError: for an option that would change the text: the manifest has decided on those.
    """
    speed = {f.name for f in dataclasses.fields(WhisperOptions) if f.metadata.get("speed_only")}
    changed = {**json.loads(options.to_json()), **overrides}
    result = WhisperOptions.from_dict(changed)  # names unknown options first
    others = sorted(set(overrides) - speed)
    if others:
        raise ValueError(
            f"{', '.join(others)} cannot be changed here: the manifest was made for certain options, and "
            f"these change the text. Run discovery again with other options, or change only "
            f"{', '.join(sorted(speed))}"
        )
    return result
