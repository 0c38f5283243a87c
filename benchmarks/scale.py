"""What large partitions, long histories and long watches cost: one table row per measurement.

    .venv/bin/python benchmarks/scale.py rows               memory of 1,000 and 1,000,000 staged error rows
    .venv/bin/python benchmarks/scale.py requests           requests to an S3 server for 5,000 files
    .venv/bin/python benchmarks/scale.py partition          1,000,000 files of one partition, end to end
    .venv/bin/python benchmarks/scale.py soak               ten minutes of a trigger that is killed at random
    .venv/bin/python benchmarks/scale.py commits            one commit after 320, 2,000 and 5,000 snapshots

``--write`` puts the table into RESULTS.md. ``partition`` and ``requests`` run the operators and the packaged
job, each step in a process of its own, with a stand-in for the engine that reads each file and answers with
the same sentence. Processor seconds are user and system time of all processes of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

PARTITION = {"dt": "2026-11-01"}
TABLE = "speech.transcripts"
STEPS = ("discover", "transcribe", "validate", "register")
SENTENCE = "thank you for calling please hold the line for us".split()

# Hard links that ext4 allows for one file.
_LINKS = 60_000
_FILES_A_FOLDER = 1_000
_TIMEOUT_S = 24 * 3600


# --- a stand-in for the engine ---------------------------------------------------------------------------


def stand_in(options: Any, model_storage: Any = None) -> StandIn:
    """Has the signature of ``whisper_spark.engine.transcriber.get_engine``."""
    return StandIn(options)


class StandIn:
    """Reads each file, and answers with the same sentence."""

    def __init__(self, options: Any) -> None:
        from whisper_spark.contract import Segment, Word

        self._options, self._fingerprint = options, options.fingerprint()
        words = tuple(Word(0.4 * n, 0.4 * n + 0.3, " " + word, 0.9) for n, word in enumerate(SENTENCE))
        self._text = " ".join(SENTENCE)
        self._segments = (Segment(0, None, 0.0, 4.0, self._text, "en", -0.2, 1.2, 0.0, words),)

    def transcribe(self, files: Iterable[Any], storage: Any, progress: Any) -> Iterator[Any]:
        from whisper_spark.contract import Transcript

        progress.start()
        for file in files:
            with storage.open(file.uri, etag=file.etag) as audio:
                audio.read()
            transcript = Transcript(
                audio_uri=file.uri,
                audio_etag=file.etag,
                audio_bytes=file.size,
                attempt=file.attempt,
                status="ok",
                language="en",
                duration_s=5.0,
                speech_s=4.0,
                channels=1,
                text=self._text,
                segments=self._segments,
                model=self._options.model,
                fingerprint=self._fingerprint,
                engine_version="stand-in",
                transcribed_at=datetime.now(UTC),
            )
            progress.finished(transcript)
            yield transcript
        progress.stop()


# --- the four steps, each in a process of its own --------------------------------------------------------


class _TaskInstance:
    def xcom_push(self, key: str, value: Any) -> None:
        """Nobody reads it."""


def run_step(name: str, source: str, staging: str, manifest: Path) -> None:
    """Run one operator as Airflow does. ``manifest`` is the file that keeps the URI of the manifest."""
    from airflow_whisper.operators.discover import DiscoverAudioOperator
    from airflow_whisper.operators.register import RegisterTranscriptsOperator
    from airflow_whisper.operators.validate import ValidateTranscriptsOperator
    from whisper_spark import WhisperOptions

    context: Any = {"ti": _TaskInstance()}
    catalog = "lake" if "AIRFLOW_CONN_LAKE" in os.environ else None
    if name == "discover":
        operator = DiscoverAudioOperator(
            task_id=name,
            source=source,
            partition=PARTITION,
            table=TABLE,
            staging=staging,
            options=WhisperOptions(model="base", language="en"),
            catalog_conn_id=catalog,
        )
        manifest.write_text(operator.execute(context)["manifest_uri"])
    elif name == "validate":
        ValidateTranscriptsOperator(task_id=name, manifest=manifest.read_text()).execute(context)
    else:
        RegisterTranscriptsOperator(
            task_id=name, manifest=manifest.read_text(), catalog_conn_id=catalog
        ).execute(context)


def step_command(name: str, source: str, staging: str, folder: Path, cores: int) -> list[str]:
    """The command line of one step."""
    manifest = folder / "manifest-uri"
    if name != "transcribe":
        return [sys.executable, __file__, "step", name, source, staging, str(manifest)]
    from spark_cluster import spark_binary

    from airflow_whisper.hooks.job_package import job_script, write_archive

    command = [spark_binary("spark-submit"), "--master", f"local[{cores}]", "--py-files"]
    command += [str(write_archive(folder)), "--conf", "spark.ui.enabled=false", str(job_script())]
    return [*command, "--manifest", manifest.read_text(), "--engine", "scale:stand_in"]


def step_environment(folder: Path, **others: str) -> dict[str, str]:
    """Environment of a step, with an Airflow home and a warehouse of its own."""
    from airflow_whisper.hooks.spark_submit import client_environment

    return {
        **os.environ,
        **client_environment("local[1]", None),
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW_WHISPER_WAREHOUSE": str(folder / "warehouse"),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT / "benchmarks"),
        **others,
    }


class PythonMemory(threading.Thread):
    """Looks every second at the memory of the Python processes below this one.

    :ivar peak_mib: the most that they had together. Pages that they share count for each of them.
    :ivar largest_mib: the most that one of them had.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = self.largest_mib = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        import psutil

        while not self._over.wait(1.0):
            sizes = [0.0]
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "python" in child.name():
                        sizes.append(child.memory_info().rss / 2**20)
            self.peak_mib = max(self.peak_mib, sum(sizes))
            self.largest_mib = max(self.largest_mib, *sizes)

    def __enter__(self) -> PythonMemory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


