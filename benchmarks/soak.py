"""A watch on a bucket whose process is killed again and again while files arrive: is anything lost?

``scale.py soak`` runs it. The process runs ``NewAudioTrigger`` as the triggerer does: with its arguments from
the database, a state that survives the process, and events that reach the database a moment after the trigger
has fired them, unless the process was killed before.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UPLOADS_A_SECOND = 2.0
REPLACED = 0.1
"""Share of uploads that replace a file."""

# Seconds between two kills, so that some hit the process while it starts and some after many polls.
_KILLS = (3.0, 45.0)
_DELIVERY = (0.0, 2.0)
_PATIENCE_S = 300.0
# Days ago of the folders that get files. The last one is older than those that each poll lists.
_DAYS = (0, 1, 30)


# --- the process that is killed --------------------------------------------------------------------------


class FileState:
    """Stands in for Airflow's asset state store, which is a table of its database."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.json"

    async def aget(self, key: str) -> Any:
        return json.loads(self._path.read_text()).get(key) if self._path.exists() else None

    async def aset(self, key: str, value: Any) -> None:
        values = json.loads(self._path.read_text()) if self._path.exists() else {}
        new = self._path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({**values, key: value}))
        new.replace(self._path)


async def watch(source: str, folder: Path) -> None:
    """Run the trigger until the process is killed."""
    from airflow_whisper.triggers.audio import NewAudioTrigger
    from airflow_whisper.watch import payload

    # Every event has a list, because lists name the versions of the files.
    payload.INLINE_URIS = 0
    trigger = NewAudioTrigger(
        source=source,
        staging=str(folder / "staging"),
        poll_interval=2,
        min_age=4,
        max_wait=10,
        sweep_interval=60,
        overlap=300,
    )
    trigger = NewAudioTrigger(**trigger.serialize()[1])
    trigger.asset_state_store = FileState(folder)  # type: ignore[assignment]
    async with asyncio.TaskGroup() as deliveries:
        async for event in trigger.run():
            deliveries.create_task(_deliver(event.payload, folder / "events"))


async def _deliver(payload: Any, events: Path) -> None:
    await asyncio.sleep(random.uniform(*_DELIVERY))
    with events.open("a") as file:
        file.write(json.dumps(payload) + "\n")


# --- the process that kills it ---------------------------------------------------------------------------


@dataclass
class Soak:
    """What has happened so far.

    :ivar etags: etag of the last version of each URI.
    """

    client: Any
    bucket: str
    folder: Path
    random: random.Random
    etags: dict[str, str] = field(default_factory=dict)
    versions: int = 0
    kills: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, f"s3://{self.bucket}/raw/dt={{dt}}/", str(self.folder)]
        with (self.folder / "watch.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "watch.log").read_text()[-3000:])
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def upload(self) -> None:
        if self.etags and self.random.random() < REPLACED:
            key = self.random.choice(sorted(self.etags)).split("/", 3)[3]
        else:
            day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86400 * self.random.choice(_DAYS)))
            key = f"raw/dt={day}/{len(self.etags):06d}.wav"
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=self.random.randbytes(20))
        self.etags[f"s3://{self.bucket}/{key}"] = answer["ETag"].strip('"')
        self.versions += 1

    def reported(self) -> tuple[int, Counter[tuple[str, str]]]:
        """Number of events, and how often each version of a file has been reported."""
        import pyarrow.parquet as pq

        events = (self.folder / "events").read_text().splitlines()
        counts: Counter[tuple[str, str]] = Counter()
        for event in events:
            table = pq.read_table(json.loads(event)["list_uri"].removeprefix("file://"))
            counts.update(zip(table["audio_uri"].to_pylist(), table["audio_etag"].to_pylist(), strict=True))
        return len(events), counts

    def lost(self) -> set[tuple[str, str]]:
        """Files whose last version has not been reported."""
        return self.etags.items() - self.reported()[1].keys()


def soak(seconds: float, seed: int) -> dict[str, int]:
    """Upload files for so many seconds and kill the watch at random. Returns what came of it, by name."""
    from servers import s3_server

    with tempfile.TemporaryDirectory(prefix="soak-") as name, s3_server(Path(name) / "s3") as server:
        folder = Path(name)
        (folder / "events").touch()
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_REGION": "us-east-1",
        }
        state = Soak(server.client(), server.bucket("soak"), folder, random.Random(seed))
        state.start(environment)
        try:
            _play(state, seconds, environment)
            deadline = time.monotonic() + _PATIENCE_S
            while state.lost() and time.monotonic() < deadline:
                time.sleep(2)
        finally:
            if state.process is not None:
                state.process.kill()
                state.process.wait()
        events, counts = state.reported()
        return {
            "files": len(state.etags),
            "versions": state.versions,
            "kills": state.kills,
            "events": events,
            "reported again": sum(count - 1 for count in counts.values()),
            "lost": len(state.lost()),
        }


def _play(state: Soak, seconds: float, environment: dict[str, str]) -> None:
    end = time.monotonic() + seconds
    next_kill = time.monotonic() + state.random.uniform(*_KILLS)
    while time.monotonic() < end:
        state.upload()
        if time.monotonic() > next_kill:
            state.kill()
            state.start(environment)
            next_kill = time.monotonic() + state.random.uniform(*_KILLS)
        time.sleep(state.random.expovariate(UPLOADS_A_SECOND))


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], Path(sys.argv[2])))
