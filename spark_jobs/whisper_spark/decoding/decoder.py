"""Decodes a batch of windows to texts with scores and word timestamps. Does not know files.

Uses only CTranslate2's public API. Decoding is greedy first, and the quality gate checks every text. Windows
with a low average log probability are refined by beam search with the text before them, and those that fail
the gate are decoded again from scratch. ``docs/how-it-decodes.md`` explains why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whisper_spark.audio.features import FULL_FRAMES, LogMel
from whisper_spark.audio.windows import Window
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.alignment import Aligner
from whisper_spark.decoding.batch_size import (
    choose_batch_size,
    free_gpu_bytes,
    total_gpu_bytes,
    with_fitting_workers,
)
from whisper_spark.decoding.calls import Model
from whisper_spark.decoding.contexts import context_frames, context_lengths
from whisper_spark.decoding.device import Device, choose_compute_type
from whisper_spark.decoding.encoder_output import Encoded, EncodedRow, gathered
from whisper_spark.decoding.language import FileLanguage, languages_of_files
from whisper_spark.decoding.model import load_weights
from whisper_spark.decoding.model_shape import read_shape
from whisper_spark.decoding.passes import (
    MAX_LENGTH,
    DecodingPass,
    first_pass,
    refining_pass,
    retry_passes,
    token_cap,
)
from whisper_spark.decoding.prompts import Prompts
from whisper_spark.decoding.quality import compression_ratio
from whisper_spark.decoding.quality_gate import (
    confirmed,
    credibility,
    is_doubled,
    is_echo,
    is_reliable,
    is_silence,
    is_unsure,
)
from whisper_spark.decoding.vocabulary import check_options, load_tokenizer
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.progress.counters import stage


class WindowDecoder:
    """A loaded model that decodes windows. Thread-safe.

    :param folder: folder of the model, see :func:`~whisper_spark.decoding.model.find_model`.
    :ivar batch_size: number of windows of 30 seconds in a batch; more fit if they are shorter.
    :raises ModelError: when the model cannot be loaded, or lacks a token that the options need.
    """

    def __init__(self, options: WhisperOptions, folder: Path, device: Device) -> None:
        options = dataclasses.replace(options, compute_type=choose_compute_type(options, device))
        self.options = options
        tokenizer = load_tokenizer(folder)
        shape = read_shape(folder)
        weights_bytes = (folder / "model.bin").stat().st_size
        device = with_fitting_workers(options, device, shape, weights_bytes, total_gpu_bytes(device))
        self.device = device
        self._model = Model(load_weights(folder, options, device), shape)
        check_options(options, tokenizer, multilingual=self.multilingual)
        free_bytes = free_gpu_bytes(device, weights_bytes)
        self.batch_size = choose_batch_size(options, device, shape, weights_bytes, free_bytes)
        self._context_lengths = context_lengths(device, shape)
        self._prompts = Prompts(options, tokenizer, multilingual=self.multilingual)
        self._aligner = Aligner(options, self._model, self._prompts)
        self._first = first_pass(options)
        self._refining = refining_pass(options)
        self.features = LogMel(self._model.bands)

    @property
    def multilingual(self) -> bool:
        """Whether the model is multilingual, rather than English-only."""
        return self._model.multilingual

    @property
    def window_bytes(self) -> int:
        """Size of the features of a window of 30 seconds, in bytes."""
        return self._model.bands * FULL_FRAMES * 4

    def context(self, frames: int) -> int:
        """Length of the encoder's input for a window of ``frames``."""
        return context_frames(frames, self._context_lengths)

    def encode(self, windows: Sequence[Window], frames: int) -> Encoded:
        """Run the encoder.

        :param frames: length of its input, at least that of each window. It is part of the batch key, so that
            the text of a window never depends on the other windows in its batch.
        """
        batch = np.zeros((len(windows), self._model.bands, frames), np.float32)
        for row, window in zip(batch, windows, strict=True):
            row[:, : window.frames] = window.features
        if self.device.kind == "cuda":
            return self._model.encode(batch)
        # One window at a time: batches are not faster on a CPU, and attention takes 72 MB per window of
        # whisper-base.
        rows = [self._model.encode(row[np.newaxis]).on_host for row in batch]
        return Encoded.of(np.concatenate(rows))

    # --- language

    def language_probabilities(self, encoded: Encoded) -> list[dict[str, float]]:
        """Probability of each language, for each window."""
        return self._model.detect_language(encoded)

    def languages_of_files(
        self, encoded: Encoded, windows: Sequence[Window], files: Sequence[Sequence[int]]
    ) -> list[FileLanguage]:
        """The language of each file.

        :param encoded: output of :meth:`encode` for ``windows``.
        :param files: the windows of each file, as positions in ``windows``.
        """

        def first_texts(trials: Sequence[tuple[int, str]]) -> list[WindowText]:
            """Decode the trials in batches that fit into memory."""
            most = max(len(windows), self.batch_size)
            texts: list[WindowText] = []
            for first in range(0, len(trials), most):
                chosen, languages = zip(*trials[first : first + most], strict=True)
                own = [windows[i] for i in chosen]
                texts += self._decoded(encoded.rows(chosen), own, languages, self._first)
            return texts

        # The language of all other windows is known.
        voters = sorted(i for file in files for i in file)
        if self.device.kind == "cuda":
            # For all windows: one step of the decoder is cheaper there than selecting rows, see Encoded.
            every = self.language_probabilities(encoded)
            rows = [every[i] for i in voters]
        else:
            rows = self.language_probabilities(encoded.rows(voters))
        detected = dict(zip(voters, rows, strict=True))
        return languages_of_files(files, detected, [w.map.speech_seconds for w in windows], first_texts)

    # --- the three steps of a window: first, refined where unsure, again where it failed

    def transcribe(
        self,
        encoded: Encoded,
        windows: Sequence[Window],
        languages: Sequence[str],
        known: Mapping[int, WindowText],
    ) -> list[WindowText]:
        """The first text of each window, with scores and words.

        A text for which :meth:`is_unsure` is true has no words, and its window is refined next. A text that
        is not ``reliable`` is decoded again; it has words only if these made it unreliable.

        :param encoded: output of :meth:`encode` for ``windows``.
        :param languages: a Whisper language code for each window.
        :param known: texts that :meth:`languages_of_files` has decoded already, by position in ``windows``.
        """
        found = {i: text for i, text in known.items() if text.language == languages[i]}
        missing = [i for i in range(len(windows)) if i not in found]
        if missing:
            own, their = [windows[i] for i in missing], [languages[i] for i in missing]
            with stage("generate"):
                given = self._decoded(encoded.rows(missing), own, their, self._first)
            found.update(zip(missing, given, strict=True))
        texts = [found[i] for i in range(len(windows))]
        final = [i for i, text in enumerate(texts) if text.reliable and not self.is_unsure(text)]
        return self._aligner.with_words(encoded, windows, texts, final)

    def is_unsure(self, text: WindowText) -> bool:
        """Whether the first text of a window has to be refined, because its log probability is low."""
        if self._refining is None:
            return False
        alone = text.number == 0 or not self.options.condition_on_previous_text
        return is_unsure(text, self.options, alone=alone)

    def refine(
        self,
        encoded: Sequence[EncodedRow],
        windows: Sequence[Window],
        texts: Sequence[WindowText],
        before: Sequence[Sequence[int]],
    ) -> list[WindowText]:
        """The better of the first text of each window and one by beam search with the previous text.

        Beam search takes several times as long as greedy decoding, and rarely changes a text with a high
        probability. The text before the window avoids more errors than the beam does.

        :param encoded: output of the encoder for these windows, with the same number of positions.
        :param texts: the first texts, from :meth:`transcribe`.
        :param before: tokens of the text before each window; the same number for each window.
        """
        rows = gathered(encoded)
        languages = [text.language for text in texts]
        with stage("generate"):
            again = self._decoded(rows, windows, languages, self._refining or self._first, before)
        better = [
            first if self._is_echo(second, first, tokens) else self._better(first, second)
            for first, second, tokens in zip(texts, again, before, strict=True)
        ]
        return self._aligner.with_words(rows, windows, better, _reliable(better))

    def _is_echo(self, text: WindowText, first: WindowText, before: Sequence[int]) -> bool:
        return is_echo(text, first, self._prompts.tokenizer(text.language).decode(list(before)))

    def retry(
        self, windows: Sequence[Window], suspects: Sequence[WindowText], contexts: Sequence[int]
    ) -> list[WindowText]:
        """Decode windows that failed the quality gate again. Returns the best text of each, with words.

        The passes are: greedily with the 30 seconds that Whisper was trained on, by beam search, with
        timestamps, and at rising temperatures. They end when a text passes the gate, two texts agree, or a
        text counts as silence.

        :param suspects: the texts so far.
        :param contexts: length of the encoder's input for these texts, in frames.
        """
        texts = list(suspects)
        encoded = self.encode(windows, FULL_FRAMES)
        open_ = list(range(len(texts)))
        # Windows that had the full context already would give the same text again.
        short = [i for i in open_ if contexts[i] < FULL_FRAMES]
        settled = self._try_again(encoded, windows, texts, short, self._first)
        for decoding in retry_passes(self.options):
            open_ = [i for i in open_ if not texts[i].reliable and i not in settled]
            settled |= self._try_again(encoded, windows, texts, open_, decoding)
        without_words = [i for i, text in enumerate(texts) if text.words is None]
        return self._aligner.with_words(encoded, windows, texts, without_words)

    def _try_again(
        self,
        encoded: Encoded,
        windows: Sequence[Window],
        texts: list[WindowText],
        chosen: Sequence[int],
        decoding: DecodingPass,
    ) -> set[int]:
        """Decode the chosen windows again, and keep better texts. Returns the silent or confirmed ones."""
        if not chosen:
            return set()
        rows, own = encoded.rows(chosen), [windows[i] for i in chosen]
        again = self._decoded(rows, own, [texts[i].language for i in chosen], decoding)
        again = self._aligner.with_words(rows, own, again, _reliable(again))
        settled: set[int] = set()
        for i, text in zip(chosen, again, strict=True):
            silent = is_silence(text, self.options)
            if silent or confirmed(text, texts[i], windows[i].map.speech_seconds):
                settled.add(i)
            texts[i] = text if silent else self._better(texts[i], text)
        return settled

    def _better(self, one: WindowText, other: WindowText) -> WindowText:
        return max(one, other, key=lambda text: credibility(text, self.options))

    # --- one pass over a batch

    def _decoded(
        self,
        encoded: Encoded,
        windows: Sequence[Window],
        languages: Sequence[str],
        decoding: DecodingPass,
        before: Sequence[Sequence[int]] | None = None,
    ) -> list[WindowText]:
        options = self.options
        prompts = [
            self._prompts.tokens(language, timestamps=decoding.timestamps, before=tokens)
            for language, tokens in zip(languages, before or [()] * len(windows), strict=True)
        ]
        caps = [token_cap(window.map.seconds, timestamps=decoding.timestamps) for window in windows]
        sampling: dict[str, Any] = {"beam_size": decoding.beam_size, "patience": options.patience}
        if decoding.temperature > 0:
            sampling = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": decoding.temperature}
        results = self._hypotheses(
            decoding.temperature > 0,
            encoded,
            prompts,
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            # CTranslate2 generates at most half as many tokens, and no more than the prompt leaves room for.
            max_length=min(max(caps) + max(*caps, len(prompts[0])), MAX_LENGTH),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=options.suppress_blank,
            suppress_tokens=list(options.suppress_tokens),
            **sampling,
        )
        return [
            self._judged(result, window, language, cap, decoding.temperature)
            for result, window, language, cap in zip(results, windows, languages, caps, strict=True)
        ]

    def _hypotheses(
        self, sampled: bool, encoded: Encoded, prompts: list[list[int]], **settings: Any
    ) -> list[Any]:
        """The results of ``generate``; when sampling, the best of ``best_of`` for each window."""
        if not sampled:
            return self._model.generate(encoded, prompts, **settings)
        if self.device.kind == "cuda":
            settings["num_hypotheses"] = self.options.best_of
            return self._model.generate(encoded, prompts, **settings)
        # One after the other: at once they would take best_of times the memory, and about the same time.
        tries = [self._model.generate(encoded, prompts, **settings) for _ in range(self.options.best_of)]
        return [max(rows, key=lambda row: row.scores[0]) for rows in zip(*tries, strict=True)]

    def _judged(self, result: Any, window: Window, language: str, cap: int, temperature: float) -> WindowText:
        tokenizer = self._prompts.tokenizer(language)
        # The limit of the whole batch is that of its longest window.
        ids = result.sequences_ids[0][:cap]
        score = result.scores[0] * len(ids) ** self.options.length_penalty / (len(ids) + 1)
        tokens = tuple(token for token in ids if token < tokenizer.eot)
        text = tokenizer.decode(tokens).strip()
        judged = WindowText(
            channel=window.channel,
            number=window.number,
            tokens=tokens,
            text=text,
            language=language,
            avg_logprob=float(score),
            no_speech_prob=float(result.no_speech_prob),
            compression_ratio=compression_ratio(text),
            temperature=temperature,
            capped=len(ids) >= cap,
            reliable=True,
            start=round(window.map.span_in_file(0.0, 0.0)[0], 3),
            end=round(window.map.span_in_file(window.map.seconds, window.map.seconds)[1], 3),
        )
        speech_s = window.map.speech_seconds
        passed = is_reliable(judged, speech_s, self.options)
        doubled = passed and is_doubled(text, speech_s)
        return dataclasses.replace(judged, reliable=passed and not doubled, doubled=doubled)


def _reliable(texts: Sequence[WindowText]) -> list[int]:
    return [i for i, text in enumerate(texts) if text.reliable]
