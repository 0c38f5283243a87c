"""Time, memory and requests of finding new audio among a million objects in an S3 server (SeaweedFS).

    .venv/bin/python benchmarks/discovery_scale.py              1,000,000 objects: 1,000 days of 1,000 files
    .venv/bin/python benchmarks/discovery_scale.py --days 10 --files 10

Prints for a first poll (everything is new), a full sweep (nothing is), an idle poll (what a watch does most
of the time), and for ``DiscoverAudioOperator`` with all objects as one partition: seconds, seconds of CPU,
peak memory of the process, and requests as the server counted them. Each runs in a process of its own.

The objects are made by loading entries into the server's directory (its ``fs.meta.load``), which is faster
than a million uploads: entries like that of one uploaded object, with names and times of their own,
which all point to its byte. A listing reads entries, so it does not see the difference.

``--create-with`` and ``--measure-with`` are put in front of the commands that make the objects and that
measure, for example ``--measure-with "taskset -c 0"``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
FILE = "0000000.wav"


# --- objects ---------------------------------------------------------------------------------------------


def make_objects(folder: Path, bucket: str, server: Any, days: int, files: int, create_with: str) -> None:
    """Objects ``raw/dt=<day>/<number>.wav``, modified on their day."""
    client = server.client()
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for ago in range(days):
        client.put_object(
            Bucket=bucket, Key=f"raw/dt={today - timedelta(days=ago):%Y-%m-%d}/{FILE}", Body=b"x"
        )
    saved, loaded = folder / "saved.meta", folder / "loaded.meta"
    weed_shell(folder, f"fs.meta.save -o {saved} /buckets/{bucket}/raw/dt={today:%Y-%m-%d}")
    (record,) = [r for r in records(saved.read_bytes()) if FILE.encode() in r]
    newest = client.head_object(Bucket=bucket, Key=f"raw/dt={today:%Y-%m-%d}/{FILE}")["LastModified"]
    directory, uploaded = f"/raw/dt={today:%Y-%m-%d}".encode(), varint(int(newest.timestamp()))
    with loaded.open("wb") as out:
        for ago in range(days):
            day = today - timedelta(days=ago)
            of_day = record.replace(directory, f"/raw/dt={day:%Y-%m-%d}".encode())
            for number in range(1, files):
                seconds = min(day + timedelta(seconds=number * 86_000 // files), newest)
                entry = of_day.replace(FILE.encode(), f"{number:07d}.wav".encode())
                entry = entry.replace(uploaded, varint(int(seconds.timestamp())))
                out.write(entry)
        # The loader does not wait for those that its last threads have in hand.
        out.write(entry * 64)
    weed_shell(folder, f"fs.meta.load -v=false -concurrency=8 {loaded}", create_with)


def records(data: bytes) -> Iterator[bytes]:
    """Entries of a saved directory, each behind its length."""
    while data:
        (length,) = struct.unpack(">I", data[:4])
        yield data[: 4 + length]
        data = data[4 + length :]


def varint(number: int) -> bytes:
    """As Protocol Buffers write a number; five bytes for any time of these decades."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def weed_shell(folder: Path, command: str, prefix: str = "") -> None:
    from servers import weed_binary

    flags = dict(
        argument[1:].split("=", 1)
        for argument in server_arguments(folder)
        if argument.startswith("-") and "=" in argument
    )
    places = [
        f"-{name}=127.0.0.1:{flags[f'{name}.port']}.{flags[f'{name}.port.grpc']}"
        for name in ("master", "filer")
    ]
    shell = [*shlex.split(prefix), str(weed_binary()), "shell", *places]
    done = subprocess.run(shell, input=f"{command}\nexit\n", capture_output=True, text=True, check=False)
    if done.returncode or "error" in done.stdout.lower():
        raise RuntimeError(f"{command}: {done.stdout[-1000:]} {done.stderr[-1000:]}")


