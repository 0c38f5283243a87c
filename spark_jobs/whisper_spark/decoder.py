"""Windows of many files -> one batch -> text, scores and word times. Knows nothing of files.

Uses only CTranslate2's public API. Decoding is greedy first; every window is then judged, and those that
fail are decoded again by beam search and at rising temperatures, as openai/whisper does, keeping the best.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import WINDOW_SECONDS, WhisperOptions, Word
from whisper_spark.model import Device, load_weights
from whisper_spark.progress import count, stage
from whisper_spark.quality import MIN_SPEECH_S, compression_ratio, phrase_words, repeated_phrase
from whisper_spark.segments import words_of_window
from whisper_spark.speech import ChunkMap

Features = npt.NDArray[np.float32]

MAX_LENGTH = 448
"""Tokens that Whisper's decoder can hold, prompt included (openai/whisper ``n_text_ctx``)."""

MAX_NEW_TOKENS = MAX_LENGTH // 2
"""Tokens of text for one window (openai/whisper ``sample_len``)."""

MARGIN_FRAMES = 400
"""Padding behind the speech of a window, in frames of 10 ms, at least. Whisper was trained on 30 seconds;
with less, the encoder costs less in proportion, but some windows loop or lose their end. The quality gate
catches those and decodes them again in full."""

_STEP_FRAMES = 500  # contexts come in steps of 5 seconds, so that windows find others to share a batch with

_FRAMES = int(WINDOW_SECONDS * 100)  # one frame of features every 10 ms
_RETRY_BEAM = 5  # openai/whisper's default


@dataclass(frozen=True, slots=True)
class WindowTask:
    """A window waiting for the device.

    :param features: log-mel features, float32 of shape (mel bands, frames), 10 ms a frame, unpadded.
    :param map: where its chunks come from.
    :param context: frames that the encoder is to see, see :func:`context_frames`. All windows of a batch
        have the same, so that what is heard in one never depends on its neighbours.
    """

    features: Features
    map: ChunkMap
    context: int


@dataclass(frozen=True, slots=True)
class WindowText:
    """What was said in one window.

    :param tokens: text tokens, without special ones.
    :param avg_logprob: log probability of a token, on average.
    :param no_speech_prob: probability that nothing was said.
    :param capped: all tokens that were allowed are used up.
    :param reliable: passed the quality gate.
    :param start: first moment of speech in it, in seconds of the file.
    :param end: last moment of speech in it, in seconds of the file.
    :param words: with times in the file; ``None`` when word timestamps are off.
    """

    tokens: tuple[int, ...]
    text: str
    language: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    capped: bool
    reliable: bool
    start: float
    end: float
    words: tuple[Word, ...] | None = None


