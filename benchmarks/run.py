"""All contenders over all corpora, interleaved: speed, word errors, memory, processor time.

    .venv/bin/python benchmarks/run.py                                       everything, see PLAN
    .venv/bin/python benchmarks/run.py --corpus clips --contenders method3,ours_files --runs 3
    .venv/bin/python benchmarks/run.py --contenders main                     all but the peers
    .venv/bin/python benchmarks/run.py --quick                               small corpora, one run of each
    .venv/bin/python benchmarks/run.py --render                              tables from what was measured

Each run is a whole process, start-up included; what Spark needs to start is measured and reported apart.
Every contender runs once before any runs twice. Results are kept in ``.cache/bench-results``, one file for
each contender and corpus, so that parts can be measured by themselves; the tables show all that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Contender
from corpus import CORPORA, ROOT, corpus, references
from measure import Measured, RunError, measure
from report import RESULTS, print_tables, render
from scoring import Errors, invented_words, read_output, times, word_errors

sys.path[:0] = [str(ROOT / "scripts")]

OFTEN = ("method3", "batched", "ours_files", "ours_spark")
ONCE = ("method1", "method2", "batched_greedy")
PEERS = ("openai_whisper", "hf_pipeline", "whispercpp", "s2t")
GROUPS = {"main": (*OFTEN, *ONCE), "peers": PEERS}
PLAN: Mapping[str, Mapping[str, int]] = {
    "clips": dict.fromkeys(OFTEN, 3) | dict.fromkeys((*ONCE, *PEERS), 1),
    "calls": dict.fromkeys(OFTEN, 3) | dict.fromkeys((*ONCE, *PEERS), 1),
    "long": dict.fromkeys(OFTEN[:3], 3)
    | dict.fromkeys(("batched_greedy", "ours_spark", "whispercpp", "s2t"), 1),
    "nonspeech": dict.fromkeys(OFTEN[:3], 1),
}
"""Runs of each contender on each corpus, when nothing else is asked for: three of those that are compared in
speed, one of the others. The other two peers would take most of the time for the hour: their calls are the
slowest by far."""

CORES = 2
TIMEOUT_S = 3_600.0


def main() -> None:
    arguments = _arguments()
    if not arguments.render:
        names = [f"{name}-quick" if arguments.quick else name for name in arguments.corpus]
        for name in names:
            _run_corpus(name, arguments)
    quick = "-quick" if arguments.quick else ""
    print_tables([name + quick for name in arguments.corpus])
    if not arguments.quick:
        render()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--corpus", default=list(CORPORA), help=", ".join(CORPORA), **several)
    parser.add_argument("--contenders", help=", ".join([*GROUPS, *CONTENDERS]), **several)
    parser.add_argument("--runs", type=int, help="of each contender (default: see PLAN; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small corpora; not written to RESULTS.md")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the tables")
    arguments = parser.parse_args()
    known_names = (*GROUPS, *CONTENDERS)
    for given, known in ((arguments.corpus, CORPORA), (arguments.contenders or [], known_names)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}. Known: {', '.join(known)}")
    return arguments


def _run_corpus(name: str, arguments: argparse.Namespace) -> None:
    plan = dict(PLAN[name.removesuffix("-quick")])
    if arguments.contenders:
        plan = {contender: plan.get(contender, 1) for contender in _asked(arguments.contenders, plan)}
    if arguments.runs or arguments.quick:
        plan = dict.fromkeys(plan, arguments.runs or 1)
    folder = corpus(name)
    done: dict[str, list[dict[str, Any]]] = {contender: [] for contender in plan}
    for turn in range(max(plan.values(), default=0)):
        for contender, runs in plan.items():
            if turn < runs:
                _run_once(CONTENDERS[contender], name, folder, done[contender])


def _asked(names: Sequence[str], plan: Collection[str]) -> Iterator[str]:
    """Who is named, and of a group those that are planned for the corpus."""
    for name in names:
        yield from (c for c in GROUPS[name] if c in plan) if name in GROUPS else (name,)


def _run_once(contender: Contender, name: str, folder: Path, runs: list[dict[str, Any]]) -> None:
    try:
        python, model = contender.prepare()
        output = RESULTS / "outputs" / f"{contender.name}.{name}.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [
            python,
            contender.script,
            str(folder),
            str(output),
            "--model",
            model,
            "--cores",
            str(CORES),
        ]
        measured = measure(command, _environment(), output.with_suffix(".log"), TIMEOUT_S)
    except (RunError, RuntimeError) as error:  # of the run, of what it needs
        print(f"{name:8} {contender.name:15} failed: {error}", flush=True)
        return
    runs.append(_scored(measured, output, folder))
    result = {
        "contender": contender.name,
        "corpus": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": machine(),
        "runs": runs,
    }
    (RESULTS / f"{contender.name}.{name}.json").write_text(json.dumps(result, indent=1))
    run = runs[-1]
    print(
        f"{name:8} {contender.name:15} {run['wall_s']:7.1f} s, start-up {run['startup_s']:4.1f} s, "
        f"{run['speed']:6.1f} x real time, WER {run['wer']:6.2%}, {run['peak_mib']:6.0f} MiB, "
        f"{run['cpu_s']:6.1f} CPU s",
        flush=True,
    )


def _scored(measured: Measured, output: Path, folder: Path) -> dict[str, Any]:
    own = references(folder)
    heard, facts = read_output(output)
    errors = word_errors(own, heard)
    total = sum(errors.values(), start=Errors())
    startup = facts.get("startup_s", 0.0)
    seconds = sum(reference.seconds for reference in own)
    found = times(own, heard)
    return {
        **asdict(measured),
        "startup_s": startup,
        "speed": seconds / (measured.wall_s - startup),
        "audio_s": seconds,
        "wer": total.rate,
        "errors": {language: asdict(error) for language, error in errors.items()},
        "wrong_language": sum(
            r.language is not None and r.file in heard and heard[r.file].language not in (None, r.language)
            for r in own
        ),
        "missing": sum(r.file not in heard for r in own),
        "times": asdict(found),
        "within": found.within,
        "invented": invented_words(own, heard),
        "facts": facts,
    }


def _environment() -> dict[str, str]:
    environment = {**os.environ, "BENCH_STARTED": repr(time.monotonic()), "PYTHONUTF8": "1"}
    # Set by nobody on a user's machine, and every framework here obeys it.
    environment.pop("OMP_NUM_THREADS", None)
    return environment


def machine() -> str:
    """Processor, cores and memory of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return f"{model}, {os.cpu_count()} cores, {wide}, {memory:.0f} GB, Python {platform.python_version()}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    # The tables that this program writes do not make what it measures another one.
    changed = git("status", "--porcelain", "--", "spark_jobs", "benchmarks/contenders", "constraints.txt")
    return (git("describe", "--always") or "?") + ("-dirty" if changed else "")


if __name__ == "__main__":
    main()
