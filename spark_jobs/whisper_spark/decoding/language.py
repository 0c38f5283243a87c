"""The language of a file: its first windows vote, and where that leaves doubt, the likelier text decides.

Pure functions: the decoder lends its results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from whisper_spark.decoding.window_text import WindowText

# Below 0.9 a detected language is checked against up to four candidates of at least 0.02. Each one's score is
# the average log probability of its tokens (-2 for a text that fails the quality gate) and a tenth of that of
# the language itself. Tuned on 130 telephone prompts in five languages with whisper-base.
_SURE = 0.9
_CANDIDATES = 4
_LEAST_CANDIDATE = 0.02
_LANGUAGE_WEIGHT = 0.1
_FAILED = -2.0

# So that windows without any detected speech have a vote, too.
_LEAST_WEIGHT_S = 0.01


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


def languages_of_files(
    files: Sequence[Sequence[int]],
    detected: Mapping[int, Mapping[str, float]],
    speech_s: Sequence[float],
    first_texts: Callable[[Sequence[tuple[int, str]]], Sequence[WindowText]],
) -> list[FileLanguage]:
    """The language of each file.

    :param files: the windows of each file, as positions in their batch.
    :param detected: probability of each language, by position.
    :param speech_s: seconds of speech of each window of the batch.
    :param first_texts: decodes windows, given by position, in given languages.
    """
    weights = [seconds + _LEAST_WEIGHT_S for seconds in speech_s]
    rankings = [vote([detected[i] for i in file], [weights[i] for i in file]) for file in files]
    candidates = [_candidates(ranking) for ranking in rankings]
    # Candidates of many files together: one window at a time costs more than twice as much.
    trials = [
        (i, name) for file, names in zip(files, candidates, strict=True) for name in names for i in file
    ]
    heard = dict(zip(trials, first_texts(trials), strict=True)) if trials else {}
    return [
        _decided(file, ranking, names, heard, weights)
        for file, ranking, names in zip(files, rankings, candidates, strict=True)
    ]


def vote(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Languages and their probability over windows of different weight, the most probable first."""
    total = sum(weights) or 1.0
    sums: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for language, probability in row.items():
            sums[language] = sums.get(language, 0.0) + probability * weight / total
    return sorted(((name, min(p, 1.0)) for name, p in sums.items()), key=lambda item: -item[1])


def _candidates(ranking: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Languages that a file may be in, with their probabilities; none when there is no doubt."""
    likely = {name: p for name, p in ranking[:_CANDIDATES] if p >= _LEAST_CANDIDATE}
    return {} if ranking[0][1] >= _SURE or len(likely) < 2 else likely


def _decided(
    file: Sequence[int],
    ranking: Sequence[tuple[str, float]],
    candidates: Mapping[str, float],
    heard: Mapping[tuple[int, str], WindowText],
    weights: Sequence[float],
) -> FileLanguage:
    if not candidates:
        return FileLanguage(*ranking[0], {})
    total = sum(weights[i] for i in file)
    scores = {name: _LANGUAGE_WEIGHT * math.log(p) for name, p in candidates.items()}
    for name, i in itertools.product(candidates, file):
        text = heard[i, name]
        # Loops are likely, which says nothing. A word heard twice is in the language it was heard in.
        heard_something = text.text and (text.reliable or text.doubled)
        sureness = text.avg_logprob if heard_something else _FAILED
        scores[name] += sureness * weights[i] / total
    best = max(scores, key=scores.__getitem__)
    return FileLanguage(best, candidates[best], {i: heard[i, best] for i in file})
