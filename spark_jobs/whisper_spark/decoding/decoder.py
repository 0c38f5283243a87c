"""Windows of many files -> one batch -> text, scores and word times. Knows nothing of files.

Uses only CTranslate2's public API. Decoding is greedy first; every window is then judged. Those that greedy
decoding is unsure of go through beam search with the text before them, and those that fail the gate are
decoded again from scratch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from whisper_spark.audio.features import FULL_FRAMES, Features, LogMel
from whisper_spark.audio.windows import ChunkMap
from whisper_spark.contract import WhisperOptions, Word
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.encoder_output import Encoded, storage_view
from whisper_spark.decoding.model import load_weights
from whisper_spark.decoding.quality import compression_ratio
from whisper_spark.decoding.quality_gate import (
    WindowText,
    confirmed,
    credibility,
    is_echo,
    is_reliable,
    is_silence,
    is_unsure,
    misses_speech,
)
from whisper_spark.decoding.segments import words_of_window
from whisper_spark.progress.counters import stage

MAX_LENGTH = 448
"""Tokens that Whisper's decoder can hold, prompt included (openai/whisper ``n_text_ctx``)."""

MAX_NEW_TOKENS = MAX_LENGTH // 2
"""Tokens of text for one window (openai/whisper ``sample_len``)."""

_LONGEST_PROMPT = MAX_LENGTH // 2 - 1  # tokens of hot words and previous text, as in openai/whisper

MARGIN_FRAMES = 300
"""Padding behind the speech of a window, in frames of 10 ms, at least. Whisper was trained on 30 seconds;
with less, the encoder costs less, more than in proportion, but some windows loop or lose their end. The
quality gate catches those and decodes them again in full."""

LEAST_FRAMES = 1000
"""What the encoder sees at least, in frames of 10 ms. Below, words suffer that no gate can catch: on 150
prompts of 2 to 10 seconds, whisper-base made 298 word errors with 3 seconds of margin and 222 with 5."""

_STEP_FRAMES = 200  # contexts come in steps of 2 seconds, so that windows find others to share a batch with

_LARGE_BYTES = 1_000_000_000
# Weights of medium and larger models, a window of which takes a quarter of a gigabyte for cross attention.

_RETRY_BEAM = 5  # openai/whisper's default

_SURE_LANGUAGE = 0.9
_CANDIDATES = 4
_LEAST_CANDIDATE = 0.02
_LANGUAGE_WEIGHT = 0.1
_FAILED = -2.0
# Below 0.9 a detected language is checked against up to four candidates of at least 0.02. Each one's score is
# the average log probability of its tokens (-2 for a text that fails the quality gate) and a tenth of that of
# the language itself. Tuned on 130 telephone prompts in five languages with whisper-base.


