"""Render the validation report as a self-contained HTML page, without external scripts, fonts or images.

File names, transcripts and error messages are untrusted. The template environment escapes all values and
makes control characters visible, and the page's policy allows the browser nothing but the page's own style.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from airflow_whisper.report import charts
from airflow_whisper.validation.distributions import ROUND_SECONDS
from airflow_whisper.validation.summary import beginning
from whisper_spark.contract import ERROR_CODES, QUALITY_FLAGS
from whisper_spark.contract.text import visible

if TYPE_CHECKING:
    from airflow_whisper.validation.report import Report

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content security policy of the page: browsers may only use its own style."""

# Limits that keep the page of any report small: rows and checks shown, and characters of one cell.
_MOST_ROWS = 100
_LONGEST_TEXT = 300
_LONGEST_URI = 2000
_MOST_BARS = 40
_LANGUAGES = 12
_MOST_SPEAKERS = 12


def report_page(report: Report) -> str:
    """Render the page of a report.

    :raises TypeError, ValueError, KeyError, ...: if the report holds values of unexpected types.
    """
    verdict = "Passed" if report.passed else "Failed"
    spread, counts = report.distributions, report.counts
    errors = report.errors[:_MOST_ROWS]
    return _render(
        title=f"{verdict}: {report.table} {report.partition}",
        report=report,
        verdict=verdict,
        said=_said(report),
        tiles=_tiles(report),
        checks=report.checks[:_MOST_ROWS],
        durations=_durations(spread.get("duration_s")),
        confidence=_confidence(spread.get("confidence")),
        throughput=_throughput(spread.get("throughput"), report.job.get("real_time_factor")),
        languages=charts.bars(_most_common(counts.get("languages", {}), _LANGUAGES)),
        speakers=charts.bars(_speakers(counts.get("speakers", {}))),
        speakers_note=_speakers_note(report),
        flags=charts.bars(_most_common(report.warnings), QUALITY_FLAGS),
        error_codes=charts.bars(_most_common(counts.get("error_codes", {})), ERROR_CODES),
        worst=report.worst[:_MOST_ROWS],
        errors=errors,
        errors_note=_first_of(len(errors), counts.get("errors", 0)),
        facts=_facts(report),
    )


def message_page(message: str) -> str:
    """Render a page that shows a message instead of a report."""
    return _render(title="No report", message=message)


def _render(**values: Any) -> str:
    style = Markup(files(__package__).joinpath("page.css").read_text())  # noqa: S704 - our own file
    page = _environment().get_template("page.html.jinja")
    return page.render(
        policy=POLICY,
        style=style,
        width=charts.WIDTH,
        height=charts.HEIGHT,
        floor=charts.FLOOR,
        **values,
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("airflow_whisper.report", "."), autoescape=True, finalize=_shown
    )
    environment.filters |= {
        "short": functools.partial(_cut, _LONGEST_TEXT),
        "long": functools.partial(_cut, _LONGEST_URI),
        "decimal": _decimal,
        "span": _span,
    }
    return environment


def _shown(value: object) -> object:
    """Make control characters of a value visible. Markup comes only from the template itself."""
    return value if isinstance(value, Markup) else visible(value, keep="\n\t")


def _cut(limit: int, value: object) -> str:
    return beginning(str(value), limit)


# --- sections ------------------------------------------------------------------------------------------


