"""How many speakers there are, and which speech is whose, in embeddings of several kinds of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from whisper_spark.speakers.diarization import ChannelSpeakers, speakers_of
from whisper_spark.speakers.speech import STRETCH, Speech

SIZE = 192


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def speech_of(
    turns: Sequence[int],
    *,
    within: float = 0.8,
    between: float = 0.5,
    lively: Mapping[int, float] | None = None,
    seed: int = 0,
) -> Speech:
    """Speech in which each turn is a region of six seconds.

    :param turns: the speaker of each turn.
    :param within: similarity of two stretches of one speaker.
    :param between: similarity of two speakers.
    :param lively: similarity of two stretches of speakers for whom it is another.
    """
    random = np.random.default_rng(seed)
    voices = random.standard_normal((max(turns) + 1, SIZE))
    shared = unit(random.standard_normal(SIZE))
    starts, ends, regions, vectors = [], [], [], []
    for region, voice in enumerate(turns):
        same = (lively or {}).get(voice, within)
        common, own, moment = np.sqrt([between, same - between, 1 - same])
        # Stretches that overlap by half share half of what is particular in a moment.
        moments = unit(random.standard_normal((8, SIZE)))
        for number in range(7):
            particular = unit(moments[number] + moments[number + 1])
            starts.append(7.0 * region + 0.75 * number)
            ends.append(starts[-1] + STRETCH)
            regions.append(region)
            vectors.append(unit(common * shared + own * unit(voices[voice]) + moment * particular))
    return Speech(np.array(starts), np.array(ends), np.array(regions), np.array(vectors, np.float16))


def agreement(found: ChannelSpeakers, turns: Sequence[int]) -> float:
    """Share of turns whose stretches all go to one speaker, who is the same as in the other turns."""
    labels = found.evidence.argmax(axis=1).reshape(len(turns), -1)
    pairs = {(turn, label) for turn, row in zip(turns, labels.tolist(), strict=True) for label in row}
    return len(set(turns)) / len(pairs)


@pytest.mark.parametrize("speakers", [1, 2, 3, 4, 6, 30])
@pytest.mark.parametrize(("within", "between"), [(0.8, 0.5), (0.6, 0.1), (0.5, 0.0), (0.9, 0.7)])
def test_speakers_are_counted_whatever_the_scale_of_similarities(
    speakers: int, within: float, between: float
) -> None:
    turns = [turn % speakers for turn in range(max(24, 3 * speakers))]
    found = speakers_of(speech_of(turns, within=within, between=between), within, None, None)
    assert found.evidence.shape[1] == speakers
    assert agreement(found, turns) == 1
    assert found.sure or speakers == 30


def test_one_speaker_for_an_hour_is_one() -> None:
    found = speakers_of(speech_of([0] * 500), 0.8, None, None)
    assert (found.evidence.shape[1], found.sure) == (1, True)


def test_a_lively_speaker_among_calm_ones_is_one() -> None:
    turns = [0, 1, 2] * 8
    speech = speech_of(turns, within=0.85, between=0.4, lively={1: 0.65})
    found = speakers_of(speech, 0.85, None, None)
    assert found.evidence.shape[1] == 3
    assert agreement(found, turns) == 1


def test_a_known_number_of_speakers_is_kept() -> None:
    turns = [0, 1, 2, 3] * 6
    speech = speech_of(turns)
    assert speakers_of(speech, 0.8, None, 3).evidence.shape[1] == 3
    assert speakers_of(speech, 0.8, 4, 4).evidence.shape[1] == 4
    assert speakers_of(speech_of([0] * 10), 0.8, 2, None).evidence.shape[1] == 2
    assert speakers_of(speech_of([0] * 10), 0.8, None, 1).evidence.shape[1] == 1


@pytest.mark.parametrize("turns", [[0] * 10, [0, 1] * 5])
def test_more_speakers_than_there_can_be_are_as_many_as_were_demanded(turns: list[int]) -> None:
    """Each of 20 speakers would have three seconds at most, so no group is large enough for one."""
    speech = speech_of(turns)
    for least, most in ((20, 20), (20, 100), (20, None)):
        assert speakers_of(speech, 0.8, least, most).evidence.shape[1] == 20


def test_voices_that_differ_little_are_uncertain() -> None:
    turns = [0, 1] * 10
    # As far apart as the limit allows.
    assert not speakers_of(speech_of(turns, within=0.8, between=0.7), 0.8, None, None).sure
    assert speakers_of(speech_of(turns, within=0.8, between=0.7), 0.8, 2, 2).sure


def test_a_speaker_who_only_gives_short_answers_is_counted() -> None:
    # Each turn of the second one is a single stretch of a second.
    turns = [0, 1] * 8
    whole = speech_of(turns)
    kept = np.concatenate([np.arange(7) + 7 * n if voice == 0 else [7 * n] for n, voice in enumerate(turns)])
    starts, regions = whole.starts[kept], whole.regions[kept]
    answers = np.array(turns)[regions] == 1
    ends = np.where(answers, starts + 1.0, whole.ends[kept])
    found = speakers_of(Speech(starts, ends, regions, whole.embeddings[kept]), 0.8, None, None)
    assert found.evidence.shape[1] == 2
    labels = found.evidence.argmax(axis=1)
    assert len({*labels[answers].tolist()}) == len({*labels[~answers].tolist()}) == 1
    # Shorter sounds, such as coughs, still found no speaker.
    ends = np.where(answers, starts + 0.5, ends)
    found = speakers_of(Speech(starts, ends, regions, whole.embeddings[kept]), 0.8, None, None)
    assert found.evidence.shape[1] == 1


def test_a_cough_is_no_speaker() -> None:
    speech = speech_of([0, 1, 0, 1])
    vectors = speech.embeddings.copy()
    vectors[10] = unit(np.random.default_rng(9).standard_normal(SIZE))
    found = speakers_of(Speech(speech.starts, speech.ends, speech.regions, vectors), 0.8, None, None)
    assert found.evidence.shape[1] == 2


def test_half_a_second_of_speech_has_one_speaker() -> None:
    vector = unit(np.random.default_rng(0).standard_normal((1, SIZE))).astype(np.float16)
    speech = Speech(np.array([3.0]), np.array([3.5]), np.array([0]), vector)
    assert speakers_of(speech, 0.8, None, None).evidence.shape == (1, 1)
    assert speakers_of(speech, 0.8, 3, 5).evidence.shape == (1, 1)


def test_the_same_embedding_everywhere_has_one_speaker() -> None:
    speech = speech_of([0, 0, 0])
    same = np.repeat(speech.embeddings[:1], len(speech.embeddings), axis=0)
    found = speakers_of(Speech(speech.starts, speech.ends, speech.regions, same), 0.8, None, None)
    assert found.evidence.shape[1] == 1
    assert np.isfinite(found.evidence).all()
