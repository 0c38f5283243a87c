"""Windows of many files -> one batch -> text, scores and word times. Knows nothing of files.

Uses only CTranslate2's public API. Decoding is greedy first; every window is then judged. Those that greedy
decoding is unsure of go through beam search, and those that fail the gate are decoded again from scratch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import WINDOW_SECONDS, WhisperOptions
from whisper_spark.gate import WindowText, confirmed, credibility, is_reliable, is_silence, is_unsure
from whisper_spark.model import Device, load_weights
from whisper_spark.progress import stage
from whisper_spark.quality import compression_ratio
from whisper_spark.segments import words_of_window
from whisper_spark.speech import ChunkMap

Features = npt.NDArray[np.float32]

MAX_LENGTH = 448
"""Tokens that Whisper's decoder can hold, prompt included (openai/whisper ``n_text_ctx``)."""

MAX_NEW_TOKENS = MAX_LENGTH // 2
"""Tokens of text for one window (openai/whisper ``sample_len``)."""

MARGIN_FRAMES = 300
"""Padding behind the speech of a window, in frames of 10 ms, at least. Whisper was trained on 30 seconds;
with less, the encoder costs less, more than in proportion, but some windows loop or lose their end. The
quality gate catches those and decodes them again in full."""

LEAST_FRAMES = 1000
"""What the encoder sees at least, in frames of 10 ms. Below, words suffer that no gate can catch: on 150
prompts of 2 to 10 seconds, whisper-base made 298 word errors with 3 seconds of margin and 222 with 5."""

_STEP_FRAMES = 200  # contexts come in steps of 2 seconds, so that windows find others to share a batch with

FULL_FRAMES = int(WINDOW_SECONDS * 100)
"""What Whisper was trained on: 30 seconds, one frame of features every 10 ms."""

_RETRY_BEAM = 5  # openai/whisper's default

