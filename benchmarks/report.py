"""Tables and a plot from what ``run.py`` and its neighbours measured."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import plot
from contenders import CONTENDERS
from corpus import CORPORA, ROOT
from scoring import TOLERANCE_S, Errors

RESULTS = ROOT / ".cache" / "bench-results"
NOTE = ROOT / "benchmarks" / "RESULTS.md"
PLOT = ROOT / "benchmarks" / "speed.svg"
BASELINES = ("method3", "batched")

Result = dict[str, Any]


def load(corpus: str) -> list[Result]:
    """Results on a corpus, in the order of the contenders; their runs in that of their speed."""
    results = []
    for name in CONTENDERS:
        path = RESULTS / f"{name}.{corpus}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            result["runs"].sort(key=lambda run: run["speed"])
            results.append(result)
    return results


def load_measurement(name: str) -> dict[str, Any] | None:
    """What a script beside ``run.py`` stored, or ``None``."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def store_measurement(name: str, values: dict[str, Any]) -> None:
    """Keep the values of a script beside ``run.py`` for the note."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(values, indent=1, ensure_ascii=False))


def middle(result: Result) -> dict[str, Any]:
    """The run of median speed; of two in the middle the slower."""
    return result["runs"][(len(result["runs"]) - 1) // 2]


def speed(result: Result) -> float:
    """Seconds of audio in a second, the median over runs."""
    return statistics.median(run["speed"] for run in result["runs"])


def median(result: Result, key: str) -> float:
    """Median over runs."""
    return statistics.median(run[key] for run in result["runs"])


def speed_table(corpus: str) -> list[str]:
    """Speed, errors, memory and processor time of each contender on a corpus."""
    results = load(corpus)
    base = {r["contender"]: speed(r) for r in results if r["contender"] in BASELINES}
    head = ["contender", "× real time", *(f"against {name}" for name in BASELINES if name in base)]
    head += ["WER %", "S / D / I", "peak MiB", "CPU s", "start-up s", "runs"]
    rows = []
    for result in results:
        run = middle(result)
        total = sum((Errors(**errors) for errors in run["errors"].values()), start=Errors())
        rows.append(
            [
                CONTENDERS[result["contender"]].title,
                _range(result),
                *(f"{speed(result) / base[name]:.2f}" for name in BASELINES if name in base),
                f"{100 * total.rate:.2f}",
                f"{total.substitutions} / {total.deletions} / {total.insertions}",
                f"{median(result, 'peak_mib'):,.0f}",
                f"{median(result, 'cpu_s'):.0f}",
                f"{median(result, 'startup_s'):.1f}" if run["startup_s"] else "",
                str(len(result["runs"])),
            ]
        )
    return _markdown(head, rows)


def error_table(corpus: str) -> list[str]:
    """Word error rate by language, with substitutions, deletions and insertions."""
    results = load(corpus)
    languages = list(dict.fromkeys(key for result in results for key in middle(result)["errors"]))
    rows = []
    for result in results:
        errors = {key: Errors(**value) for key, value in middle(result)["errors"].items()}
        cells = [
            f"{100 * e.rate:.1f} ({e.substitutions}/{e.deletions}/{e.insertions})" if e else ""
            for e in map(errors.get, languages)
        ]
        wrong = str(middle(result)["wrong_language"])
        rows.append([CONTENDERS[result["contender"]].title, *cells, wrong])
    return _markdown(["contender", *languages, "wrong language"], rows)


def times_table(corpus: str) -> list[str]:
    """How close words lie to where prompts begin and end."""
    rows = []
    for result in load(corpus):
        found = middle(result)["times"]
        distances = [abs(d) for d in (*found["starts"], *found["ends"])]
        if not distances:
            continue
        rows.append(
            [
                CONTENDERS[result["contender"]].title,
                f"{len(found['starts'])} of {found['prompts']}",
                _percent(_within(found["starts"])),
                _percent(_within(found["ends"])),
                _percent(_within(distances)),
                f"{statistics.median(distances):.2f}",
                f"{statistics.quantiles(distances, n=20)[-1]:.2f}" if len(distances) > 1 else "",
            ]
        )
    head = ["contender", "prompts", f"starts within {TOLERANCE_S} s", f"ends within {TOLERANCE_S} s", "both"]
    return _markdown([*head, "median s", "95th percentile s"], rows)


def invented_table(corpus: str) -> list[str]:
    """Words heard where none was said."""
    rows = []
    for result in load(corpus):
        invented = middle(result)["invented"]
        words = sum(len(text.split()) for text in invented.values())
        files = ", ".join(sorted(name.rpartition(".")[0] for name in invented))
        rows.append([CONTENDERS[result["contender"]].title, str(words), str(len(invented)), files])
    return _markdown(["contender", "words", "files", "which"], rows)


def print_tables(corpora: Sequence[str]) -> None:
    """All tables of some corpora, on the terminal."""
    for name in corpora:
        for title, lines in _tables(name):
            print(f"\n{name}: {title}\n", *lines, sep="\n")


def render() -> None:
    """Write the tables into the note, between their markers, and the plot beside it."""
    text = NOTE.read_text(encoding="utf-8")
    for name in CORPORA:
        for title, lines in _tables(name):
            text = _between_markers(text, f"{name} {title}", lines)
    text = _between_markers(text, "provenance", _provenance())
    for name in ("shuffle", "floor", "memory"):
        values = load_measurement(name)
        if values:
            text = _between_markers(text, name, values["lines"])
    NOTE.write_text(text, encoding="utf-8")
    bars = {name: [(r["contender"], speed(r)) for r in load(name)] for name in CORPORA if name != "nonspeech"}
    PLOT.write_text(plot.bars({name: rows for name, rows in bars.items() if rows}), encoding="utf-8")


def _tables(corpus: str) -> Iterator[tuple[str, list[str]]]:
    if not load(corpus):
        return
    base = corpus.removesuffix("-quick")
    if base == "nonspeech":
        yield "invented words", invented_table(corpus)
        return
    yield "speed", speed_table(corpus)
    if base != "long":
        yield "errors by language", error_table(corpus)
    if base != "clips":
        yield "word times", times_table(corpus)


def _provenance() -> list[str]:
    results = [result for name in CORPORA for result in load(name)]
    machines = sorted({result["machine"] for result in results})
    dates = sorted(result["date"][:10] for result in results)
    commits = sorted({result["commit"] for result in results})
    versions = {k: v for r in results for run in r["runs"] for k, v in run["facts"]["versions"].items()}
    return [
        f"- machine: {'; '.join(machines)}",
        f"- measured: {dates[0]} to {dates[-1]}" if dates[0] != dates[-1] else f"- measured: {dates[0]}",
        f"- commits: {', '.join(commits)}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
    ]


def _between_markers(text: str, name: str, lines: Sequence[str]) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{NOTE.name} has no markers {begin} and {end}: put them where the table belongs")
    block = "\n".join([begin, "", *lines, "", end])
    return pattern.sub(lambda _: block, text)


def _range(result: Result) -> str:
    speeds = [run["speed"] for run in result["runs"]]
    spread = f" ({min(speeds):.1f} to {max(speeds):.1f})" if len(speeds) > 1 else ""
    return f"{speed(result):.1f}{spread}"


def _within(distances: Sequence[float]) -> float:
    return sum(abs(d) <= TOLERANCE_S for d in distances) / len(distances)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose columns also line up as plain text."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) + " |"
        for r in (head, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
