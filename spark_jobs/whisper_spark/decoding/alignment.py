"""Word timestamps: the position of each token of a text in its window, from the model's cross-attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from whisper_spark.audio.windows import Window
from whisper_spark.contract import WhisperOptions, Word
from whisper_spark.decoding.calls import Model
from whisper_spark.decoding.encoder_output import Encoded
from whisper_spark.decoding.prompts import Prompts
from whisper_spark.decoding.quality_gate import has_no_length, misses_speech
from whisper_spark.decoding.segments import words_of_window
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.progress.counters import stage


class Aligner:
    """Adds words to texts, if the options enable word timestamps."""

    def __init__(self, options: WhisperOptions, model: Model, prompts: Prompts) -> None:
        self._options = options
        self._model = model
        self._prompts = prompts

    def with_words(
        self,
        encoded: Encoded,
        windows: Sequence[Window],
        texts: Sequence[WindowText],
        chosen: Iterable[int],
    ) -> list[WindowText]:
        """The texts, with words for those at the chosen positions.

        Words show whether speech is missing from a text: ``incomplete`` and ``reliable`` are updated.

        :param encoded: output of the encoder for the windows.
        :param chosen: positions in ``texts``.
        """
        found = list(texts)
        if not self._options.word_timestamps:
            return found
        by_language: dict[str, list[int]] = {}
        for i in chosen:
            if texts[i].tokens:
                by_language.setdefault(texts[i].language, []).append(i)
            else:
                found[i] = self._judged(texts[i], [], windows[i])
        with stage("align"):
            # One call per language, because align() takes the same start sequence for all rows.
            for language, indices in by_language.items():
                words = self._words(encoded.rows(indices), language, windows, texts, indices)
                for i, own in zip(indices, words, strict=True):
                    found[i] = self._judged(texts[i], own, windows[i])
        return found

    def _words(
        self,
        encoded: Encoded,
        language: str,
        windows: Sequence[Window],
        texts: Sequence[WindowText],
        indices: Sequence[int],
    ) -> list[list[Word]]:
        tokenizer = self._prompts.tokenizer(language)
        tokens = [list(texts[i].tokens) for i in indices]
        frames = [max(windows[i].frames, 2) for i in indices]
        alignments = self._model.align(encoded, tokenizer.sot_sequence, tokens, frames)
        return [
            words_of_window(alignment, texts[i].tokens, tokenizer, windows[i].map)
            for i, alignment in zip(indices, alignments, strict=True)
        ]

    def _judged(self, text: WindowText, words: Sequence[Word], window: Window) -> WindowText:
        incomplete = misses_speech(words, window.map, self._options)
        reliable = text.reliable and not incomplete and not has_no_length(words)
        return dataclasses.replace(text, words=tuple(words), incomplete=incomplete, reliable=reliable)
