"""Windows of equal context share a batch, batches are filled, and no window waits for ever."""

from __future__ import annotations

import numpy as np
import pytest

from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.windows import Chunk, ChunkMap, Window
from whisper_spark.engine import batching
from whisper_spark.engine.batching import Batches
from whisper_spark.engine.work import FileWork, QueuedWindow, Step

WORK = FileWork(AudioFile("file:///a.wav"))


def window(number: int, context: int = 1000, step: Step = Step.FIRST, before: int = 0) -> QueuedWindow:
    features = np.zeros((80, context - 300), np.float32)
    own = Window(0, number, ChunkMap((Chunk(0.0, 0.0, 7.0),)), features)
    return QueuedWindow(WORK, own, context, step, before=tuple(range(before)))


def taken(batches: Batches, shares: int = 1) -> list[int]:
    key, _ = batches.best()
    assert key is not None
    return [queued.window.number for queued in batches.take(key, shares)]


def test_a_batch_holds_as_many_windows_as_there_is_room_for() -> None:
    batches = Batches(room=3000)
    for number in range(5):
        batches.add([window(number)])
    assert batches.best()[1]
    assert taken(batches) == [0, 1, 2]
    assert not batches.best()[1]
    assert taken(batches) == [3, 4]
    assert not batches
    assert batches.best() == (None, False)


def test_of_several_full_batches_that_of_the_latest_step_is_next() -> None:
    batches = Batches(room=3000)
    for number in range(6):
        batches.add([window(number)])
    for number in range(6, 10):
        batches.add([window(number, step=Step.REFINE)])
    assert taken(batches) == [6, 7, 8]
    # The rest of that step does not fill one.
    assert taken(batches) == [0, 1, 2]


def test_only_equal_windows_share_a_batch() -> None:
    batches = Batches(room=9000)
    unlike = [
        window(0),
        window(1, context=1200),
        window(2, step=Step.REFINE),
        window(3, step=Step.REFINE, before=20),
        window(4, step=Step.RETRY),
    ]
    for queued in unlike:
        batches.add([queued])
    assert sorted(tuple(taken(batches)) for _ in unlike) == [(0,), (1,), (2,), (3,), (4,)]


def test_windows_that_must_travel_together_do_even_if_there_is_no_room() -> None:
    batches = Batches(room=1000)
    batches.add([window(0), window(1)])
    assert taken(batches) == [0, 1]


def test_the_last_windows_are_shared_out() -> None:
    batches = Batches(room=9000)
    for number in range(6):
        batches.add([window(number)])
    assert [taken(batches, shares=2) for _ in range(3)] == [[0, 1, 2], [3, 4], [5]]


def test_a_batch_is_not_split_while_there_is_other_work_for_the_other_decoder() -> None:
    batches = Batches(room=9000)
    for number in range(6):
        batches.add([window(number, context=1000 if number < 3 else 1200)])
    assert taken(batches, shares=2) == [3, 4, 5]


def test_what_has_waited_too_long_goes_before_what_would_fill_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "_LONGEST_WAIT_SECONDS", 0.0)
    batches = Batches(room=2000)
    batches.add([window(0, context=1200)])
    for number in (1, 2):
        batches.add([window(number)])
    assert batches.best() == (window(0, context=1200).key, True)


def test_batches_shrink_but_always_hold_a_window_of_30_seconds() -> None:
    batches = Batches(room=9000)
    for number in range(12):
        batches.add([window(number)])
    batches.shrink(5000)
    assert taken(batches) == [0, 1, 2, 3, 4]
    batches.shrink(8000)
    assert taken(batches) == [5, 6, 7, 8, 9]
    batches.shrink(10)
    batches.add([window(12, context=3000)])
    assert taken(batches) == [12]