def server_arguments(folder: Path) -> list[str]:
    """Of the server that keeps its data in the folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_text().split("\0")
        except OSError:
            continue
        if arguments[1:2] == ["mini"] and any(str(folder) in argument for argument in arguments):
            return arguments
    raise RuntimeError("the server is not running")


# --- measurements, each in a process of its own ----------------------------------------------------------


def watch_of(bucket: str) -> Any:
    import airflow_whisper.triggers.audio  # noqa: F401 - as in the triggerer: memory includes Airflow
    from airflow_whisper.watch.source import WatchedSource
    from airflow_whisper.watch.watcher import SourceWatch

    return SourceWatch(WatchedSource(source=f"s3://{bucket}/raw/dt={{dt}}/", source_conn_id="calls"))


def first_poll(bucket: str, report: Any) -> None:
    watch = watch_of(bucket)
    with report("first poll, everything is new") as line:
        payloads = watch.poll()
        line(
            f"{watch.pending.count() + watch.pending.reported_count():,} new, {len(payloads)} events, "
            f"{watch.pending.disk_bytes() / 1e6:.0f} MB on disk"
        )
    watch.close()


def sweep(bucket: str, report: Any) -> None:
    watch = watch_of(bucket)
    watch.pending.watermark = time.time_ns() // 1000
    with report("full sweep, nothing is new") as line:
        line(f"{len(watch.poll())} events")
    with report("idle poll") as line:
        line(f"{len(watch.poll())} events")
    watch.close()


def discovery(bucket: str, report: Any) -> None:
    from airflow_whisper.operators.discover import DiscoverAudioOperator

    operator = DiscoverAudioOperator(
        task_id="discover",
        source=f"s3://{bucket}/raw/",
        partition={"dt": "all"},
        table="speech.transcripts",
        staging=f"s3://{bucket}/staging/",
        source_conn_id="calls",
    )
    with report("discovery of one partition into a manifest") as line:
        line(f"{operator.execute({})['counts']['new']:,} files")  # type: ignore[typeddict-item]


class Report:
    """Prints what a block of code took."""

    def __init__(self, title: str, list_requests: Any) -> None:
        self._title, self._list_requests = title, list_requests
        self._result = ""

    def __enter__(self) -> Any:
        self._before = peak_megabytes()
        self._requests = self._list_requests()
        self._began, self._cpu = time.monotonic(), time.process_time()
        return lambda text: setattr(self, "_result", text)

    def __exit__(self, *_: object) -> None:
        seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
        print(
            f"{self._title:45} {seconds:7.1f} s ({cpu:.1f} s of CPU)"
            f"  peak {peak_megabytes():5.0f} MB ({self._before:.0f} MB "
            f"before)"
            f"  {self._list_requests() - self._requests:6,} listings  {self._result}",
            flush=True,
        )


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEASUREMENTS = {function.__name__: function for function in (first_poll, sweep, discovery)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000, help="on each day")
    parser.add_argument("--create-with", default="")
    parser.add_argument("--measure-with", default="")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        from servers import S3Server

        *names, bucket, server = arguments.measure
        counter = S3Server(**json.loads(server)).list_requests
        for name in names:
            MEASUREMENTS[name](bucket, lambda title: Report(title, counter))
        return
    from servers import s3_server

    with (
        tempfile.TemporaryDirectory(prefix="discovery-scale-") as temporary,
        s3_server(Path(temporary)) as server,
    ):
        bucket = server.bucket("scale")
        began = time.monotonic()
        make_objects(Path(temporary), bucket, server, arguments.days, arguments.files, arguments.create_with)
        seconds = time.monotonic() - began
        print(f"{arguments.days * arguments.files:,} objects made in {seconds:.0f} s", flush=True)
        places = {"endpoint": server.endpoint, "iceberg_uri": "", "metrics_uri": server.metrics_uri}
        environment = {
            **os.environ,
            "AIRFLOW_HOME": f"{temporary}/airflow",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW_CONN_CALLS": server.connection,
        }
        script = " && ".join(
            shlex.join([sys.executable, __file__, "--measure", name, bucket, json.dumps(places)])
            for name in MEASUREMENTS
        )
        command = [*shlex.split(arguments.measure_with), "bash", "-c", script]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
