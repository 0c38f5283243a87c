"""What a transcript is worth: word errors by language, times of words, words where none was said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from corpus import Reference
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

TOLERANCE_S = 0.3
RECOGNISED = 0.6
"""A prompt is looked at for times only when its first and last word and this share of all its words were
recognised: where other words stand, it is unknown which of them begins and ends the prompt."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A contender's output for one file. ``words``: start and end in seconds, text."""

    file: str
    text: str
    language: str | None
    words: tuple[tuple[float, float, str], ...] | None


@dataclass(frozen=True, slots=True)
class Errors:
    """Word errors, summed over files."""

    words: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def rate(self) -> float:
        """Word error rate."""
        return (self.substitutions + self.deletions + self.insertions) / self.words if self.words else 0.0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.words + other.words,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True, slots=True)
class Times:
    """How far the times of words lie from where prompts begin and end.

    :param prompts: in the corpus.
    :param starts: distances in seconds, word minus prompt, one for each prompt that was recognised.
    :param ends: the same for the ends.
    """

    prompts: int
    starts: tuple[float, ...]
    ends: tuple[float, ...]

    @property
    def within(self) -> float:
        """Share of starts and ends that lie within :data:`TOLERANCE_S`."""
        distances = [*self.starts, *self.ends]
        return sum(abs(d) <= TOLERANCE_S for d in distances) / len(distances) if distances else 0.0


def read_output(path: Path) -> tuple[dict[str, Heard], dict[str, Any]]:
    """The lines that a contender wrote: by file name, and its facts."""
    heard, facts = {}, {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if "facts" in row:
            facts = row["facts"]
        else:
            words = None if row["words"] is None else tuple((s, e, w) for s, e, w in row["words"])
            heard[row["file"]] = Heard(row["file"], row["text"], row["language"], words)
    return heard, facts


DIGITS = {
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "ru": "ноль один два три четыре пять шесть семь восемь девять",
}
"""Digits as words: references and models write them either way. The English normaliser knows its own."""


@cache
def _normaliser(language: str | None) -> Any:
    # Half of the Spanish references lack their accents.
    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(remove_diacritics=True)


@cache
def _numerals(language: str | None) -> dict[str, str]:
    words = DIGITS.get(language or "", "").split()
    return {str(_normaliser(language)(word)).strip(): str(digit) for digit, word in enumerate(words)}


def normalised(text: str, language: str | None) -> str:
    """Text in Whisper's own normal form, digits as digits: English has its own, all others share one."""
    numerals = _numerals(language)
    words = str(_normaliser(language)(text)).split()
    return " ".join(numerals.get(word, word) for word in words)


def word_errors(references: Iterable[Reference], heard: Mapping[str, Heard]) -> dict[str, Errors]:
    """Errors by language. A file without output counts as one in which nothing was heard."""
    errors: dict[str, Errors] = {}
    for reference in references:
        if reference.language is None:
            continue
        said = normalised(reference.text, reference.language)
        text = heard[reference.file].text if reference.file in heard else ""
        score = jiwer.process_words(said, normalised(text, reference.language))
        errors[reference.language] = errors.get(reference.language, Errors()) + Errors(
            len(said.split()), score.substitutions, score.deletions, score.insertions
        )
    return errors


def errors_by_prompt(reference: Reference, heard: Mapping[str, Heard]) -> dict[str, int]:
    """Word errors in a file by the text of the prompt, or of the whole file without prompts.

    A word too many counts for the prompt of the word behind it.
    """
    spoken = [span.text for span in reference.prompts] or [reference.text]
    said = [normalised(text, reference.language).split() for text in spoken]
    owners = [prompt for prompt, tokens in zip(spoken, said, strict=True) for _ in tokens]
    text = heard[reference.file].text if reference.file in heard else ""
    words = " ".join(token for tokens in said for token in tokens)
    errors = dict.fromkeys(spoken, 0)
    for chunk in jiwer.process_words(words, normalised(text, reference.language)).alignments[0]:
        if chunk.type == "insert":
            errors[owners[min(chunk.ref_start_idx, len(owners) - 1)]] += (
                chunk.hyp_end_idx - chunk.hyp_start_idx
            )
        elif chunk.type != "equal":
            for word in range(chunk.ref_start_idx, chunk.ref_end_idx):
                errors[owners[word]] += 1
    return errors


def difference(ours: Sequence[int], others: Sequence[int]) -> tuple[int, float, float]:
    """How many errors we make more, and the 95 % interval of that if other prompts had been drawn.

    :param ours: errors by prompt, whether it was played once or many times: a recording that is played again
        says nothing new.
    :param others: the same, of somebody else.

    The paired bootstrap of Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation", ICASSP 2004.
    """
    distances = np.subtract(ours, others)
    drawn = np.random.default_rng(0).integers(0, len(distances), (10_000, len(distances)))
    low, high = np.percentile(distances[drawn].sum(axis=1), [2.5, 97.5])
    return int(distances.sum()), float(low), float(high)


def invented_words(references: Iterable[Reference], heard: Mapping[str, Heard]) -> dict[str, str]:
    """The text of each file in which nothing was said but something was heard."""
    texts = {r.file: heard[r.file].text for r in references if r.language is None and r.file in heard}
    return {file: text for file, text in texts.items() if normalised(text, None)}


def times(references: Iterable[Reference], heard: Mapping[str, Heard]) -> Times:
    """Where words stand against where prompts were put.

    The words of all prompts of a file are aligned with the words that were heard by edit distance, both in
    normal form, word by word. See :data:`RECOGNISED` for which prompts count.
    """
    prompts, starts, ends = 0, [], []
    for reference in references:
        prompts += len(reference.prompts)
        output = heard.get(reference.file)
        if not reference.prompts or output is None or not output.words:
            continue
        found = [
            (token, start, end)
            for start, end, word in output.words
            for token in _tokens(word, reference.language)
        ]
        said = [_tokens(span.text, reference.language) for span in reference.prompts]
        matches = _matches([token for tokens in said for token in tokens], [token for token, _, _ in found])
        position = 0
        for span, tokens in zip(reference.prompts, said, strict=True):
            last = position + len(tokens) - 1
            hits = sum(index in matches for index in range(position, last + 1))
            if position in matches and last in matches and hits >= RECOGNISED * len(tokens):
                starts.append(found[matches[position]][1] - span.start)
                ends.append(found[matches[last]][2] - span.end)
            position = last + 1
    return Times(prompts, tuple(starts), tuple(ends))


def _tokens(text: str, language: str | None) -> list[str]:
    # Word by word: a rule that looks at several words at once would tear words from their times.
    return [token for word in text.split() for token in normalised(word, language).split()]


def _matches(said: Sequence[str], found: Sequence[str]) -> dict[int, int]:
    """Index of a said word -> index of the same word among those found."""
    if not said or not found:
        return {}
    [chunks] = jiwer.process_words(" ".join(said), " ".join(found)).alignments
    return {
        chunk.ref_start_idx + n: chunk.hyp_start_idx + n
        for chunk in chunks
        if chunk.type == "equal"
        for n in range(chunk.ref_end_idx - chunk.ref_start_idx)
    }