_SURE_LANGUAGE = 0.9
_CANDIDATES = 4
_LEAST_CANDIDATE = 0.02
_LANGUAGE_WEIGHT = 0.1
_NO_TEXT = -2.0
# Below 0.9 a detected language is checked against up to four candidates of at least 0.02. Each one's score is
# the average log probability of its tokens and a tenth of that of the language itself. Tuned on 130 telephone
# prompts in five languages with whisper-base.


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
class _Attempt:
    """One way to decode. The first is what the options say, the others are for suspects."""

    beam_size: int
    temperature: float = 0.0
    timestamps: bool = False


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
        return int(self._model.n_mels) * FULL_FRAMES * 4

    def features(self, samples: npt.NDArray[np.float32]) -> Features:
        """Log-mel features of at most 30 seconds of samples: float32 of shape (mel bands, frames)."""
        features = self._extract(samples)[..., :-1]  # the extractor pads 10 ms
        return np.ascontiguousarray(features[:, :FULL_FRAMES], dtype=np.float32)

    def encode(self, tasks: Sequence[WindowTask], *, full: bool = False) -> Any:
        """Run the encoder; the result stays on the device.

        :param full: pad to 30 seconds, whatever the context of the windows.
        """
        frames = FULL_FRAMES if full else max(task.context for task in tasks)
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

    def language_of_file(
        self, encoded: Any, tasks: Sequence[WindowTask], members: Sequence[int]
    ) -> tuple[str, float]:
        """The language of a file, and its probability by detection.

        Its windows vote with their seconds of speech. When that leaves it in doubt, the text decides: each
        candidate is decoded, and the one that gives the likeliest words wins. Of 130 telephone prompts,
        whisper-base took 6 for the wrong language by vote alone, and 2 like this.

        :param encoded: what :meth:`encode` gave for ``tasks``.
        :param members: the windows of the file among ``tasks``.
        """
        rows = _rows(encoded, members, len(tasks))
        own = [tasks[i] for i in members]
        weights = [task.map.speech_seconds + 0.01 for task in own]
        votes = vote(self.language_probabilities(rows), weights)
        candidates = {name: p for name, p in votes[:_CANDIDATES] if p >= _LEAST_CANDIDATE}
        if votes[0][1] >= _SURE_LANGUAGE or len(candidates) < 2:
            return votes[0]
        scores = {name: _LANGUAGE_WEIGHT * math.log(p) for name, p in candidates.items()}
        for name in candidates:
            texts = self._generate(rows, own, [name] * len(own), self._first_attempt())
            for text, weight in zip(texts, weights, strict=True):
                scores[name] += (text.avg_logprob if text.text else _NO_TEXT) * weight / sum(weights)
        best = max(scores, key=scores.__getitem__)
        return best, candidates[best]

    def transcribe(
        self, encoded: Any, tasks: Sequence[WindowTask], languages: Sequence[str]
    ) -> list[WindowText]:
        """Text, scores and words of each window. What is not ``reliable`` has no words: :meth:`retry` it.

        Greedy decoding first. What it is not sure of is decoded again by beam search, which costs several
        times as much and hardly ever changes a text that greedy decoding is sure of.

        :param encoded: what :meth:`encode` gave for ``tasks``.
        :param languages: a Whisper language code for each window.
        """
        options = self.options
        first = self._first_attempt()
        with stage("generate"):
            texts = self._generate(encoded, tasks, languages, first)
            unsure = [i for i, text in enumerate(texts) if is_unsure(text, options)]
            if unsure and not first.temperature and first.beam_size < options.beam_size:
                again = self._generate(
                    _rows(encoded, unsure, len(tasks)),
                    [tasks[i] for i in unsure],
                    [languages[i] for i in unsure],
                    _Attempt(options.beam_size),
                )
                for i, text in zip(unsure, again, strict=True):
                    texts[i] = self._better(texts[i], text)
        if options.word_timestamps:
            with stage("align"):
                self._add_words(encoded, texts, tasks, [i for i, text in enumerate(texts) if text.reliable])
        return texts

    def retry(self, tasks: Sequence[WindowTask], suspects: Sequence[WindowText]) -> list[WindowText]:
        """Decode suspects again, more and more patiently, and give the best of all tries with its words.

        First with the 30 seconds that Whisper was trained on, then by beam search, with timestamps, and at
        rising temperatures, until a text passes the gate, two tries agree, or the window proves silent.
        """
        texts, languages = list(suspects), [text.language for text in suspects]
        encoded = self.encode(tasks, full=True)
        open_ = list(range(len(texts)))
        for attempt in self._attempts(any(task.context < FULL_FRAMES for task in tasks)):
            if not open_:
                break
            again = self._generate(
                _rows(encoded, open_, len(tasks)),
                [tasks[i] for i in open_],
                [languages[i] for i in open_],
                attempt,
            )
            settled: set[int] = set()  # silent, or confirmed by another try
            for i, text in zip(open_, again, strict=True):
                silent = is_silence(text, self.options)
                if silent or confirmed(text, texts[i], tasks[i].map.speech_seconds):
                    settled.add(i)
                texts[i] = text if silent else self._better(texts[i], text)
            open_ = [i for i in open_ if not texts[i].reliable and i not in settled]
        if self.options.word_timestamps:
            self._add_words(encoded, texts, tasks, range(len(texts)))
        return texts

    def _better(self, one: WindowText, other: WindowText) -> WindowText:
        return max(one, other, key=lambda text: credibility(text, self.options))

    def _first_attempt(self) -> _Attempt:
        options = self.options
        greedy = options.greedy_log_prob_threshold is not None
        return _Attempt(1 if greedy else options.beam_size, options.temperature[0])

    def _attempts(self, short: bool) -> Iterator[_Attempt]:
        """What to try with suspects. ``short``: the first attempt saw less than 30 seconds."""
        first, beam = self._first_attempt(), max(_RETRY_BEAM, self.options.beam_size)
        if short:
            yield first
        if not first.temperature:
            yield _Attempt(beam)
            yield _Attempt(beam, timestamps=True)
        for temperature in self.options.temperature[1:]:
            yield _Attempt(1, temperature)

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

    def _prompt(self, language: str, timestamps: bool) -> list[int]:
        tokenizer = self.tokenizer(language)
        ending = [] if timestamps else [tokenizer.no_timestamps]
        return [*self._preamble, *tokenizer.sot_sequence, *ending]

    # --- decoding and judging

    def _generate(
        self, encoded: Any, tasks: Sequence[WindowTask], languages: Sequence[str], attempt: _Attempt
    ) -> list[WindowText]:
        options = self.options
        prompts = [self._prompt(language, attempt.timestamps) for language in languages]
        caps = [_token_cap(task.map.seconds, attempt.timestamps) for task in tasks]
        sampling: dict[str, Any] = {"beam_size": attempt.beam_size, "patience": options.patience}
        if attempt.temperature > 0:
            sampling = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": attempt.temperature}
        results = self._hypotheses(
            attempt.temperature > 0,
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
            self._judged(result, task, language, cap, attempt.temperature)
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
        reliable = is_reliable(judged, task.map.speech_seconds, self.options)
        return dataclasses.replace(judged, reliable=reliable)

    # --- word times

    def _add_words(
        self, encoded: Any, texts: list[WindowText], tasks: Sequence[WindowTask], chosen: Iterable[int]
    ) -> None:
        by_language: dict[str, list[int]] = {}
        for index in chosen:
            if texts[index].tokens:
                by_language.setdefault(texts[index].language, []).append(index)
            else:
                texts[index] = dataclasses.replace(texts[index], words=())
        for language, indices in by_language.items():  # align() takes one start sequence for all rows
            tokenizer = self.tokenizer(language)
            tokens = [list(texts[i].tokens) for i in indices]
            frames = [max(int(tasks[i].features.shape[1]), 2) for i in indices]
            rows = _rows(encoded, indices, len(texts))
            alignments = self._model.align(rows, tokenizer.sot_sequence, tokens, frames)
            for i, alignment in zip(indices, alignments, strict=True):
                words = words_of_window(alignment, texts[i].tokens, tokenizer, tasks[i].map)
                texts[i] = dataclasses.replace(texts[i], words=tuple(words))


def _token_cap(seconds: float, timestamps: bool = False) -> int:
    """Tokens that this much speech can need. Fast speech in scripts that Whisper spells byte by byte reaches
    20 tokens a second; a loop would run on to 224 and take longer than everything else in the batch. A pair
    of timestamps for each second comes on top."""
    return min(MAX_NEW_TOKENS, 24 + int((22 if timestamps else 20) * seconds))


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


def _rows(encoded: Any, indices: Sequence[int], of: int) -> Any:
    """Some of the rows of an encoded batch."""
    return encoded if len(indices) == of else _storage(_on_host(encoded)[list(indices)])


def context_frames(frames: int) -> int:
    """Frames that the encoder is to see for a window of so many: with margin, in steps of 2 seconds."""
    wanted = max(frames + MARGIN_FRAMES, LEAST_FRAMES)
    return min(FULL_FRAMES, -(-wanted // _STEP_FRAMES) * _STEP_FRAMES)


def vote(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Languages and their probability over windows of different weight, the most probable first."""
    total = sum(weights) or 1.0
    sums: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for language, probability in row.items():
            sums[language] = sums.get(language, 0.0) + probability * weight / total
    return sorted(((name, min(p, 1.0)) for name, p in sums.items()), key=lambda item: -item[1])
