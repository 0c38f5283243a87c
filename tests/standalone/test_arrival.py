"""Files arrive, and transcripts appear: nobody triggers anything."""

from __future__ import annotations

import datetime
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from live_airflow import MOST_LISTED, PATIENCE, wait_for
from live_site import TABLE, Site
from speech import Clip

pytestmark = pytest.mark.timeout(3 * PATIENCE)

DAG_ID = "transcribe_on_arrival"
CONSUMER = "transcripts_consumer"
FILES, OVERWRITTEN, LATE = 120, 15, 10
UPLOAD_SECONDS = 45
KILLED = {UPLOAD_SECONDS / 3: "triggerer", UPLOAD_SECONDS * 2 / 3: "scheduler"}
# Tomorrow, and not the day before yesterday: past days are looked at less often, and midnight may come.
DAYS = [
    (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days)).isoformat() for days in (-1, 0, 1)
]


@dataclass(frozen=True)
class Upload:
    """One version of a file."""

    at: float
    """Seconds after the first."""
    key: str
    body: bytes


@pytest.fixture(scope="module")
def arrivals(site: Site, librivox: list[Clip]) -> Iterator[Site]:
    """A site whose source is being watched, and which has just transcribed its first file."""
    with site.unpaused(CONSUMER, DAG_ID):
        site.put(f"daily/dt={DAYS[0]}/first.wav", librivox[1].path.read_bytes())
        wait_for("the first row", lambda: rows_named(site, "first"), PATIENCE)
        wait_for("the end of its run", lambda: site.airflow.idle(DAG_ID), PATIENCE)
        yield site


@pytest.fixture(scope="module")
def short_clips(speech: list[Clip]) -> list[bytes]:
    return [clip.path.read_bytes() for clip in speech if clip.seconds < 2.5]


@pytest.fixture(scope="module")
def figures(artifacts: Path) -> Iterator[dict[str, Any]]:
    """Measured times and counts, which are kept with the logs."""
    figures: dict[str, Any] = {}
    yield figures
    (artifacts / "arrival.json").write_text(json.dumps(figures, indent=2))


def rows_named(site: Site, name: str) -> list[dict[str, Any]]:
    return [row for row in site.rows() if row["audio_uri"].rpartition("/")[2].startswith(name)]


def test_uploaded_file_becomes_a_row_by_itself(
    arrivals: Site, librivox: list[Clip], figures: dict[str, Any]
) -> None:
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    arrivals.put(f"daily/dt={DAYS[1]}/second.wav", librivox[4].path.read_bytes())
    began = time.monotonic()
    (row,) = wait_for("the row", lambda: rows_named(arrivals, "second"), PATIENCE, every=0.2)
    seconds = time.monotonic() - began
    figures["upload to row"] = {"seconds": round(seconds, 1), "load per core before": round(load, 2)}
    print(figures)
    assert (row["dt"], row["status"]) == (DAYS[1], "ok")
    assert "might even have been made amiable" in row["text"]


def upload_plan(name: str, bodies: list[bytes]) -> list[Upload]:
    """Files in three partitions one after the other, except that some are late; some come again."""
    random_ = random.Random(name)
    uploads = []
    for number in range(FILES):
        at = number * UPLOAD_SECONDS / FILES
        key = f"daily/dt={DAYS[number * len(DAYS) // FILES]}/{name}-{number:03}.wav"
        uploads.append(Upload(at, key, bodies[number % len(bodies)]))
    late = random_.sample(range(FILES // 2), LATE)
    for number in late:
        uploads[number] = replace(uploads[number], at=random_.uniform(0.9, 1) * UPLOAD_SECONDS)
    for number in random_.sample([n for n in range(FILES) if n not in late], OVERWRITTEN):
        first = uploads[number]
        at = random_.uniform(first.at, UPLOAD_SECONDS)
        uploads.append(Upload(at, first.key, bodies[(number + 1) % len(bodies)]))
    return sorted(uploads, key=lambda upload: upload.at)


def upload_all(site: Site, plan: list[Upload], disturb: dict[float, str]) -> dict[str, str]:
    """Uploads at the planned times; returns the etag of the last version of each URI.

    :param disturb: components of Airflow by the time at which they are killed and started again.
    """
    client, began, etags = site.s3.client(), time.monotonic(), {}
    pending = sorted(disturb.items())
    for upload in plan:
        if pending and upload.at > pending[0][0]:
            _, component = pending.pop(0)
            site.airflow.kill(component)
            site.airflow.start(component)
        time.sleep(max(0.0, began + upload.at - time.monotonic()))
        answer = client.put_object(Bucket=site.bucket, Key=upload.key, Body=upload.body)
        etags[f"s3://{site.bucket}/{upload.key}"] = answer["ETag"].strip('"')
    return etags


def test_every_file_of_a_stream_ends_as_one_row_of_its_last_version_whatever_is_killed(
    arrivals: Site, short_clips: list[bytes], figures: dict[str, Any]
) -> None:
    airflow, name = arrivals.airflow, "stream"
    plan = upload_plan(name, short_clips)
    start = datetime.datetime.now(datetime.UTC)
    began = time.monotonic()

    def converged() -> bool:
        return {row["audio_uri"]: row["audio_etag"].strip('"') for row in rows_named(arrivals, name)} == etags

    etags = upload_all(arrivals, plan, KILLED)
    uploaded = time.monotonic() - began
    assert len(etags) == FILES
    wait_for("a row of the last version of each file", converged, PATIENCE, every=1)
    seconds = time.monotonic() - began - uploaded
    # What is still under way may neither add nor change anything.
    wait_for("the last run", lambda: airflow.idle(DAG_ID, CONSUMER), PATIENCE)
    assert converged()
    rows = rows_named(arrivals, name)
    assert len(rows) == FILES, "a file has two rows"
    assert {row["status"] for row in rows} == {"ok"}
    assert {f"s3://{arrivals.bucket}/daily/dt={row['dt']}/" for row in rows} == {
        uri.rpartition("/")[0] + "/" for uri in etags
    }
    commits = registered(arrivals, start)
    published = sum(commit["rows"] for commit in commits)
    figures["stream"] = {
        "files": FILES,
        "versions": len(plan),
        "rows": len(rows),
        "rows published": published,
        "commits": len(commits),
        "runs": Counter(run["state"] for run in airflow.runs(DAG_ID, run_after_gte=start.isoformat())),
        "seconds of upload": round(uploaded),
        "seconds until the last row": round(seconds),
    }
    print(figures)
    told = {
        entry["snapshot_id"]
        for run in airflow.runs(CONSUMER, run_after_gte=start.isoformat())
        for entry in airflow.returned(CONSUMER, run["dag_run_id"], "print_new_rows")
    }
    assert told >= {commit["snapshot_id"] for commit in commits}, "downstream missed a commit"
    # A version that was replaced before it could be read may never be transcribed, but none is twice.
    assert FILES <= published <= len(plan)


def registered(site: Site, since: datetime.datetime) -> list[dict[str, Any]]:
    """The ``extra`` of each event of the table's asset."""
    events = [event["extra"] for event in site.airflow.events(timestamp_gte=since.isoformat())]
    assert len(events) < MOST_LISTED, "the API lists no more: some are missing"
    return [extra for extra in events if extra.get("table") == TABLE]