# --- one large partition ---------------------------------------------------------------------------------


def make_files(folder: Path, count: int) -> None:
    """Tiny files, as links to few: a million of them need no space of their own."""
    for number in range(count):
        if number % _LINKS == 0:
            original = folder / f"original-{number}"
            original.write_bytes(b"audio")
        if number % _FILES_A_FOLDER == 0:
            below = folder / "audio" / f"{number // _FILES_A_FOLDER:04d}"
            below.mkdir(parents=True)
        os.link(original, below / f"{number:07d}.wav")


def partition(arguments: argparse.Namespace) -> list[str]:
    """Each step of a partition of many files: time, processor time and memory."""
    from measure import measure
    from note import table

    rows = []
    with tempfile.TemporaryDirectory(prefix="scale-", dir=arguments.dir) as name:
        folder = Path(name)
        make_files(folder, arguments.files)
        print(f"{arguments.files:,} files made in {folder}", flush=True)
        environment = step_environment(folder)
        for step in STEPS:
            command = step_command(
                step, f"file://{folder}/audio/", f"file://{folder}/staging/", folder, arguments.cores
            )
            with PythonMemory() as python:
                taken = measure(command, environment, folder / f"{step}.log", _TIMEOUT_S)
            memory = taken.peak_mib, python.peak_mib, python.largest_mib
            rows.append([step, *(f"{figure:,.0f}" for figure in (taken.wall_s, taken.cpu_s, *memory))])
            print(*rows[-1], flush=True)
    head = ["step", "s", "processor s", "peak MiB", "Python's peak MiB", "largest Python MiB"]
    return [
        f"{arguments.files:,} files of one local source in one partition, `local[{arguments.cores}]`:",
        "",
        *table(head, rows),
    ]


# --- requests --------------------------------------------------------------------------------------------


def requests(arguments: argparse.Namespace) -> list[str]:
    """The requests of each step to an S3 server that holds source, staging and table."""
    from note import table
    from servers import REGION, s3_server

    rows = []
    with tempfile.TemporaryDirectory(prefix="scale-") as name, s3_server(Path(name) / "s3") as server:
        folder, bucket, client = Path(name), server.bucket("calls"), server.client()
        for number in range(arguments.files):
            client.put_object(Bucket=bucket, Key=f"raw/{number:05d}.wav", Body=b"audio")
        environment = step_environment(
            folder,
            AWS_ACCESS_KEY_ID=server.access_key,
            AWS_SECRET_ACCESS_KEY=server.secret_key,
            AWS_ENDPOINT_URL=server.endpoint,
            AWS_REGION=REGION,
            AIRFLOW_CONN_LAKE=server.lake().connection,
        )
        for step in STEPS:
            before = _answered(server)
            command = step_command(
                step, f"s3://{bucket}/raw/", f"s3://{bucket}/staging/", folder, arguments.cores
            )
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            rows.append([step, *_counts(_answered(server) - before)])
        objects = client.list_objects_v2(Bucket=bucket, Prefix="staging/")["KeyCount"]
    place = "source, staging and table in one S3 server (SeaweedFS)"
    return [
        f"{arguments.files:,} files, {place}, {objects} objects in staging at the end:",
        "",
        *table(["step", *_KINDS], rows),
    ]