@dataclass(frozen=True, slots=True)
class WindowTask:
    """A window waiting for the device.

    :param features: log-mel features, float32 of shape (mel bands, frames), 10 ms a frame, unpadded.
    :param map: where its chunks come from.
    :param context: frames that the encoder is to see, see :func:`context_frames`. All windows of a batch
        have the same, so that what is heard in one never depends on its neighbours.
    :param alone: no text before it will be known, as it is the first of its channel or as the options say.
    """

    features: Features
    map: ChunkMap
    context: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class FileLanguage:
    """The language of a file.

    :param language: Whisper language code.
    :param probability: that detection gave it.
    :param texts: of its windows, by position in their batch, where they were needed to decide.
    """

    language: str
    probability: float
    texts: Mapping[int, WindowText]


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

        self.options = options
        self.device = device
        self._model = load_weights(folder, options, device)
        self._weights_bytes = (folder / "model.bin").stat().st_size
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.features = LogMel(self._model.n_mels)
        self._for_language = lru_cache(maxsize=None)(self._make_tokenizer)
        self._preamble = self._prompt_tokens()

    @property
    def multilingual(self) -> bool:
        """Whether the model knows more than English."""
        return bool(self._model.is_multilingual)

    @property
    def batch_size(self) -> int:
        """Windows of 30 seconds in a batch: what the options say, or what suits device and model."""
        if self.options.batch_size:
            return self.options.batch_size
        if self.device.kind == "cuda":
            return 64
        return 2 if self._weights_bytes > _LARGE_BYTES else 4

    @property
    def window_bytes(self) -> int:
        """Bytes of the features of a window of 30 seconds."""
        return int(self._model.n_mels) * FULL_FRAMES * 4

    def encode(self, tasks: Sequence[WindowTask], *, full: bool = False) -> Encoded:
        """Run the encoder.

        :param full: pad to 30 seconds, whatever the context of the windows.
        """
        frames = FULL_FRAMES if full else max(task.context for task in tasks)
        batch = np.zeros((len(tasks), self._model.n_mels, frames), np.float32)
        for row, task in zip(batch, tasks, strict=True):
            row[:, : task.features.shape[1]] = task.features
        if self.device.kind == "cuda":
            return Encoded(self._model.encode(storage_view(batch)))
        # A CPU gains nothing from a wide encoder, and its attention takes 72 MB a window of whisper-base.
        rows = [Encoded(self._model.encode(storage_view(row[np.newaxis]))).on_host for row in batch]
        return Encoded.of(np.concatenate(rows))

    def language_probabilities(self, encoded: Encoded) -> list[dict[str, float]]:
        """Probability of each language, window by window."""
        results = self._model.detect_language(encoded.on_device)
        return [{token[2:-2]: float(probability) for token, probability in row} for row in results]

    def languages_of_files(
        self, encoded: Encoded, tasks: Sequence[WindowTask], files: Sequence[Sequence[int]]
    ) -> list[FileLanguage]:
        """The language of each file.

        The windows of a file vote with their seconds of speech. When that leaves it in doubt, the text
        decides: each candidate is decoded, and the one that gives the likeliest words wins.

        :param encoded: what :meth:`encode` gave for ``tasks``.
        :param files: the windows of each file, as positions in ``tasks``.
        """
        voters = sorted(i for file in files for i in file)  # of the other windows the language is known
        heads = self.language_probabilities(encoded.rows(voters))
        rows = dict(zip(voters, heads, strict=True))
        weights = [task.map.speech_seconds + 0.01 for task in tasks]
        votes = [vote([rows[i] for i in file], [weights[i] for i in file]) for file in files]
        candidates = [_candidates(ranking) for ranking in votes]
        # Candidates of many files together: one window at a time costs more than twice as much.
        trials = [
            (i, name) for file, names in zip(files, candidates, strict=True) for name in names for i in file
        ]
        if not trials:
            return [FileLanguage(*ranking[0], {}) for ranking in votes]
        heard = dict(zip(trials, self._tried(encoded, tasks, trials), strict=True))
        decided = []
        for file, ranking, names in zip(files, votes, candidates, strict=True):
            total = sum(weights[i] for i in file)
            scores = {name: _LANGUAGE_WEIGHT * math.log(p) for name, p in names.items()}
            for name, i in itertools.product(names, file):
                text = heard[i, name]
                sureness = text.avg_logprob if text.text and text.reliable else _FAILED  # loops are likely
                scores[name] += sureness * weights[i] / total
            best = max(scores, key=scores.__getitem__, default=ranking[0][0])
            known = {i: heard[i, best] for i in file if names}
            decided.append(FileLanguage(best, names.get(best, ranking[0][1]), known))
        return decided

    def _tried(
        self, encoded: Encoded, tasks: Sequence[WindowTask], trials: Sequence[tuple[int, str]]
    ) -> Iterator[WindowText]:
        """First texts of windows in given languages, in batches for which there is memory."""
        most = max(len(tasks), self.batch_size)
        for first in range(0, len(trials), most):
            windows, languages = zip(*trials[first : first + most], strict=True)
            own = [tasks[i] for i in windows]
            yield from self._generate(encoded.rows(windows), own, languages, self._first_attempt())

    def transcribe(
        self,
        encoded: Encoded,
        tasks: Sequence[WindowTask],
        languages: Sequence[str],
        known: Mapping[int, WindowText],
    ) -> list[WindowText]:
        """Text, scores and words of each window.

        What :meth:`is_unsure` has no words, and is to be refined. What is not ``reliable`` is to be decoded
        again; it has words if these are the reason.

        :param encoded: what :meth:`encode` gave for ``tasks``.
        :param languages: a Whisper language code for each window.
        :param known: what :meth:`languages_of_files` has decoded already, by position in ``tasks``.
        """
        found = {i: text for i, text in known.items() if text.language == languages[i]}
        missing = [i for i in range(len(tasks)) if i not in found]
        if missing:
            with stage("generate"):
                given = self._generate(
                    encoded.rows(missing),
                    [tasks[i] for i in missing],
                    [languages[i] for i in missing],
                    self._first_attempt(),
                )
            found.update(zip(missing, given, strict=True))
        texts = [found[i] for i in range(len(tasks))]
        final = [
            i
            for i, (text, task) in enumerate(zip(texts, tasks, strict=True))
            if text.reliable and not self.is_unsure(text, task)
        ]
        self._add_words(encoded, texts, tasks, final)
        return texts

    def is_unsure(self, text: WindowText, task: WindowTask) -> bool:
        """Whether the first text of a window is to be refined: greedy decoding was not sure of it."""
        first = self._first_attempt()
        if first.temperature or first.beam_size >= self.options.beam_size:
            return False
        return is_unsure(text, self.options, alone=task.alone)

    def refine(
        self,
        encoded: Features,
        tasks: Sequence[WindowTask],
        texts: Sequence[WindowText],
        before: Sequence[Sequence[int]],
    ) -> list[WindowText]:
        """The better of the first text and one by beam search, which is told the text before the window.

        Beam search costs several times as much as greedy decoding and hardly ever changes a text that
        greedy decoding is sure of. Knowing what was said before spares more errors than the beam does.

        :param encoded: what the encoder gave for these windows, of shape (windows, positions, width).
        :param texts: what :meth:`transcribe` gave.
        :param before: tokens of the text before each window, equally many for all of them.
        """
        rows = Encoded.of(encoded)
        with stage("generate"):
            again = self._generate(
                rows, tasks, [text.language for text in texts], _Attempt(self.options.beam_size), before
            )
        better = [
            first if self._is_echo(second, first, tokens) else self._better(first, second)
            for first, second, tokens in zip(texts, again, before, strict=True)
        ]
        self._add_words(rows, better, tasks, [i for i, text in enumerate(better) if text.reliable])
        return better

    def _is_echo(self, text: WindowText, first: WindowText, before: Sequence[int]) -> bool:
        return is_echo(text, first, self.tokenizer(text.language).decode(list(before)))

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
            rows, own = encoded.rows(open_), [tasks[i] for i in open_]
            again = self._generate(rows, own, [languages[i] for i in open_], attempt)
            self._add_words(rows, again, own, [i for i, text in enumerate(again) if text.reliable])
            settled: set[int] = set()  # silent, or confirmed by another try
            for i, text in zip(open_, again, strict=True):
                silent = is_silence(text, self.options)
                if silent or confirmed(text, texts[i], tasks[i].map.speech_seconds):
                    settled.add(i)
                texts[i] = text if silent else self._better(texts[i], text)
            open_ = [i for i in open_ if not texts[i].reliable and i not in settled]
        self._add_words(encoded, texts, tasks, [i for i, text in enumerate(texts) if text.words is None])
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
        return [token for text in texts for token in tokenizer.encode(" " + text)]

    def _prompt(self, language: str, timestamps: bool, before: Sequence[int] = ()) -> list[int]:
        tokenizer = self.tokenizer(language)
        said = self._preamble[-_LONGEST_PROMPT:]
        said = [*said, *before[len(before) - min(len(before), _LONGEST_PROMPT - len(said)) :]]
        opening = [tokenizer.sot_prev, *said] if said else []
        ending = [] if timestamps else [tokenizer.no_timestamps]
        return [*opening, *tokenizer.sot_sequence, *ending]

    # --- decoding and judging

    def _generate(
        self,
        encoded: Encoded,
        tasks: Sequence[WindowTask],
        languages: Sequence[str],
        attempt: _Attempt,
        before: Sequence[Sequence[int]] | None = None,
    ) -> list[WindowText]:
        options = self.options
        prompts = [
            self._prompt(language, attempt.timestamps, tokens)
            for language, tokens in zip(languages, before or [()] * len(tasks), strict=True)
        ]
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
            # CTranslate2 allows half of it, or what the prompt leaves if that is less.
            max_length=min(max(caps) + max(*caps, len(prompts[0])), MAX_LENGTH),
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
        self, sampled: bool, encoded: Encoded, prompts: list[list[int]], **settings: Any
    ) -> list[Any]:
        """What ``generate`` of the model gives; the best of several when sampling."""
        if not sampled:
            return list(self._model.generate(encoded.on_device, prompts, **settings))
        if self.device.kind == "cuda":
            settings["num_hypotheses"] = self.options.best_of
            return list(self._model.generate(encoded.on_device, prompts, **settings))
        # One after the other: together they would take so many times the memory, and hardly less time.
        tries = [
            self._model.generate(encoded.on_device, prompts, **settings) for _ in range(self.options.best_of)
        ]
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
        self, encoded: Encoded, texts: list[WindowText], tasks: Sequence[WindowTask], chosen: Iterable[int]
    ) -> None:
        """Give the chosen texts their words, where the options ask for them: words show what is missing."""
        if self.options.word_timestamps:
            with stage("align"):
                self._align(encoded, texts, tasks, chosen)

    def _align(
        self, encoded: Encoded, texts: list[WindowText], tasks: Sequence[WindowTask], chosen: Iterable[int]
    ) -> None:
        by_language: dict[str, list[int]] = {}
        for index in chosen:
            if texts[index].tokens:
                by_language.setdefault(texts[index].language, []).append(index)
            else:
                texts[index] = self._with_words(texts[index], [], tasks[index])
        for language, indices in by_language.items():  # align() takes one start sequence for all rows
            tokenizer = self.tokenizer(language)
            tokens = [list(texts[i].tokens) for i in indices]
            frames = [max(int(tasks[i].features.shape[1]), 2) for i in indices]
            rows = encoded.rows(indices)
            alignments = self._model.align(rows.on_device, tokenizer.sot_sequence, tokens, frames)
            for i, alignment in zip(indices, alignments, strict=True):
                words = words_of_window(alignment, texts[i].tokens, tokenizer, tasks[i].map)
                texts[i] = self._with_words(texts[i], words, tasks[i])

    def _with_words(self, text: WindowText, words: Sequence[Word], task: WindowTask) -> WindowText:
        incomplete = misses_speech(words, task.map, self.options)
        reliable = text.reliable and not incomplete
        return dataclasses.replace(text, words=tuple(words), incomplete=incomplete, reliable=reliable)


