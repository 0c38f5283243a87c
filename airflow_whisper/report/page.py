"""The validation report as one HTML page that needs nothing else: no script, font or image from elsewhere.

Names of files, transcripts and error messages are written by strangers. All of them go through :func:`text`,
links through :func:`link`, and the page forbids the browser everything but its own style.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_whisper.report.charts import bars, columns
from airflow_whisper.report.style import STYLE
from whisper_spark.contract import ERROR_CODES, QUALITY_FLAGS

if TYPE_CHECKING:
    from airflow_whisper.validation.checks import Check
    from airflow_whisper.validation.run import Report

LINKED_SCHEMES = ("s3", "gs", "az", "abfss", "http", "https", "file")
"""Others, ``javascript`` above all, are shown without a link."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What browsers may load and run for the page: its own style."""

_LONGEST_TEXT = 300
_LANGUAGES = 12

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
# Control characters, and those that turn the direction of text around: "gpj.exe" can pass for "exe.jpg".


def report_page(report: Report) -> str:
    """The page of a report."""
    verdict = "Passed" if report.passed else "Failed"
    sections = [
        _header(report, verdict),
        _tiles(report),
        _checks(report.checks),
        _plots(report),
        _worst(report.worst),
        _errors(report.errors, report.counts.get("errors", 0)),
        _footer(report),
    ]
    return _page(f"{verdict}: {report.table} {report.partition}", "".join(sections))


def message_page(message: str) -> str:
    """A page for when there is no report to show."""
    return _page("No report", f'<header><h1>No report</h1></header><p class="verdict">{text(message)}</p>')


def _page(title: str, content: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # A page that was changed by somebody, or forgets to escape something, still runs no script.
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>{content}</main></body></html>\n"
    )


