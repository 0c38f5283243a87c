"""What reading costs a processor: decoding, voice detection and features, with one reader and with many.

    .venv/bin/python benchmarks/reading.py                              alone, then a reader on each core
    .venv/bin/python benchmarks/reading.py --readers 1 8 16 --rounds 3
    .venv/bin/python benchmarks/reading.py --against ../other/spark_jobs    beside another checkout

Each reader is a process that reads the files of a corpus, like those that read for a GPU. All of them
begin at the same moment. The seconds are those of a processor (user and system) for an hour of audio, summed
over the readers, so that more of them cost more only when they are in each other's way: cores that share
memory, caches, or as hyper-threads a core. With ``--against`` both checkouts take turns, and the script fails
when they cut a file into other windows.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from note import table

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "spark_jobs"
STAGES = ("fetch", "decode", "vad", "features")


def measure(code: Path, readers: int, folder: Path, minutes: float) -> dict[str, float | str]:
    """Read with several processes at once. Their sums, for an hour of audio.

    :param code: folder of the package ``whisper_spark`` to measure.
    :param minutes: of audio, for each reader.
    """
    command = [sys.executable, __file__, "--reader", str(folder), "--minutes", str(minutes)]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(readers)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    found = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"a reader ended with status {process.returncode}")
        found.append(json.loads(output))
    hours = sum(reader["seconds"] for reader in found) / 3600
    names = [name for name in found[0] if name not in ("seconds", "windows")]
    windows = hashlib.sha256("".join(reader["windows"] for reader in found).encode()).hexdigest()
    return {"windows": windows, **{name: sum(reader[name] for reader in found) / hours for name in names}}


def read(folder: Path, minutes: float) -> dict[str, float | str]:
    """Read the files of a folder again and again in this process. Its seconds by stage, and what it read."""
    from threadpoolctl import threadpool_limits

    from whisper_spark.audio.features import LogMel
    from whisper_spark.audio.files import AudioFile
    from whisper_spark.audio.reader import FileReader, Finished, opened_from
    from whisper_spark.audio.windows import Window
    from whisper_spark.contract import WhisperOptions
    from whisper_spark.progress import counters
    from whisper_spark.storage.objects import ObjectStorage, normalise_uri

    _keep_freed_memory()
    # Stages count the time of the clock. Here they count that of this thread on a processor.
    counters.time.perf_counter = time.thread_time
    reader = FileReader(WhisperOptions(), LogMel(80), opened_from(ObjectStorage()))
    uris = [normalise_uri(str(path)) for path in sorted(folder.iterdir()) if path.suffix != ".jsonl"]
    seconds, windows = 0.0, hashlib.sha256()
    progress = counters.Progress()
    with threadpool_limits(1, user_api="blas"):
        # The first file loads what is needed.
        list(reader.read(AudioFile(uris[0])))
        print("ready", flush=True)
        sys.stdin.readline()
        before = resource.getrusage(resource.RUSAGE_SELF)
        with progress.recording():
            while seconds < minutes * 60:
                for uri in uris:
                    for part in reader.read(AudioFile(uri)):
                        if isinstance(part, Window):
                            windows.update(repr((part.channel, part.number, part.map)).encode())
                        elif isinstance(part, Finished):
                            seconds += part.duration_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    stages = progress.snapshot().stages
    return {
        "seconds": seconds,
        "windows": windows.hexdigest(),
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "page faults": after.ru_minflt - before.ru_minflt,
        **{name: stages[name] for name in STAGES},
    }


def _keep_freed_memory() -> None:
    """Do what the processes that read for a GPU do; earlier releases did not."""
    with contextlib.suppress(ImportError):
        from whisper_spark.malloc import keep_freed_memory, own_process

        own_process()
        keep_freed_memory()


def main() -> None:
    arguments = _arguments()
    if arguments.reader:
        print(json.dumps(read(arguments.reader, arguments.minutes)))
        return
    from corpus import corpus
    from note import NOTE, write_block

    folder = corpus(arguments.corpus)
    codes = {"this": HERE, **({"other": arguments.against.resolve()} if arguments.against else {})}
    runs: dict[tuple[str, int], list[dict[str, float | str]]] = {}
    for _ in range(arguments.rounds):
        for readers in arguments.readers:
            for name, code in codes.items():
                run = measure(code, readers, folder, arguments.minutes)
                runs.setdefault((name, readers), []).append(run)
    text = [
        f"{arguments.corpus}, {datetime.now(UTC):%Y-%m-%d}, {_processor()}, medians of {arguments.rounds}:",
        "",
        *lines(runs),
    ]
    print(*text, sep="\n")
    if arguments.write:
        write_block("reading", text)
        print(f"\nwritten to {NOTE.relative_to(ROOT)}")
    cuts = {
        readers: {run["windows"] for (_, n), found in runs.items() if n == readers for run in found}
        for _, readers in runs
    }
    if any(len(different) > 1 for different in cuts.values()):
        sys.exit("the windows differ")


def lines(runs: dict[tuple[str, int], list[dict[str, float | str]]]) -> list[str]:
    """The table as Markdown, in processor seconds for an hour of audio.

    :param runs: results of :func:`measure` by name of the code and number of readers.
    """
    columns = ["user", "system", *STAGES]
    rows = []
    for (name, readers), found in runs.items():
        medians = {
            column: statistics.median(run[column] for run in found) for column in [*columns, "page faults"]
        }
        total = medians["user"] + medians["system"]
        numbers = [f"{total:.2f}", *(f"{medians[column]:.2f}" for column in columns)]
        rows.append([name, str(readers), *numbers, f"{medians['page faults']:,.0f}"])
    return table(["code", "readers", "all", *columns, "page faults"], rows)


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--readers", type=int, nargs="+", default=[1, cores], help="(default: 1 %(default)s)")
    parser.add_argument("--corpus", default="calls", help="(default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of audio for each reader (default: %(default)g)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--against", type=Path, help="folder of another whisper_spark to compare with")
    parser.add_argument("--reader", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