def _token_cap(seconds: float, timestamps: bool = False) -> int:
    """Tokens that this much speech can need. Fast speech in scripts that Whisper spells byte by byte reaches
    20 tokens a second; a loop would run on to 224 and take longer than everything else in the batch. A pair
    of timestamps for each second comes on top."""
    return min(MAX_NEW_TOKENS, 24 + int((22 if timestamps else 20) * seconds))


def context_frames(frames: int) -> int:
    """Frames that the encoder is to see for a window of so many: with margin, in steps of 2 seconds."""
    wanted = max(frames + MARGIN_FRAMES, LEAST_FRAMES)
    return min(FULL_FRAMES, -(-wanted // _STEP_FRAMES) * _STEP_FRAMES)


def _candidates(ranking: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Languages that a file may be in, with their probabilities; none when there is no doubt."""
    likely = {name: p for name, p in ranking[:_CANDIDATES] if p >= _LEAST_CANDIDATE}
    return {} if ranking[0][1] >= _SURE_LANGUAGE or len(likely) < 2 else likely


def vote(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Languages and their probability over windows of different weight, the most probable first."""
    total = sum(weights) or 1.0
    sums: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for language, probability in row.items():
            sums[language] = sums.get(language, 0.0) + probability * weight / total
    return sorted(((name, min(p, 1.0)) for name, p in sums.items()), key=lambda item: -item[1])