def text(value: object, limit: int | None = None) -> str:
    """A value as HTML text that shows what is in it: nothing acts as markup and nothing is invisible.

    :param limit: longest text, in characters.
    """
    shown = str(value)
    if limit is not None and len(shown) > limit:
        shown = shown[:limit] + "…"
    return html.escape(_INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", shown), quote=True)


def link(uri: str) -> str:
    """A URI as a link, if it is of a scheme that only names data; else as text."""
    shown = f"<bdi>{text(uri)}</bdi>"
    scheme = uri.partition("://")[0].lower()
    if scheme not in LINKED_SCHEMES or "://" not in uri:
        return f'<span class="uri">{shown}</span>'
    address = html.escape(quote(uri, safe="/:@!$&'()*+,;=~[]" + ("%?#" if scheme.startswith("http") else "")))
    return f'<a class="uri" href="{address}" rel="noreferrer noopener">{shown}</a>'


# --- sections ------------------------------------------------------------------------------------------


def _header(report: Report, verdict: str) -> str:
    failed = [check.check for check in report.checks if not check.passed]
    said = f"{len(failed)} of {len(report.checks)} checks failed: {', '.join(failed)}. Nothing was published."
    if report.passed:
        said = f"All {len(report.checks)} checks passed."
    return (
        f'<header><p class="eyebrow">Transcription report</p>'
        f"<h1>{text(report.table)} <span>{text(report.partition)}</span></h1>"
        f'<p class="verdict {verdict.lower()}"><b>{verdict}</b> {text(said)}</p></header>'
    )


def _tiles(report: Report) -> str:
    counts, totals, job = report.counts, report.totals, report.job
    speed = job.get("real_time_factor")
    tiles = [
        ("Files", _number(counts.get("files", 0)), _how_made(job)),
        ("Errors", _number(counts.get("errors", 0)), _share(counts.get("errors", 0), counts.get("files", 0))),
        ("Audio", _hours(totals.get("audio_seconds", 0.0)), ""),
        ("Speech", _hours(totals.get("speech_seconds", 0.0)), _of_audio(totals)),
        (
            "Speed",
            f"{_short(speed)}×" if speed else "–",
            "real time, whole cluster" if speed else "nothing to do",
        ),
    ]
    cells = (
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><p>{text(note)}</p></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _checks(checks: Sequence[Check]) -> str:
    rows = "".join(
        f"<tr{'' if check.passed else ' class=bad'}>"
        f"<td>{text(check.check)}</td><td>{text(check.expected)}</td>"
        f"<td>{text(check.found)}{_offenders(check.offenders)}</td>"
        f"<td>{'<b class=ok>passed' if check.passed else '<b class=no>failed'}</b></td></tr>"
        for check in checks
    )
    return _section("Checks", _table(("Check", "Expected", "Found", "Result"), rows))


def _offenders(offenders: Iterable[str]) -> str:
    items = "".join(f"<li><bdi>{text(offender, _LONGEST_TEXT)}</bdi></li>" for offender in offenders)
    return f"<ul>{items}</ul>" if items else ""


def _plots(report: Report) -> str:
    spread, counts = report.distributions, report.counts
    figures = [
        _figure("Duration", "files by length of the audio", _duration(spread.get("duration_s"))),
        _figure(
            "Confidence", "transcripts by mean probability of a token", _confidence(spread.get("confidence"))
        ),
        _figure(
            "Real-time factor",
            "seconds of audio per second, over the job",
            _throughput(spread.get("throughput")),
        ),
        _figure("Languages", "transcripts", bars(_most_common(counts.get("languages", {})), text)),
        _figure(
            "Quality flags", "transcripts that carry each", bars(_known(report.warnings), text, QUALITY_FLAGS)
        ),
        _figure("Error codes", "files", bars(_known(counts.get("error_codes", {})), text, ERROR_CODES)),
    ]
    return f'<section><h2>Distributions</h2><div class="figures">{"".join(figures)}</div></section>'


def _duration(histogram: Mapping[str, Any] | None) -> str:
    if not histogram:
        return ""
    edges = [_span(edge) for edge in histogram["edges"]]
    labels = [f"{low} to {high}" for low, high in itertools.pairwise(edges)] + [f"over {edges[-1]}"]
    return columns(histogram["counts"], labels, edges, text)


def _confidence(histogram: Mapping[str, Any] | None) -> str:
    if not histogram:
        return ""
    edges, counts = histogram["edges"], list(histogram["counts"])
    counts[-2] += counts.pop()  # nothing exceeds 1, and 1 itself belongs to the last bar
    labels = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
    return columns(counts, labels, [f"{edge:g}" for edge in edges], text)


def _throughput(series: Mapping[str, Any] | None) -> str:
    if not series:
        return ""
    step = series["seconds_a_bin"]
    values = series["real_time_factors"]
    starts = [_span(step * place) for place in range(len(values) + 1)]
    labels = [f"after {start}" for start in starts[:-1]]
    return columns(values, labels, starts, text)


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
    body = "".join(
        f"<tr><td>{link(str(row['audio_uri']))}<q>{text(row.get('text') or '', 200)}</q></td>"
        f"<td>{''.join(f'<i>{text(flag)}</i>' for flag in row.get('quality_flags') or ())}</td>"
        f'<td class="num">{_decimal(row.get("avg_logprob"))}</td>'
        f"<td>{text(row.get('language') or '–')}</td>"
        f'<td class="num">{text(_span(row.get("duration_s") or 0.0))}</td></tr>'
        for row in rows
    )
    heads = ("Audio and beginning of the text", "Flags", "Log prob.", "Language", "Duration")
    return _section("Worth listening to", _table(heads, body), "most flags first, then the least probable")


def _errors(rows: Sequence[Mapping[str, Any]], total: int) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{link(str(row['audio_uri']))}</td><td><i>{text(row.get('error_code') or '–')}</i></td>"
        f"<td><bdi>{text(row.get('error_message') or '', _LONGEST_TEXT)}</bdi></td></tr>"
        for row in rows
    )
    note = f"the first {len(rows)} of {_number(total)}" if total > len(rows) else ""
    return _section("Errors", _table(("Audio", "Code", "Message"), body), note)


def _footer(report: Report) -> str:
    facts = {
        "Checked": report.checked_at,
        "Model": report.job.get("model"),
        "Options": report.fingerprint,
        "Engine": report.job.get("engine_version"),
        "Manifest": report.manifest_uri,
    }
    rows = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items() if value)
    return f"<footer><p>Counts are those of this run, not of the whole partition.</p><dl>{rows}</dl></footer>"


def _section(title: str, content: str, note: str = "") -> str:
    small = f" <small>{text(note)}</small>" if note else ""
    return f"<section><h2>{text(title)}{small}</h2>{content}</section>"


def _table(heads: Sequence[str], rows: str) -> str:
    if not rows:
        return '<p class="none">None.</p>'
    head = "".join(f"<th scope=col>{text(head)}</th>" for head in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _figure(title: str, what: str, plot: str) -> str:
    return (
        f"<figure><figcaption><b>{text(title)}</b> {text(what)}</figcaption>"
        f"{plot or '<p class=none>None.</p>'}</figure>"
    )


# --- numbers -------------------------------------------------------------------------------------------


def _known(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])


def _most_common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = _known(counts)
    rest = sum(count for _, count in ordered[_LANGUAGES:])
    return [*ordered[:_LANGUAGES], *([("others", rest)] if rest else [])]


def _how_made(job: Mapping[str, Any]) -> str:
    parts = [
        (job.get("transcribed"), "transcribed"),
        (job.get("resumed"), "resumed"),
        (job.get("reused"), "reused"),
    ]
    return ", ".join(f"{_number(count)} {word}" for count, word in parts if count)


def _of_audio(totals: Mapping[str, float]) -> str:
    return f"{_share(totals.get('speech_seconds', 0.0), totals.get('audio_seconds', 0.0))} of the audio"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "0 %"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
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