_KINDS = ("LIST", "GET", "HEAD", "PUT", "DELETE")


def _answered(server: Any) -> Counter[str]:
    """How many requests of each type the server has answered since its start."""
    import re
    import urllib.request

    with urllib.request.urlopen(server.metrics_uri, timeout=10) as response:
        text = response.read().decode()
    pattern = r'^SeaweedFS_s3_request_total\{.*type="(\w+)".*\} (\S+)$'
    return Counter(
        {
            kind: sum(int(float(count)) for name, count in found if name == kind)
            for found in [re.findall(pattern, text, re.MULTILINE)]
            for kind, _ in found
        }
    )


def _counts(answered: Mapping[str, int]) -> list[str]:
    return [f"{answered.get(kind, 0):,}" for kind in _KINDS]


# --- staged rows -----------------------------------------------------------------------------------------


def rows(arguments: argparse.Namespace) -> list[str]:
    """Peak memory of a process that stages error rows, by their number."""
    from note import table

    found = []
    for count in arguments.rows:
        command = [sys.executable, __file__, "stage", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        taken = json.loads(done.stdout)
        figures = [f"{taken[name]:,.0f}" for name in ("peak", "before", "cpu", "files")]
        found.append([f"{count:,}", *figures])
    return [
        "Error rows through `StagedRows`:",
        "",
        *table(["rows", "peak MiB", "before MiB", "processor s", "files"], found),
    ]


def stage_rows(count: int) -> None:
    """Stage error rows as fast as possible, and print what that took as JSON."""
    import pyarrow.parquet  # noqa: F401 - loaded before, so that the difference is what the rows take

    from whisper_spark.contract import Run, Transcript, WhisperOptions
    from whisper_spark.staging.rows import StagedRows
    from whisper_spark.storage.objects import ObjectStorage

    options = WhisperOptions(model="base")
    fingerprint, now = options.fingerprint(), datetime.now(UTC)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            table=TABLE,
            partition=PARTITION,
            source="file:///audio/",
            options=options,
            run_uri=f"file://{folder}/run",
            manifest_id="0" * 32,
        )
        before, cpu = _peak_mib(), time.process_time()
        with StagedRows(ObjectStorage(), run, "part", "0000") as staged:
            for number in range(count):
                staged.add(
                    Transcript(
                        audio_uri=f"s3://calls/raw/dt=2026-11-01/{number:07d}.wav",
                        audio_etag=f"{number:032x}",
                        audio_bytes=number,
                        attempt=1,
                        status="error",
                        error_code="corrupt",
                        error_message="no sound could be decoded: invalid data found",
                        model="base",
                        fingerprint=fingerprint,
                        engine_version="stand-in",
                        transcribed_at=now,
                    )
                )
        files = len(staged.written)
    print(
        json.dumps({"peak": _peak_mib(), "before": before, "cpu": time.process_time() - cpu, "files": files})
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- a watch that is killed ------------------------------------------------------------------------------


def soaked(arguments: argparse.Namespace) -> list[str]:
    """What a watch reports that is killed at random while files arrive."""
    from note import table
    from soak import REPLACED, UPLOADS_A_SECOND, soak

    found = soak(arguments.seconds, arguments.seed)
    uploads = f"{UPLOADS_A_SECOND:g} uploads a second to an S3 server (SeaweedFS)"
    return [
        f"{arguments.seconds:,.0f} s of {uploads}, {REPLACED:.0%} of them to a file that is there:",
        "",
        *table([*found], [[f"{number:,}" for number in found.values()]]),
    ]


# --- commits ---------------------------------------------------------------------------------------------


def commits(arguments: argparse.Namespace) -> list[str]:
    """Processor time of one commit, by the number of snapshots that the table has."""
    from lakes import change, row_keys
    from note import table

    from airflow_whisper.hooks.catalog import open_catalog
    from airflow_whisper.table.read import current_snapshot_id
    from airflow_whisper.table.replace import replace_rows

    rows = []
    for count in arguments.snapshots:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            os.environ["AIRFLOW_WHISPER_WAREHOUSE"] = name
            catalog = open_catalog(None)
            replace_rows(catalog, TABLE, change(["a"], key="first"))
            make_history(catalog, count)
            taken = []
            for number in range(arguments.runs):
                day = {"dt": f"2026-12-{number + 1:02d}"}
                changed = change(["b"], partition=day, base=current_snapshot_id(catalog, TABLE))
                before = time.process_time()
                assert replace_rows(catalog, TABLE, changed) is not None
                taken.append(time.process_time() - before)
            assert len(row_keys(catalog)) == 1
            assert len(catalog.load_table(TABLE).snapshots()) == count + arguments.runs
        rows.append([f"{count:,}", f"{statistics.median(taken):.2f}"])
    return [
        f"One row into a partition of its own, SQLite catalog, median of {arguments.runs}:",
        "",
        *table(["snapshots", "processor s"], rows),
    ]


def make_history(catalog: Any, count: int) -> None:
    """Give a table with one snapshot so many, as if the same files had been committed again and again.

    Written as metadata, because a commit takes longer the more snapshots there are.
    """
    loaded = catalog.load_table(TABLE)
    path = Path(loaded.metadata_location.removeprefix("file://"))
    metadata = json.loads(path.read_text())
    (snapshot,) = metadata["snapshots"]
    now = snapshot["timestamp-ms"]
    metadata["snapshots"] = [
        {
            **snapshot,
            "snapshot-id": number + 1,
            "sequence-number": number + 1,
            "timestamp-ms": now - count + 1 + number,
            "summary": {**snapshot["summary"], "whisper.idempotency-key": f"run {number}"},
            **({"parent-snapshot-id": number} if number else {}),
        }
        for number in range(count)
    ]
    metadata["snapshot-log"] = [
        {"snapshot-id": entry["snapshot-id"], "timestamp-ms": entry["timestamp-ms"]}
        for entry in metadata["snapshots"]
    ]
    metadata |= {"current-snapshot-id": count, "last-sequence-number": count}
    metadata["refs"]["main"]["snapshot-id"] = count
    grown = path.with_name(f"00002-{path.name.partition('-')[2]}")
    grown.write_text(json.dumps(metadata))
    catalog.drop_table(TABLE)
    catalog.register_table(TABLE, f"file://{grown}")


# --- the command line ------------------------------------------------------------------------------------

MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Sequence[str]]] = {
    "commits": commits,
    "partition": partition,
    "requests": requests,
    "rows": rows,
    "soak": soaked,
}


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        name, source, staging, manifest = sys.argv[2:]
        run_step(name, source, staging, Path(manifest))
        return
    if sys.argv[1:2] == ["stage"]:
        stage_rows(int(sys.argv[2]))
        return
    arguments = _arguments()
    lines = MEASUREMENTS[arguments.measurement](arguments)
    print("", *lines, sep="\n")
    if arguments.write:
        from note import write_block

        write_block(f"scale {arguments.measurement}", lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="measurement", required=True, metavar="MEASUREMENT")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    common.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of Spark (default: all)")
    large = commands.add_parser("partition", parents=[common])
    large.add_argument("--files", type=int, default=1_000_000)
    large.add_argument("--dir", help="where the files are made (default: the folder for temporary files)")
    counted = commands.add_parser("requests", parents=[common])
    counted.add_argument("--files", type=int, default=5_000)
    killed = commands.add_parser("soak", parents=[common])
    killed.add_argument("--seconds", type=float, default=600.0)
    killed.add_argument("--seed", type=int, default=1)
    committed = commands.add_parser("commits", parents=[common])
    committed.add_argument("snapshots", type=int, nargs="*", default=[320, 2_000, 5_000])
    committed.add_argument("--runs", type=int, default=5)
    staged = commands.add_parser("rows", parents=[common])
    staged.add_argument("rows", type=int, nargs="*", default=[1_000, 1_000_000])
    return parser.parse_args()


if __name__ == "__main__":
    main()
