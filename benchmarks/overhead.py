"""What the Spark job costs on top of the engine: the same calls through both, on the same cores.

    .venv/bin/python benchmarks/overhead.py                     about an hour of calls
    .venv/bin/python benchmarks/overhead.py --minutes 15 --runs 3

The calls of the corpus are given again under other names until there are enough. The engine runs as for
``transcribe_files``; the job as ``spark-submit --master local[N]`` with the packaged job. Both times begin
with a running interpreter or session and end with the last result, so both hold starting the engine's
process, loading and testing the model; what Spark needs to start and to stop is reported apart. Runs are
interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from note import NOTE, table, write_block

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

MOST = 0.05
"""Overhead that is allowed, as a share of the engine's own time."""


def calls(folder: Path, minutes: float, corpus_name: str) -> tuple[list[Path], float]:
    """Calls in a folder, so many minutes of them, and their seconds."""
    from corpus import corpus, references

    source = corpus(corpus_name)
    own = references(source)
    paths: list[Path] = []
    seconds = 0.0
    while seconds < minutes * 60:
        reference = own[len(paths) % len(own)]
        path = folder / f"{len(paths):04d}-{reference.file}"
        os.link(source.resolve() / reference.file, path)
        paths.append(path)
        seconds += reference.seconds
    return paths, seconds


def run_engine(paths: Sequence[Path]) -> dict[str, float]:
    """The engine without Spark, in a new Python."""
    command = [sys.executable, __file__, "--engine", *map(str, paths)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return {"process": time.monotonic() - started, **found}


def _engine(paths: Sequence[str]) -> None:
    started = time.monotonic()
    from assemble_model import assemble

    from whisper_spark import WhisperOptions
    from whisper_spark.audio.files import AudioFile
    from whisper_spark.engine.isolated import IsolatedEngine
    from whisper_spark.progress.counters import Progress
    from whisper_spark.storage.objects import ObjectStorage, normalise_uri

    engine = IsolatedEngine(WhisperOptions(model=str(assemble())))
    progress = Progress()
    # In the order that the job takes them in.
    ordered = sorted(paths, key=lambda path: -Path(path).stat().st_size)
    files = (AudioFile(normalise_uri(path)) for path in ordered)
    transcripts = list(engine.transcribe(files, ObjectStorage(), progress))
    assert all(transcript.status == "ok" for transcript in transcripts)
    end = time.monotonic()
    stages = {f"stage {name}": seconds for name, seconds in progress.snapshot().stages.items()}
    print(json.dumps({"total": end - started, **stages}))


def run_job(paths: Sequence[Path], folder: Path, cores: int) -> dict[str, float]:
    """The packaged job on local Spark."""
    from assemble_model import assemble
    from spark_cluster import spark_binary, write_run

    from airflow_whisper.hooks.job_package import job_script, write_archive
    from airflow_whisper.hooks.spark_submit import client_environment
    from whisper_spark import WhisperOptions
    from whisper_spark.staging.result import read_result
    from whisper_spark.storage.objects import ObjectStorage

    options = WhisperOptions(model=str(assemble()))
    run = write_run(f"file://{folder}/staging-{time.monotonic_ns()}", [f"file://{p}" for p in paths], options)
    master = f"local[{cores}]"
    command = [spark_binary("spark-submit"), "--master", master, "--py-files", str(write_archive(folder))]
    command += ["--conf", "spark.ui.enabled=false", str(job_script()), "--manifest", run.manifest_uri]
    environment = {**os.environ, **client_environment(master, None)}
    started = time.monotonic()
    told: dict[str, float] = {}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    log = []
    for line in process.stdout:
        log.append(line)
        for name, words in (("up", " files for "), ("transcribing", "transcribing "), ("done", "done in ")):
            if line.startswith("whisper: ") and words in line:
                told.setdefault(name, time.monotonic())
    ended = time.monotonic()
    if process.wait():
        raise RuntimeError("the job failed:\n" + "".join(log[-20:]))
    result = read_result(run, ObjectStorage())
    assert (result.ok, result.transcribed) == (len(paths), len(paths))
    return {
        "startup": told["up"] - started,
        "total": told["done"] - told["up"],
        "preparing": told["transcribing"] - told["up"],
        "transcribing": result.transcribe_seconds,
        "settling": told["done"] - told["transcribing"] - result.transcribe_seconds,
        "stopping": ended - told["done"],
        **{f"stage {name}": seconds for name, seconds in result.stage_seconds.items()},
    }


def lines(jobs: list[dict[str, float]], engines: list[dict[str, float]], seconds: float) -> list[str]:
    """The table as Markdown."""
    job = {name: statistics.median(run[name] for run in jobs) for name in jobs[0]}
    engine = {name: statistics.median(run[name] for run in engines) for name in engines[0]}
    rows = [
        ["engine, model loading included", f"{engine['total']:.1f}"],
        ["job, model loading included", f"{job['total']:.1f}"],
        ["- before the first task", f"{job['preparing']:.1f}"],
        ["- tasks", f"{job['transcribing']:.1f}"],
        ["- checking and adding up what is staged", f"{job['settling']:.1f}"],
        ["**overhead**", f"**{overhead(jobs, engines):+.1%}**"],
        ["Spark's start, not in the overhead", f"{job['startup']:.1f}"],
        ["Spark's end, not in the overhead", f"{job['stopping']:.1f}"],
    ]
    stages = [name for name in engine if name.startswith("stage ")]
    split = [[name.removeprefix("stage "), f"{engine[name]:.1f}", f"{job[name]:.1f}"] for name in stages]
    calls = f"{seconds / 60:.0f} minutes of calls, whisper-base int8"
    return [
        f"{calls}, {datetime.now(UTC):%Y-%m-%d}, median of {len(jobs)} run(s); seconds:",
        "",
        *table(["", "s"], rows),
        "",
        "Seconds of threads by stage:",
        "",
        *table(["stage", "engine", "job"], split),
    ]


def overhead(jobs: list[dict[str, float]], engines: list[dict[str, float]]) -> float:
    """Share by which the job takes longer than the engine, medians of both."""
    job, engine = (statistics.median(run["total"] for run in runs) for runs in (jobs, engines))
    return job / engine - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of calls (default: %(default)g)")
    parser.add_argument("--runs", type=int, default=1, help="of each (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="(default: %(default)s)")
    parser.add_argument("--corpus", default="calls", help="(default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--engine", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        _engine(arguments.engine)
        return
    engines, jobs = [], []
    cache = ROOT / ".cache"  # where the corpus is, so that links can be made
    with tempfile.TemporaryDirectory(dir=cache.resolve()) as name:
        folder = Path(name)
        (folder / "calls").mkdir()
        paths, seconds = calls(folder / "calls", arguments.minutes, arguments.corpus)
        for _ in range(arguments.runs):
            engines.append(run_engine(paths))
            print(f"engine {engines[-1]['total']:.1f} s", flush=True)
            jobs.append(run_job(paths, folder, arguments.cores))
            print(f"job    {jobs[-1]['total']:.1f} s", flush=True)
    text = lines(jobs, engines, seconds)
    print("", *text, sep="\n")
    if arguments.write:
        write_block("overhead", text)
        print(f"\nwritten to {NOTE.relative_to(ROOT)}")
    sys.exit(overhead(jobs, engines) > MOST)


if __name__ == "__main__":
    main()
