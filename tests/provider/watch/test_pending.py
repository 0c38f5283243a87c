"""Which files are new, when they count, and what is reported together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from airflow_whisper.watch.pending import MAX_PARTITIONS, BatchRules, File, PendingFiles

SECOND = 1_000_000
NOW = 1_000_000 * SECOND
AT_ONCE = BatchRules(stable_polls=1)


def file(name: str, etag: str | None = "e1", *, age: float = 0, size: int = 10, dt: str = "1") -> File:
    return f"s3://calls/{name}", etag, size, NOW - int(age * SECOND), f"dt={dt}"


@pytest.fixture
def pending() -> Iterator[PendingFiles]:
    made = PendingFiles(AT_ONCE)
    yield made
    made.close()


def poll(pending: PendingFiles, *files: File, later: float = 0) -> list[list[str]]:
    """The names in each batch that a poll gives."""
    pending.observe([list(files)])
    batches = pending.batches(NOW + int(later * SECOND), at_most=100)
    return [[f[0].removeprefix("s3://calls/") for f in batch.files] for batch in batches]


def test_file_is_reported_once(pending: PendingFiles) -> None:
    assert poll(pending, file("a")) == [["a"]]
    assert poll(pending, file("a")) == []
    assert poll(pending, file("a"), file("b")) == [["b"]]


def test_changed_file_is_reported_again(pending: PendingFiles) -> None:
    poll(pending, file("a"))
    assert poll(pending, file("a", "e2")) == [["a"]]


def test_missing_etag_says_nothing(pending: PendingFiles) -> None:
    poll(pending, file("a", None))
    assert poll(pending, file("a", "e1")) == []


def test_file_of_the_same_instant_that_shows_up_later_is_reported(pending: PendingFiles) -> None:
    poll(pending, file("a", age=5))
    assert poll(pending, file("a", age=5), file("tied", age=5), file("late", age=50)) == [["late", "tied"]]


def test_oldest_come_first(pending: PendingFiles) -> None:
    assert poll(pending, file("a", age=1), file("b", age=3), file("c", age=2)) == [["b", "c", "a"]]


def test_growing_file_waits_until_it_is_stable(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, stable_polls=3)
    assert poll(pending, file("a", "e1", size=1)) == []
    assert poll(pending, file("a", "e1", size=2)) == []
    assert poll(pending, file("a", "e2", size=2)) == []
    assert poll(pending, file("a", "e2", size=2)) == []
    assert poll(pending, file("a", "e2", size=2)) == [["a"]]


def test_file_older_than_min_age_counts_at_once(pending: PendingFiles) -> None:
    pending.rules = BatchRules(stable_polls=100, min_age=60)
    assert poll(pending, file("old", age=61), file("young", age=59)) == [["old"]]


def test_file_that_vanishes_before_it_is_stable_is_never_reported(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, stable_polls=2)
    poll(pending, file("a"))
    poll(pending)
    assert poll(pending, file("a")) == []
    assert pending.count() == 1


def test_batch_waits_for_min_files_or_max_wait(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, min_files=3, max_wait=100)
    two = [file("a", age=10), file("b", age=5)]
    assert poll(pending, *two) == []
    assert poll(pending, *two, file("c")) == [["a", "b", "c"]]
    assert poll(pending, file("d", age=20), later=79) == []
    assert poll(pending, file("d", age=20), later=80) == [["d"]]


def test_batch_has_at_most_max_files_and_the_rest_waits_for_more(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, min_files=2, max_files=2)
    files = [file(name, age=10 - i) for i, name in enumerate("abcde")]
    assert poll(pending, *files) == [["a", "b"], ["c", "d"]]
    assert poll(pending, *files, file("f")) == [["e", "f"]]


def test_batch_has_few_partitions(pending: PendingFiles) -> None:
    files = [file(f"{i:03d}", dt=str(i)) for i in range(MAX_PARTITIONS + 1)]
    assert [len(batch) for batch in poll(pending, *files)] == [MAX_PARTITIONS, 1]


def test_broken_listing_changes_nothing(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, stable_polls=2)
    poll(pending, file("a"), file("b"))

    def broken() -> Iterator[list[File]]:
        yield [file("a")]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        pending.observe(broken())
    assert poll(pending, file("a"), file("b")) == [["a", "b"]]


def test_watermark_forgets_what_was_reported_but_never_passes_what_was_not(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, max_files=2)
    pending.observe([[file("a", age=30), file("b", age=20), file("c", age=10)]])
    assert len(list(pending.batches(NOW, at_most=1))) == 1
    pending.raise_watermark(NOW)
    assert pending.watermark == file("c", age=10)[3] - 1
    assert pending.reported_count() == 0
    pending.raise_watermark(0)
    assert pending.watermark == file("c", age=10)[3] - 1


@pytest.mark.slow
def test_space_of_a_large_listing_is_given_back(pending: PendingFiles) -> None:
    pending.observe(
        [file(f"{n:0900d}", f"{n}") for n in range(start, start + 10_000)]
        for start in range(0, 60_000, 10_000)
    )
    before = pending.disk_bytes()
    assert before > 64 * 2**20
    pending.observe([])
    assert pending.disk_bytes() < before / 10


def test_all_that_is_ready_can_be_asked_for_by_partition(pending: PendingFiles) -> None:
    pending.rules = replace(AT_ONCE, min_files=3, max_files=3)
    pending.observe([[file("a", dt="1"), file("b", dt="2")]])
    assert pending.ready_partitions(NOW) == []
    pending.observe([[file("a", dt="1"), file("b", dt="2"), file("c", dt="1"), file("d", dt="1")]])
    assert pending.ready_partitions(NOW) == [("dt=1", 3, 30), ("dt=2", 1, 10)]


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
