"""Reading ahead changes when items are fetched, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from airflow_whisper.discovery.listing import read_ahead


def test_items_come_in_order_and_none_is_lost() -> None:
    assert list(read_ahead(range(1000))) == list(range(1000))
    assert list(read_ahead([None, 0, None])) == [None, 0, None]
    assert list(read_ahead([])) == []


def test_next_item_is_fetched_while_one_is_in_use() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    for _ in read_ahead(items()):
        assert second.wait(10)


def test_error_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ConnectionError

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ConnectionError):
        next(ahead)


def test_stopping_early_ends_the_thread() -> None:
    before = threading.active_count()
    for _ in read_ahead(iter(range(10**9))):
        break
    assert threading.active_count() == before
