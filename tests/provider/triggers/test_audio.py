"""NewAudioTrigger as the triggerer drives it: serialised, run on an event loop, stopped, started again.

The triggerer itself and asset state in the database are in tests/e2e; here a dict stands for that state.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger
from servers import SECRET_KEY, S3Server, free_ports

from airflow_whisper.events import arrived_partitions
from airflow_whisper.triggers import audio as trigger_module
from airflow_whisper.triggers.audio import NewAudioTrigger
from airflow_whisper.triggers.polling import MAX_BACKOFF_SECONDS, backoff_seconds

FAST = {"poll_interval": 0.05, "stable_polls": 1}


class AssetState:
    """Stands for ``AssetStateStoreAccessors``: JSON in, JSON out."""

    def __init__(self, error: Exception | None = None) -> None:
        self.values: dict[str, str] = {}
        self.error = error

    async def aget(self, key: str, default: Any = None) -> Any:
        if self.error:
            raise self.error
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


@pytest.fixture(autouse=True)
def quick_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger_module, "DELIVERY_SECONDS", 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "dt=2026-11-01").mkdir()
    return tmp_path


def put(source: Path, name: str, body: bytes = b"x", dt: str = "2026-11-01") -> None:
    (source / f"dt={dt}").mkdir(exist_ok=True)
    (source / f"dt={dt}" / name).write_bytes(body)


def new_trigger(source: Path, state: AssetState | None = None, **arguments: Any) -> NewAudioTrigger:
    trigger = revived(NewAudioTrigger(source=f"{source}/dt={{dt}}/", **{**FAST, **arguments}))
    trigger.asset_state_store = state
    return trigger


def revived(trigger: NewAudioTrigger) -> NewAudioTrigger:
    """As the triggerer gets it, through the database."""
    from airflow.serialization.serialized_objects import BaseSerialization

    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    assert (module, name) == (NewAudioTrigger.__module__, NewAudioTrigger.__qualname__)
    stored = json.loads(json.dumps(BaseSerialization.serialize(arguments)))
    return NewAudioTrigger(**BaseSerialization.deserialize(stored))


def names(payload: dict[str, Any]) -> list[str]:
    return [uri.rpartition("/")[2] for uri in payload["uris"]]


class Running:
    """A trigger that runs until the block ends, as if the triggerer was stopped."""

    def __init__(self, trigger: NewAudioTrigger) -> None:
        self._trigger = trigger
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> Running:
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        async for event in self._trigger.run():
            await self.events.put(event.payload)

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.events.get(), 30)

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            assert not self._task.done()
            await asyncio.sleep(0.01)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def messages(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_trigger_fires_for_new_and_changed_files_one_after_the_other(source: Path) -> None:
    async def scenario() -> None:
        put(source, "a.wav")
        async with Running(new_trigger(source)) as running:
            assert names(await running.next()) == ["a.wav"]
            put(source, "b.wav")
            assert names(await running.next()) == ["b.wav"]
            put(source, "a.wav", b"longer")
            assert names(await running.next()) == ["a.wav"]
            assert running.events.empty()

    asyncio.run(scenario())


def test_restarted_trigger_goes_on_where_it_was(source: Path) -> None:
    async def scenario() -> None:
        state = AssetState()
        put(source, "a.wav")
        async with Running(new_trigger(source, state)) as running:
            await running.next()
            await running.until(lambda: state.values)
        put(source, "b.wav")
        async with Running(new_trigger(source, state)) as running:
            assert names(await running.next()) == ["b.wav"]
            assert running.events.empty()

    asyncio.run(scenario())


def test_trigger_killed_before_it_could_remember_repeats_the_event(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_module, "DELIVERY_SECONDS", 60)

    async def scenario() -> None:
        state = AssetState()
        put(source, "a.wav")
        for _ in range(2):
            async with Running(new_trigger(source, state, poll_interval=60)) as running:
                assert names(await running.next()) == ["a.wav"]
        assert state.values == {}

    asyncio.run(scenario())


def test_what_was_delivered_is_remembered_while_more_keeps_coming(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_module, "DELIVERY_SECONDS", 0.5)

    async def scenario() -> None:
        state = AssetState()
        reported: dict[str, float] = {}
        async with Running(new_trigger(source, state)) as running:
            number = 0
            while not state.values:
                put(source, f"{number}.wav")
                for name in names(await running.next()):
                    reported[name] = time.monotonic()
                number += 1
            (stored,) = [json.loads(value)["files"] for value in state.values.values()]
        known = {key.rpartition("/")[2] for key in stored}
        assert "0.wav" in known
        assert all(time.monotonic() - reported[name] >= 0.5 for name in known)
        assert len(known) < number

    asyncio.run(scenario())


def test_cursor_that_cannot_be_stored_is_stored_later(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(AssetState):
        refusals = 2

        async def aset(self, key: str, value: Any) -> None:
            if self.refusals:
                self.refusals -= 1
                raise RuntimeError("the API server restarts")
            await super().aset(key, value)

    async def scenario() -> None:
        state = Refusing()
        put(source, "a.wav")
        async with Running(new_trigger(source, state)) as running:
            await running.next()
            await running.until(lambda: state.values)
            assert running.events.empty()

    asyncio.run(scenario())
    assert "could not be stored" in messages(capsys)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "no asset state"),
        (
            AssetState(ValueError("Task has 2 concrete inlets and outlets — use context[...]")),
            "more than one asset",
        ),
    ],
)
def test_without_asset_state_the_trigger_works_and_warns(
    source: Path, state: AssetState | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        put(source, "a.wav")
        async with Running(new_trigger(source, state)) as running:
            await running.next()
            put(source, "b.wav")
            assert names(await running.next()) == ["b.wav"]

    asyncio.run(scenario())
    assert reason in messages(capsys)


def test_asset_state_that_cannot_be_read_is_waited_for(source: Path) -> None:
    async def scenario() -> None:
        state = AssetState()
        put(source, "a.wav")
        async with Running(new_trigger(source, state)) as running:
            await running.next()
            await running.until(lambda: state.values)
        state.error = RuntimeError("the API server restarts")
        put(source, "b.wav")
        async with Running(new_trigger(source, state)) as running:
            await asyncio.sleep(0.2)
            assert running.events.empty()
            state.error = None
            assert names(await running.next()) == ["b.wav"]

    asyncio.run(scenario())


def test_unreachable_store_is_tried_again_until_it_is_back(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.bucket("calls")
    s3.client().put_object(Bucket=bucket, Key="dt=2026-11-01/a.wav", Body=b"x")
    # Nobody listens there. Without this the client itself would try for a minute and a half.
    monkeypatch.setattr("whisper_spark.storage.clients._RETRY", {"max_retries": 0})
    (port,) = free_ports(1)
    down = s3.connection.replace(s3.endpoint, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", down)

    async def scenario() -> None:
        trigger = NewAudioTrigger(source=f"s3://{bucket}/dt={{dt}}/", source_conn_id="calls_s3", **FAST)
        async with Running(revived(trigger)) as running:
            await asyncio.sleep(0.5)
            assert running.events.empty()
            monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection)
            assert names(await running.next()) == ["a.wav"]

    asyncio.run(scenario())
    log = messages(capsys)
    assert "(try 1; the next in 1 s)" in log
    assert "Going on after" in log
    assert SECRET_KEY not in log


def test_missing_connection_does_not_kill_the_trigger(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, airflow_home: Path
) -> None:
    bucket = s3.bucket("calls")
    s3.client().put_object(Bucket=bucket, Key="dt=2026-11-01/a.wav", Body=b"x")

    async def scenario() -> None:
        trigger = NewAudioTrigger(source=f"s3://{bucket}/dt={{dt}}/", source_conn_id="not_yet", **FAST)
        async with Running(revived(trigger)) as running:
            await asyncio.sleep(0.2)
            monkeypatch.setenv("AIRFLOW_CONN_NOT_YET", s3.connection)
            assert names(await running.next()) == ["a.wav"]

    asyncio.run(scenario())


def test_pauses_grow_up_to_five_minutes() -> None:
    assert [backoff_seconds(n, 5) for n in (1, 2, 3)] == [5, 10, 20]
    assert backoff_seconds(50, 5) == MAX_BACKOFF_SECONDS
    assert backoff_seconds(50, 3600) == 3600


def test_listing_does_not_hold_up_the_event_loop(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_whisper.watch.watcher import SourceWatch

    original = SourceWatch._observe

    def slow(self: SourceWatch, now: float) -> None:
        time.sleep(0.5)
        original(self, now)

    monkeypatch.setattr(SourceWatch, "_observe", slow)

    async def scenario() -> float:
        put(source, "a.wav")
        longest = 0.0
        async with Running(new_trigger(source)) as running:
            while running.events.empty():
                before = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - before)
        return longest

    assert asyncio.run(scenario()) < 0.4


def test_stopped_trigger_leaves_no_files_behind(source: Path, tmp_path: Path) -> None:
    import tempfile

    folder = tmp_path / "temporary"
    folder.mkdir()

    async def scenario() -> None:
        put(source, "a.wav")
        async with Running(new_trigger(source)) as running:
            await running.next()
            assert list(folder.iterdir())
        deadline = time.monotonic() + 10
        while list(folder.iterdir()) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        asyncio.run(scenario())
    finally:
        tempfile.tempdir = before
    assert list(folder.iterdir()) == []


def test_stored_arguments_keep_their_names() -> None:
    _, arguments = NewAudioTrigger(source="s3://calls/dt={dt}/", extensions=("wav",), min_files=7).serialize()
    assert arguments == {
        "source": "s3://calls/dt={dt}/",
        "partition_from_modified": None,
        "source_conn_id": None,
        "staging": None,
        "staging_conn_id": None,
        "pattern": None,
        "extensions": ["wav"],
        "poll_interval": 60,
        "stable_polls": 2,
        "min_age": 60,
        "min_files": 7,
        "max_wait": 300,
        "max_files": 10_000,
        "since": None,
        "lookback": 2 * 86400,
        "sweep_interval": 3600,
        "overlap": 3600,
    }


def test_trigger_fits_an_asset_watcher_and_hides_nothing_in_it() -> None:
    arguments = {"source": "s3://calls/dt={dt}/", "source_conn_id": "calls_s3", "extensions": ("wav",)}
    trigger = NewAudioTrigger(**arguments)
    assert isinstance(trigger, BaseEventTrigger)
    assert Asset("calls", watchers=[AssetWatcher(name="new", trigger=trigger)]).watchers
    path, first = trigger.serialize()
    _, second = NewAudioTrigger(**arguments).serialize()
    # Airflow tells triggers apart by this; a changing one would lose the cursor whenever a DAG is parsed.
    assert BaseEventTrigger.hash(path, first) == BaseEventTrigger.hash(path, second)
    assert first["source_conn_id"] == "calls_s3"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": "5"}, "poll_interval"),
        ({"source": "s3://calls/raw/"}, "which partition"),
        ({"extensions": "wav"}, "must be a list"),
        ({"min_files": 0}, "min_files"),
        ({"staging": "s3://calls/dt=1/x"}, "staging"),
    ],
)
def test_wrong_argument_fails_while_the_dag_file_is_parsed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewAudioTrigger(**{"source": "s3://calls/dt={dt}/", **wrong})


def event(*partitions: str, second: int = 0) -> SimpleNamespace:
    entries = [{"source": f"s3://c/{p}/", "partition": {"dt": p}, "files": 1, "bytes": 1} for p in partitions]
    moment = datetime(2026, 11, 1, 0, 0, second, tzinfo=UTC)
    return SimpleNamespace(extra={"from_trigger": True, "payload": {"partitions": entries}}, timestamp=moment)


def test_partitions_of_several_events_are_worked_on_once() -> None:
    manual = SimpleNamespace(extra={})
    events = {Asset("a"): [event("2", "1"), event("2"), manual], Asset("b"): [event("3")]}
    assert arrived_partitions(events) == [
        {"source": f"s3://c/{p}/", "partition": {"dt": p}} for p in ("1", "2", "3")
    ]
    assert arrived_partitions({}) == []


def event_of(*entries: tuple[str, dict[str, str]]) -> SimpleNamespace:
    partitions = [{"source": source, "partition": partition} for source, partition in entries]
    return SimpleNamespace(extra={"payload": {"partitions": partitions}}, timestamp=datetime.now(UTC))


def test_every_partition_of_one_source_is_worked_on() -> None:
    days = [{"dt": f"2026-11-0{day}"} for day in (3, 1, 2)]
    events = [event_of(*(("s3://c/inbox/", day) for day in days)), event_of(("s3://c/inbox/", {"dt": "4"}))]
    assert [entry["partition"]["dt"] for entry in arrived_partitions({Asset("a"): events})] == [
        "2026-11-01",
        "2026-11-02",
        "2026-11-03",
        "4",
    ]


def test_every_source_of_one_partition_is_worked_on() -> None:
    day = {"dt": "2026-11-01"}
    events = {Asset("a"): [event_of(("s3://c/eu/", day))], Asset("b"): [event_of(("s3://c/us/", day))]}
    assert arrived_partitions(events) == [
        {"source": "s3://c/eu/", "partition": day},
        {"source": "s3://c/us/", "partition": day},
    ]


def test_order_of_keys_makes_no_other_partition_and_other_keys_do() -> None:
    source = "s3://c/raw/"
    events = [
        event_of((source, {"dt": "1", "hour": "2"}), (source, {"hour": "2", "dt": "1"})),
        event_of((source, {"dt": "1"}), (source, {"dt": "1", "hour": "12"})),
    ]
    found = [entry["partition"] for entry in arrived_partitions({Asset("a"): events})]
    assert found == [{"dt": "1"}, {"dt": "1", "hour": "12"}, {"dt": "1", "hour": "2"}]
    assert list(found[2]) == ["dt", "hour"]


def test_values_that_look_alike_are_different_partitions() -> None:
    source = "s3://c/raw/"
    odd = [{"a": "1", "b": "2"}, {"a": "1'), ('b', '2"}, {"a": "1/b=2"}, {"A": "1", "b": "2"}]
    assert len(arrived_partitions({Asset("a"): [event_of(*((source, p) for p in odd))]})) == 4


class Inlet(list[SimpleNamespace]):
    """All events of an asset, as ``inlet_events`` of a task gives them."""

    def after(self, moment: str) -> list[SimpleNamespace]:
        return [event for event in self if event.timestamp >= datetime.fromisoformat(moment)]


def test_events_that_no_run_was_made_for_are_worked_on_too() -> None:
    asset = Asset("a")
    started_by = [event("1", second=10), event("2", second=11)]
    inlet = Inlet([event("0", second=9), *started_by, event("3", second=12)])
    assert [
        entry["partition"]["dt"] for entry in arrived_partitions({asset: started_by}, {asset: inlet})
    ] == [
        "1",
        "2",
        "3",
    ]
    assert arrived_partitions({}, {asset: inlet}) == []


@pytest.mark.parametrize(
    "payload",
    [
        "text",
        {"partitions": None},
        {"partitions": "text"},
        {"partitions": [None, {"source": "s3://calls/"}, {"source": 1, "partition": {"dt": "1"}}]},
        {"partitions": [{"source": "s3://calls/", "partition": {}}]},
    ],
)
def test_events_of_others_are_ignored_whatever_is_in_them(payload: Any) -> None:
    entry = {"source": "s3://calls/dt=1/", "partition": {"dt": "1"}}
    events = [
        SimpleNamespace(extra={"payload": found}, timestamp=datetime(2026, 11, 1, tzinfo=UTC))
        for found in (payload, {"partitions": [entry]})
    ]
    assert arrived_partitions({"audio": events}) == [entry]


def test_too_many_partitions_for_one_run_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="max_map_length"):
        arrived_partitions({Asset("a"): [event(*map(str, range(1025)))]})
