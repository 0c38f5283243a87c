"""Tables and a plot from what ``run.py`` and its neighbours measured."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import plot
from contenders import CONTENDERS
from corpus import CORPORA, ROOT, references
from corpus import corpus as corpus_folder
from note import table, write_block
from scoring import TOLERANCE_S, Errors, difference, errors_by_prompt, read_output

RESULTS = ROOT / ".cache" / "bench-results"
PLOT = ROOT / "benchmarks" / "speed.svg"
OURS = "ours_files"
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
    return table(head, rows)


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
    return table(["contender", *languages, "wrong language"], rows)


def difference_table(corpus: str) -> list[str]:
    """Errors that our engine makes more or less than the baselines, with what chance does to that."""
    own = [reference for reference in references(corpus_folder(corpus)) if reference.language]
    languages = list(dict.fromkeys(str(reference.language) for reference in own))
    columns = {language: [language] for language in languages}
    if len(languages) > 1:
        columns["all"] = languages
    found: dict[str, Counter[tuple[str, str]]] = {}  # by language and prompt
    for name in (OURS, *BASELINES):
        path = RESULTS / "outputs" / f"{name}.{corpus}.jsonl"
        if path.is_file():
            heard, _ = read_output(path)
            found[name] = Counter()
            for reference in own:
                errors = errors_by_prompt(reference, heard)
                found[name].update({(str(reference.language), prompt): n for prompt, n in errors.items()})
    rows = []
    for name in BASELINES:
        if name in found and OURS in found:
            cells = [_difference(found[OURS], found[name], part) for part in columns.values()]
            rows.append([CONTENDERS[name].title, *cells])
    return table(["ours against", *columns], rows)


def _difference(
    ours: Counter[tuple[str, str]], others: Counter[tuple[str, str]], languages: Sequence[str]
) -> str:
    prompts = [key for language in languages for key in ours if key[0] == language]
    more, low, high = difference([ours[key] for key in prompts], [others[key] for key in prompts])
    return f"{more:+d} ({low:+.0f} to {high:+.0f})"


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
    return table([*head, "median s", "95th percentile s"], rows)


def invented_table(corpus: str) -> list[str]:
    """Words heard where none was said."""
    rows = []
    for result in load(corpus):
        invented = middle(result)["invented"]
        words = sum(len(text.split()) for text in invented.values())
        files = ", ".join(sorted(name.rpartition(".")[0] for name in invented))
        rows.append([CONTENDERS[result["contender"]].title, str(words), str(len(invented)), files])
    return table(["contender", "words", "files", "which"], rows)


def print_tables(corpora: Sequence[str]) -> None:
    """All tables of some corpora, on the terminal."""
    for name in corpora:
        for title, lines in _tables(name):
            print(f"\n{name}: {title}\n", *lines, sep="\n")


def render() -> None:
    """Write the tables into the note, between their markers, and the plot beside it."""
    write_block("provenance", _provenance())
    for name in CORPORA:
        for title, lines in _tables(name):
            write_block(f"{name} {title}", lines)
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
    yield "errors against the baselines", difference_table(corpus)
    if base != "clips":
        yield "word times", times_table(corpus)


def _provenance() -> list[str]:
    results = [result for name in CORPORA for result in load(name)]
    if not results:
        return ["Nothing measured yet."]
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


def _range(result: Result) -> str:
    speeds = [run["speed"] for run in result["runs"]]
    spread = f" ({min(speeds):.1f} to {max(speeds):.1f})" if len(speeds) > 1 else ""
    return f"{speed(result):.1f}{spread}"


def _within(distances: Sequence[float]) -> float:
    return sum(abs(d) <= TOLERANCE_S for d in distances) / len(distances)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