class WindowDecoder:
    """A loaded model. Its methods may be called from several threads at once."""

    def __init__(self, options: WhisperOptions, folder: Path, device: Device) -> None:
        import tokenizers
        from faster_whisper.feature_extractor import FeatureExtractor

        self.options = options
        self.device = device
        self._model = load_weights(folder, options, device)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._extract = FeatureExtractor(feature_size=self._model.n_mels)
        self._for_language = lru_cache(maxsize=None)(self._make_tokenizer)
        self._preamble = self._prompt_tokens()

    @property
    def multilingual(self) -> bool:
        """Whether the model knows more than English."""
        return bool(self._model.is_multilingual)

    @property
    def window_bytes(self) -> int:
        """Bytes of the features of a window of 30 seconds."""
        return int(self._model.n_mels) * _FRAMES * 4

    def features(self, samples: npt.NDArray[np.float32]) -> Features:
        """Log-mel features of at most 30 seconds of samples: float32 of shape (mel bands, frames)."""
        features = self._extract(samples)[..., :-1]  # the extractor pads 10 ms
        return np.ascontiguousarray(features[:, :_FRAMES], dtype=np.float32)

    def encode(self, tasks: Sequence[WindowTask], *, full: bool = False) -> Any:
        """Run the encoder; the result stays on the device.

        :param full: pad to 30 seconds, whatever the context of the windows.
        """
        frames = _FRAMES if full else max(task.context for task in tasks)
        batch = np.zeros((len(tasks), self._model.n_mels, frames), np.float32)
        for row, task in zip(batch, tasks, strict=True):
            row[:, : task.features.shape[1]] = task.features
        if self.device.kind == "cuda":
            return self._model.encode(_storage(batch))
        # A CPU gains nothing from a wide encoder, and its attention takes 72 MB a window of whisper-base.
        rows = [_on_host(self._model.encode(_storage(row[np.newaxis]))) for row in batch]
        return _storage(np.concatenate(rows))

    def language_probabilities(self, encoded: Any) -> list[dict[str, float]]:
        """Probability of each language, window by window."""
        results = self._model.detect_language(encoded)
        return [{token[2:-2]: float(probability) for token, probability in row} for row in results]

    def transcribe(
        self, encoded: Any, tasks: Sequence[WindowTask], languages: Sequence[str]
    ) -> list[WindowText]:
        """Text, scores and words of each window.

        :param encoded: what :meth:`encode` gave for ``tasks``.
        :param languages: a Whisper language code for each window.
        """
        options = self.options
        with stage("generate"):
            texts = self._generate(
                encoded, tasks, languages, beam_size=options.beam_size, temperature=options.temperature[0]
            )
        count("retried_windows", sum(not text.reliable for text in texts))
        with stage("retry", whole=True):
            self._retry(texts, tasks, languages)
        if options.word_timestamps:
            with stage("align"):
                self._add_words(encoded, texts, tasks)
        return texts

    # --- prompts and tokenizers

    def tokenizer(self, language: str) -> Any:
        """faster-whisper's tokenizer for a language."""
        return self._for_language(language)

    def _make_tokenizer(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._tokenizer, self.multilingual, task=self.options.task, language=language)

    def _prompt_tokens(self) -> list[int]:
        """Hot words and initial prompt, in the place where Whisper expects the text so far."""
        tokenizer = self.tokenizer("en")
        texts = [text.strip() for text in (self.options.hotwords, self.options.initial_prompt) if text]
        tokens = [token for text in texts for token in tokenizer.encode(" " + text)]
        return [tokenizer.sot_prev, *tokens[-(MAX_LENGTH // 2 - 1) :]] if tokens else []

    def _prompt(self, language: str) -> list[int]:
        tokenizer = self.tokenizer(language)
        return [*self._preamble, *tokenizer.sot_sequence, tokenizer.no_timestamps]

    # --- decoding and judging

    def _generate(
        self,
        encoded: Any,
        tasks: Sequence[WindowTask],
        languages: Sequence[str],
        *,
        beam_size: int,
        temperature: float,
    ) -> list[WindowText]:
        options = self.options
        prompts = [self._prompt(language) for language in languages]
        caps = [_token_cap(task.map.seconds) for task in tasks]
        sampling: dict[str, Any] = {"beam_size": beam_size, "patience": options.patience}
        if temperature > 0:
            sampling = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": temperature}
        results = self._hypotheses(
            temperature > 0,
            encoded,
            prompts,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            max_length=min(len(prompts[0]) + max(caps), MAX_LENGTH),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=options.suppress_blank,
            suppress_tokens=list(options.suppress_tokens),
            **sampling,
        )
        return [
            self._judged(result, task, language, cap, temperature)
            for result, task, language, cap in zip(results, tasks, languages, caps, strict=True)
        ]

    def _hypotheses(
        self, sampled: bool, encoded: Any, prompts: list[list[int]], **settings: Any
    ) -> list[Any]:
        """What ``generate`` of the model gives; the best of several when sampling."""
        if not sampled:
            return list(self._model.generate(encoded, prompts, **settings))
        if self.device.kind == "cuda":
            settings["num_hypotheses"] = self.options.best_of
            return list(self._model.generate(encoded, prompts, **settings))
        # One after the other: together they would take so many times the memory, and hardly less time.
        tries = [self._model.generate(encoded, prompts, **settings) for _ in range(self.options.best_of)]
        return [max(rows, key=lambda row: row.scores[0]) for rows in zip(*tries, strict=True)]

    def _judged(
        self, result: Any, task: WindowTask, language: str, cap: int, temperature: float
    ) -> WindowText:
        tokenizer = self.tokenizer(language)
        ids = result.sequences_ids[0][:cap]  # the batch was allowed what its longest window needs
        score = result.scores[0] * len(ids) ** self.options.length_penalty / (len(ids) + 1)
        tokens = tuple(token for token in ids if token < tokenizer.eot)
        text = tokenizer.decode(tokens).strip()
        judged = WindowText(
            tokens=tokens,
            text=text,
            language=language,
            avg_logprob=float(score),
            no_speech_prob=float(result.no_speech_prob),
            compression_ratio=compression_ratio(text),
            temperature=temperature,
            capped=len(ids) >= cap,
            reliable=True,
            start=round(task.map.span_in_file(0.0, 0.0)[0], 3),
            end=round(task.map.span_in_file(task.map.seconds, task.map.seconds)[1], 3),
        )
        return dataclasses.replace(judged, reliable=self._is_reliable(judged, task))

    def _is_reliable(self, text: WindowText, task: WindowTask) -> bool:
        options = self.options
        if not text.text:
            return task.map.speech_seconds < MIN_SPEECH_S
        if text.capped or repeated_phrase(phrase_words(text.text)):
            return False
        if (
            options.compression_ratio_threshold
            and text.compression_ratio > options.compression_ratio_threshold
        ):
            return False
        return options.log_prob_threshold is None or text.avg_logprob >= options.log_prob_threshold

    def is_silence(self, text: WindowText) -> bool:
        """openai/whisper's rule: probably no speech, and what was heard is not credible."""
        options = self.options
        if options.no_speech_threshold is None or text.no_speech_prob <= options.no_speech_threshold:
            return False
        return options.log_prob_threshold is None or text.avg_logprob < options.log_prob_threshold

    def _retry(self, texts: list[WindowText], tasks: Sequence[WindowTask], languages: Sequence[str]) -> None:
        """Decode suspects again, and put the best of all tries into ``texts``."""
        first = (self.options.beam_size, self.options.temperature[0])
        steps = [first] if any(task.context < _FRAMES for task in tasks) else []
        if first[1] == 0 and first[0] < _RETRY_BEAM:
            steps.append((_RETRY_BEAM, 0.0))
        steps += [(1, temperature) for temperature in self.options.temperature[1:]]
        settled: set[int] = set()  # two tries agree on what only sounds like a loop: lists, numbers, menus
        for beam_size, temperature in steps:
            suspects = [i for i, text in enumerate(texts) if not text.reliable and i not in settled]
            if not suspects:
                return
            chosen = [tasks[i] for i in suspects]
            again = self._generate(
                self.encode(chosen, full=True),
                chosen,
                [languages[i] for i in suspects],
                beam_size=beam_size,
                temperature=temperature,
            )
            for i, text in zip(suspects, again, strict=True):
                if _agree(text, texts[i]) and _plausible_rate(text, tasks[i]):
                    settled.add(i)
                texts[i] = max(texts[i], text, key=self._credibility)

    def _credibility(self, text: WindowText) -> tuple[bool, bool, bool, float]:
        threshold = self.options.compression_ratio_threshold or float("inf")
        looping = text.capped or text.compression_ratio > threshold
        return text.reliable, not looping, bool(text.text), text.avg_logprob

    # --- word times

    def _add_words(self, encoded: Any, texts: list[WindowText], tasks: Sequence[WindowTask]) -> None:
        by_language: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            if text.tokens:
                by_language.setdefault(text.language, []).append(index)
            else:
                texts[index] = dataclasses.replace(text, words=())
        for language, indices in by_language.items():  # align() takes one start sequence for all rows
            tokenizer = self.tokenizer(language)
            rows = encoded if len(indices) == len(texts) else _rows(encoded, indices)
            tokens = [list(texts[i].tokens) for i in indices]
            frames = [max(int(tasks[i].features.shape[1]), 2) for i in indices]
            alignments = self._model.align(rows, tokenizer.sot_sequence, tokens, frames)
            for i, alignment in zip(indices, alignments, strict=True):
                words = words_of_window(alignment, texts[i].tokens, tokenizer, tasks[i].map)
                texts[i] = dataclasses.replace(texts[i], words=tuple(words))


_MOST_TOKENS_PER_SECOND = 8.0
# Of detected speech. Conversation has 3 to 5; a loop fills a window with many more.


def _agree(one: WindowText, other: WindowText) -> bool:
    """Whether two tries heard the same but for a word in ten."""
    words = phrase_words(one.text), phrase_words(other.text)
    return difflib.SequenceMatcher(None, *words, autojunk=False).ratio() >= 0.9


def _plausible_rate(text: WindowText, task: WindowTask) -> bool:
    most = _MOST_TOKENS_PER_SECOND * task.map.speech_seconds
    return bool(text.text) and not text.capped and len(text.tokens) <= most


def _token_cap(seconds: float) -> int:
    """Tokens that this much speech can need. Fast speech in scripts that Whisper spells byte by byte reaches
    20 tokens a second; a loop would run on to 224 and take longer than everything else in the batch."""
    return min(MAX_NEW_TOKENS, 24 + int(20 * seconds))


def _storage(array: Features) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array))


def _on_host(encoded: Any) -> Features:
    import ctranslate2

    if encoded.device != "cpu":
        encoded = encoded.to_device(ctranslate2.Device.cpu)
    if encoded.dtype == ctranslate2.DataType.bfloat16:  # NumPy has no such type
        encoded = encoded.to(ctranslate2.DataType.float32)
    return np.array(encoded)


def _rows(encoded: Any, indices: Sequence[int]) -> Any:
    return _storage(_on_host(encoded)[list(indices)])


def context_frames(frames: int) -> int:
    """Frames that the encoder is to see for a window of so many: with margin, in steps of 5 seconds."""
    return min(_FRAMES, -(-(frames + MARGIN_FRAMES) // _STEP_FRAMES) * _STEP_FRAMES)


def vote(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> tuple[str, float]:
    """The language of a file, and its probability: windows vote with their seconds of speech."""
    total = sum(weights) or 1.0
    sums: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for language, probability in row.items():
            sums[language] = sums.get(language, 0.0) + probability * weight / total
    best = max(sums, key=sums.__getitem__)
    return best, min(sums[best], 1.0)
