"""Which files are new, when they count, and what is reported together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_whisper.watch.pending import MAX_PARTITIONS, Arrivals, BatchRules, File

SECOND = 1_000_000
NOW = 1_000_000 * SECOND
AT_ONCE = BatchRules(stable_polls=1)


def file(name: str, etag: str | None = "e1", *, age: float = 0, size: int = 10, dt: str = "1") -> File:
    return f"s3://calls/{name}", etag, size, NOW - int(age * SECOND), f"dt={dt}"


@pytest.fixture
def arrivals() -> Iterator[Arrivals]:
    made = Arrivals(AT_ONCE)
    yield made
    made.close()


def poll(arrivals: Arrivals, *files: File, later: float = 0) -> list[list[str]]:
    """The names in each batch that a poll gives."""
    arrivals.observe([list(files)])
    batches = arrivals.batches(NOW + int(later * SECOND), at_most=100)
    return [[f[0].removeprefix("s3://calls/") for f in batch.files] for batch in batches]


def test_file_is_reported_once(arrivals: Arrivals) -> None:
    assert poll(arrivals, file("a")) == [["a"]]
    assert poll(arrivals, file("a")) == []
    assert poll(arrivals, file("a"), file("b")) == [["b"]]


def test_changed_file_is_reported_again(arrivals: Arrivals) -> None:
    poll(arrivals, file("a"))
    assert poll(arrivals, file("a", "e2")) == [["a"]]


def test_missing_etag_says_nothing(arrivals: Arrivals) -> None:
    poll(arrivals, file("a", None))
    assert poll(arrivals, file("a", "e1")) == []


def test_file_of_the_same_instant_that_shows_up_later_is_reported(arrivals: Arrivals) -> None:
    poll(arrivals, file("a", age=5))
    assert poll(arrivals, file("a", age=5), file("tied", age=5), file("late", age=50)) == [["late", "tied"]]


def test_oldest_come_first(arrivals: Arrivals) -> None:
    assert poll(arrivals, file("a", age=1), file("b", age=3), file("c", age=2)) == [["b", "c", "a"]]


def test_growing_file_waits_until_it_is_stable(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, stable_polls=3)
    assert poll(arrivals, file("a", "e1", size=1)) == []
    assert poll(arrivals, file("a", "e1", size=2)) == []
    assert poll(arrivals, file("a", "e2", size=2)) == []
    assert poll(arrivals, file("a", "e2", size=2)) == []
    assert poll(arrivals, file("a", "e2", size=2)) == [["a"]]


def test_file_older_than_min_age_counts_at_once(arrivals: Arrivals) -> None:
    arrivals.rules = BatchRules(stable_polls=100, min_age=60)
    assert poll(arrivals, file("old", age=61), file("young", age=59)) == [["old"]]


def test_file_that_vanishes_before_it_is_stable_is_never_reported(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, stable_polls=2)
    poll(arrivals, file("a"))
    poll(arrivals)
    assert poll(arrivals, file("a")) == []
    assert arrivals.waiting_count() == 1


def test_batch_waits_for_min_files_or_max_wait(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, min_files=3, max_wait=100)
    two = [file("a", age=10), file("b", age=5)]
    assert poll(arrivals, *two) == []
    assert poll(arrivals, *two, file("c")) == [["a", "b", "c"]]
    assert poll(arrivals, file("d", age=20), later=79) == []
    assert poll(arrivals, file("d", age=20), later=80) == [["d"]]


def test_batch_has_at_most_max_files_and_the_rest_waits_for_more(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, min_files=2, max_files=2)
    files = [file(name, age=10 - i) for i, name in enumerate("abcde")]
    assert poll(arrivals, *files) == [["a", "b"], ["c", "d"]]
    assert poll(arrivals, *files, file("f")) == [["e", "f"]]


def test_batch_has_few_partitions(arrivals: Arrivals) -> None:
    files = [file(f"{i:03d}", dt=str(i)) for i in range(MAX_PARTITIONS + 1)]
    assert [len(batch) for batch in poll(arrivals, *files)] == [MAX_PARTITIONS, 1]


def test_broken_listing_changes_nothing(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, stable_polls=2)
    poll(arrivals, file("a"), file("b"))

    def broken() -> Iterator[list[File]]:
        yield [file("a")]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        arrivals.observe(broken())
    assert poll(arrivals, file("a"), file("b")) == [["a", "b"]]


def test_floor_forgets_what_was_reported_but_never_passes_what_was_not(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, max_files=2)
    arrivals.observe([[file("a", age=30), file("b", age=20), file("c", age=10)]])
    assert len(list(arrivals.batches(NOW, at_most=1))) == 1
    arrivals.raise_floor(NOW)
    assert arrivals.floor == file("c", age=10)[3] - 1
    assert arrivals.reported_count() == 0
    arrivals.raise_floor(0)
    assert arrivals.floor == file("c", age=10)[3] - 1


def test_space_of_a_large_listing_is_given_back(arrivals: Arrivals) -> None:
    arrivals.observe(
        [file(f"{n:0900d}", f"{n}") for n in range(start, start + 10_000)]
        for start in range(0, 60_000, 10_000)
    )
    before = arrivals.disk_bytes()
    assert before > 64 * 2**20
    arrivals.observe([])
    assert arrivals.disk_bytes() < before / 10


def test_all_that_is_ready_can_be_asked_for_by_partition(arrivals: Arrivals) -> None:
    arrivals.rules = replace(AT_ONCE, min_files=3, max_files=3)
    arrivals.observe([[file("a", dt="1"), file("b", dt="2")]])
    assert arrivals.ready_partitions(NOW) == []
    arrivals.observe([[file("a", dt="1"), file("b", dt="2"), file("c", dt="1"), file("d", dt="1")]])
    assert arrivals.ready_partitions(NOW) == [("dt=1", 3, 30), ("dt=2", 1, 10)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stable_polls": 0}, "stable_polls"),
        ({"min_files": 1.5}, "min_files"),
        ({"max_files": True}, "max_files"),
        ({"min_age": -1}, "min_age"),
        ({"max_wait": "1h"}, "max_wait"),
        ({"min_files": 20_000}, "must not be greater"),
    ],
)
def test_wrong_rule_is_named(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchRules(**wrong)
