"""Determines the language of a file from its first windows.

If detection is uncertain, the texts in the candidate languages are compared.

Pure functions: the decoder passes in its results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from whisper_spark.decoding.window_text import WindowText

# If the most probable language is below 0.9, up to four candidates of at least 0.02 are compared. The score
# of each is the average log probability of its text (-2 for a text that fails the quality gate) plus a tenth
# of the log probability of the language. Tuned on 130 telephone prompts in five languages with whisper-base.
_SURE = 0.9
_CANDIDATES = 4
_LEAST_CANDIDATE = 0.02
_LANGUAGE_WEIGHT = 0.1
_FAILED = -2.0

# Added to the weight of each window, so that windows without detected speech also count.
_LEAST_WEIGHT_S = 0.01


@dataclass(frozen=True, slots=True)
class FileLanguage:
    """The language of a file.

    :param language: Whisper language code.
    :param probability: probability of the language by detection.
    :param texts: texts of its windows by position in the batch, if they were decoded to determine the
        language.
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

    :param files: the windows of each file, as positions in the batch.
    :param detected: probability of each language, by position.
    :param speech_s: seconds of speech of each window of the batch.
    :param first_texts: decodes pairs of a window, by position, and a language.
    """
    weights = [seconds + _LEAST_WEIGHT_S for seconds in speech_s]
    rankings = [vote([detected[i] for i in file], [weights[i] for i in file]) for file in files]
    candidates = [_candidates(ranking) for ranking in rankings]
    # Candidates of all files in one call: one window at a time would take more than twice as long.
    trials = [
        (i, name) for file, names in zip(files, candidates, strict=True) for name in names for i in file
    ]
    heard = dict(zip(trials, first_texts(trials), strict=True)) if trials else {}
    return [
        _decided(file, ranking, names, heard, weights)
        for file, ranking, names in zip(files, rankings, candidates, strict=True)
    ]


def vote(rows: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Languages with their weighted average probability over windows, the most probable first."""
    total = sum(weights) or 1.0
    sums: dict[str, float] = {}
    for row, weight in zip(rows, weights, strict=True):
        for language, probability in row.items():
            sums[language] = sums.get(language, 0.0) + probability * weight / total
    return sorted(((name, min(p, 1.0)) for name, p in sums.items()), key=lambda item: -item[1])


def _candidates(ranking: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Candidate languages of a file with their probabilities; empty when the language is certain."""
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
        # The probability of a looping text means nothing. A doubled word still is in its language.
        heard_something = text.text and (text.reliable or text.doubled)
        sureness = text.avg_logprob if heard_something else _FAILED
        scores[name] += sureness * weights[i] / total
    best = max(scores, key=scores.__getitem__)
    return FileLanguage(best, candidates[best], {i: heard[i, best] for i in file})