def _said(report: Report) -> str:
    failed = [check.check for check in report.checks if not check.passed]
    if report.passed:
        return f"All {len(report.checks)} checks passed."
    names = _cut(_LONGEST_TEXT, ", ".join(failed))
    return f"{len(failed)} of {len(report.checks)} checks failed: {names}. Nothing was published."


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and note of each tile."""
    counts, totals, job = report.counts, report.totals, report.job
    files, errors = counts.get("files", 0), counts.get("errors", 0)
    audio, speech = totals.get("audio_seconds", 0.0), totals.get("speech_seconds", 0.0)
    speed = job.get("real_time_factor")
    return [
        ("Files", _number(files), _how_made(job)),
        ("Errors", _number(errors), _share(errors, files)),
        ("Audio", _hours(audio), ""),
        ("Speech", _hours(speech), f"{_share(speech, audio)} of the audio"),
        (
            "Speed",
            f"{_rate(speed)}×" if speed else "–",
            "whole cluster" if speed else "nothing to do",
        ),
        ("Time", _hours(job.get("transcribe_seconds") or 0.0) if speed else "–", _device_time(job)),
    ]


def _device_time(job: Mapping[str, Any]) -> str:
    if job.get("gpu_seconds") is not None:
        return f"{_hours(job['gpu_seconds'])} of GPUs"
    return f"{_hours(job['task_seconds'])} of Spark tasks" if job.get("task_seconds") else ""


def _durations(histogram: Mapping[str, Any] | None) -> charts.Histogram | None:
    if not histogram:
        return None
    edges = [_span(edge) for edge in histogram["edges"][:_MOST_ROWS]]
    labels = [f"{low} to {high}" for low, high in itertools.pairwise(edges)] + [f"over {edges[-1]}"]
    return charts.histogram(histogram["counts"][:_MOST_ROWS], labels, edges)


def _confidence(histogram: Mapping[str, Any] | None) -> charts.Histogram | None:
    if not histogram:
        return None
    edges, counts = histogram["edges"][:_MOST_ROWS], list(histogram["counts"][:_MOST_ROWS])
    # No value exceeds 1, so the bin above the last edge only counts values of exactly 1: add it to the last
    # column.
    counts[-2] += counts.pop()
    labels = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    return charts.histogram(counts, labels, [f"{edge:g}" for edge in edges])


def _throughput(series: Mapping[str, Any] | None, mean: float | None) -> charts.Histogram | None:
    if not series:
        return None
    step = series["seconds_a_bin"]
    values = series["real_time_factors"][:_MOST_ROWS]
    starts = [_span(step * place) for place in range(len(values) + 1)]
    # Reports of earlier releases have bins of any length.
    every = next(
        (tick for tick in ROUND_SECONDS if tick % step == 0 and len(values) * step <= 5 * tick), None
    )
    return charts.histogram(
        values,
        [f"after {start}" for start in starts[:-1]],
        starts,
        tick_every=int(every / step) if every else None,
        level=(mean, f"mean {_rate(mean)}×") if mean and "seconds" in series else None,
    )


def _speakers(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The number of files by number of speakers, in order of that number."""
    ordered = sorted((int(number), count) for number, count in counts.items())
    rest = sum(count for _, count in ordered[_MOST_SPEAKERS:])
    named = [(f"{number} speaker{'s' * (number != 1)}", count) for number, count in ordered[:_MOST_SPEAKERS]]
    return [*named, *([("more", rest)] if rest else [])]


def _speakers_note(report: Report) -> str:
    uncertain = report.warnings.get("uncertain_speakers", 0)
    return f"transcripts; {_share(uncertain, report.counts.get('ok', 0))} are uncertain"


def _facts(report: Report) -> list[tuple[str, Any]]:
    return [
        ("Checked", report.checked_at),
        ("Model", report.job.get("model")),
        ("Options", report.fingerprint),
        ("Engine", report.job.get("engine_version")),
        ("Manifest", report.manifest_uri),
    ]


# --- numbers -------------------------------------------------------------------------------------------


def _most_common(counts: Mapping[str, int], most: int = _MOST_BARS) -> list[tuple[str, int]]:
    ordered = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])
    rest = sum(count for _, count in ordered[most:])
    return [*ordered[:most], *([("others", rest)] if rest else [])]


def _first_of(shown: int, total: int) -> str:
    return f"the first {shown} of {_number(total)}" if total > shown else ""


def _how_made(job: Mapping[str, Any]) -> str:
    parts = [(job.get(word), word) for word in ("transcribed", "resumed", "reused")]
    return ", ".join(f"{_number(count)} {word}" for count, word in parts if count)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _span(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"
