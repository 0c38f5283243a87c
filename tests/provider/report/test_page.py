"""The HTML report: its contents, and the escaping of hostile file names."""

from __future__ import annotations

import dataclasses
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from staged_runs import OPTIONS, PARTITION, STORAGE, error, row, staged_run
from transcripts import make_transcript_rows

from airflow_whisper.report.charts import short_number
from airflow_whisper.report.page import message_page, report_page
from airflow_whisper.report.write import write_report
from airflow_whisper.validation.distributions import CONFIDENCE_EDGES, DURATION_EDGES_S, Histogram, Throughput
from airflow_whisper.validation.report import Report
from airflow_whisper.validation.run import validate_run
from airflow_whisper.validation.summary import Summary
from whisper_spark.contract import Run
from whisper_spark.staging.result import RunResult, read_result

HOSTILE = [
    "<script>alert(1)</script>.wav",
    '"onmouseover="alert(1)" x=".wav',
    "a&lt;b&#x3c;.wav",
    "invoice\u202egpj.exe",
    "new\nline\x00\x1b[31m.wav",
    "' style='background:url(https://evil.example)'.wav",
]


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text in between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page_of(run: Run, **arguments: float) -> tuple[str, Elements]:
    report = validate_run(run, STORAGE, max_error_rate=arguments.get("max_error_rate", 1.0))
    page = report_page(Report.from_json(report.to_json()))
    return page, Elements(page)


def test_page_tells_checks_numbers_and_the_worst_rows(tmp_path: Path) -> None:
    files = [
        row("good.wav", duration_s=40.0, speech_s=30.0),
        row("bad.wav", quality_flags=("repetitive",), logprob=-1.2, text="again again again", language="es"),
        error("broken.wav"),
    ]
    page, shown = page_of(
        staged_run(tmp_path, ["good.wav", "bad.wav", "broken.wav"], files), max_error_rate=0.1
    )
    assert "Failed" in shown.text
    assert "1 of 9 checks failed: error rate. Nothing was published." in shown.text
    assert "33.33 % (1 of 3 files)" in shown.text
    assert "at most 10 %" in shown.text
    named = re.findall(r"s3://calls/raw/\w+\.wav", shown.text)
    assert list(dict.fromkeys(named[-3:])) == [
        "s3://calls/raw/bad.wav",
        "s3://calls/raw/good.wav",
        "s3://calls/raw/broken.wav",
    ]
    for part in ("repetitive", "again again again", "−1.20", "corrupt", "no frame", "base", PARTITION["dt"]):
        assert part in shown.text, part
    assert OPTIONS.fingerprint() in shown.text
    assert page.count("<figure>") == 6


def test_page_shows_speakers_for_each_file_and_how_many_are_uncertain(tmp_path: Path) -> None:
    files = [
        row("a.wav", speakers=2),
        row("b.wav", speakers=2),
        row("c.wav", speakers=1),
        row("d.wav", speakers=12, quality_flags=("uncertain_speakers",)),
    ]
    run = staged_run(tmp_path, ["a.wav", "b.wav", "c.wav", "d.wav"], files)
    page, shown = page_of(run)
    assert page.count("<figure>") == 7
    assert "transcripts; 25 % are uncertain" in shown.text
    places = [shown.text.index(name) for name in ("1 speaker", "2 speakers", "12 speakers")]
    assert places == sorted(places)
    report = validate_run(run, STORAGE, max_error_rate=1.0)
    assert report.counts["speakers"] == {"2": 2, "1": 1, "12": 1}


def test_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page, shown = page_of(staged_run(tmp_path, ["a.wav"], [row("a.wav")]))
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section"}
    allowed |= {"p", "h1", "h2", "span", "b", "small", "dl", "div", "dt", "dd", "table", "thead", "tbody"}
    allowed |= {"tr", "th", "td", "ul", "li", "figure", "figcaption", "svg", "line", "rect", "text"}
    allowed |= {"bdi", "q", "i"}
    assert {tag for tag, _ in shown.tags} <= allowed
    attributes = {name for _, values in shown.tags for name in values}
    assert not {name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")}
    assert "url(" not in page
    assert "@import" not in page
    assert shown.open == []
    policies = [values["content"] for _, values in shown.tags if values.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_names_texts_and_messages_are_only_shown(tmp_path: Path) -> None:
    harmless, _ = page_of(staged_run(tmp_path / "1", ["a", "b"], [row("a"), error("b")]))
    tags = sorted(tag for tag, _ in Elements(harmless).tags)
    for number, name in enumerate(HOSTILE):
        good = row(name, text=name, language=name, quality_flags=(name,))
        bad = {**error(f"{name}2"), "error_message": name}
        _, shown = page_of(staged_run(tmp_path / f"h{number}", [name, f"{name}2"], [good, bad]))
        # One more check fails (an unknown flag), which lists one offender.
        assert sorted(tag for tag, _ in shown.tags if tag not in ("ul", "li", "bdi")) == sorted(
            tag for tag in [*tags, "i"] if tag not in ("ul", "li", "bdi")
        ), name
        assert not [1 for _, values in shown.tags if any(key.startswith("on") for key in values)]
        visible = name.replace("\u202e", "\\u202e").replace("\x00", "\\u0000").replace("\x1b", "\\u001b")
        assert shown.text.count(visible) >= 4, name
        assert "\u202e" not in shown.text


@pytest.mark.parametrize(
    "uri", ["s3://calls/a.wav", "https://example.org/a.wav", "javascript://example.org/%0aalert(1)", "no-uri"]
)
def test_uris_are_text_because_no_browser_opens_them(tmp_path: Path, uri: str) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav") | {"audio_uri": uri}])
    page, shown = page_of(run)
    assert "href" not in page
    assert uri in shown.text


def test_message_page_escapes() -> None:
    assert "<script>" not in message_page("<script>")


def test_page_of_a_run_without_files_says_so(tmp_path: Path) -> None:
    _, shown = page_of(staged_run(tmp_path, []))
    assert "Passed" in shown.text
    assert shown.text.count("None.") == 7  # six plots and the worst rows


def test_report_of_an_earlier_release_can_be_shown() -> None:
    summary = Summary()
    old = Report(
        passed=True,
        table="t",
        partition="dt=1",
        manifest_uri="s3://b/m",
        manifest_id="0",
        fingerprint="f",
        checked_at="2026-11-01T00:00:00+00:00",
        checks=(),
        warnings={},
        counts=summary.counts(),
        totals=summary.totals(),
    )
    assert "Passed" in Elements(report_page(old)).text


def test_both_forms_lie_next_to_each_other(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    report = validate_run(run, STORAGE, max_error_rate=0.0)
    assert write_report(report, run, STORAGE) == run.report_uri
    assert Report.from_json(STORAGE.read_bytes(run.report_uri)).passed
    assert STORAGE.read_bytes(run.report_page_uri).decode() == report_page(report)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("word " * 50, "word " * 39 + "word …"),
        ("字" * 300, "字" * 200 + " …"),
        ("Hello " + "字" * 300, "Hello " + "字" * 194 + " …"),
        ("all of it", "all of it"),
    ],
)
def test_text_is_not_cut_inside_a_word(tmp_path: Path, text: str, shown: str) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav", text=text)])
    (worst,) = validate_run(run, STORAGE, max_error_rate=0.0).worst
    assert worst["text"] == shown


# --- distributions ---------------------------------------------------------------------------------------


def test_each_value_is_counted_once_in_the_right_place() -> None:
    histogram = Histogram((0.0, 1.0, 2.0))
    histogram.add(np.array([0.0, 0.99, 1.0, 2.0, 500.0, -3.0, np.nan, np.inf]))
    histogram.add(np.array([]))
    assert (histogram.counts, histogram.unknown) == ([3, 1, 2], 2)


def test_durations_and_confidence_of_transcripts_are_spread(tmp_path: Path) -> None:
    rows = [row("a", duration_s=0.5, logprob=0.0), row("b", duration_s=45.0, logprob=-0.1), error("c")]
    rows.append(row("d", duration_s=9000.0, text="", quality_flags=("no_speech",)))
    report = validate_run(staged_run(tmp_path, ["a", "b", "c", "d"], rows), STORAGE, max_error_rate=1.0)
    duration, confidence = report.distributions["duration_s"], report.distributions["confidence"]
    assert {e: c for e, c in zip(duration["edges"], duration["counts"], strict=True) if c} == {
        0.0: 1,
        30.0: 1,
        DURATION_EDGES_S[-1]: 1,
    }
    assert {e: c for e, c in zip(confidence["edges"], confidence["counts"], strict=True) if c} == {
        0.9: 1,
        CONFIDENCE_EDGES[-1]: 1,
    }
    assert confidence["unknown"] == 1  # the silent one


def test_real_time_factor_over_the_job_leaves_out_rows_of_earlier_job_runs() -> None:
    end = datetime(2026, 11, 1, 12, 2, tzinfo=UTC)
    result = RunResult(
        manifest_uri="s3://b/manifest.parquet",
        manifest_id="0",
        fingerprint="f",
        attempt_id="1",
        transcribed=2,
        wall_seconds=120.0,
        finished_at=end.isoformat(),
    )
    throughput = Throughput.of(result)
    assert throughput is not None
    times = {"a": timedelta(seconds=90), "b": timedelta(seconds=10), "old": timedelta(days=2)}
    rows = make_transcript_rows(times, duration_s=100.0, transcribed_at=lambda uri: end - times[uri])
    for batch in rows.to_batches():
        throughput.add(batch)
    done = throughput.to_dict()
    factors = done["real_time_factors"]
    # 121 seconds in steps of 10; the last one has one second.
    assert (done["seconds_a_bin"], done["seconds"], len(factors)) == (10.0, 121.0, 13)
    assert {place: factor for place, factor in enumerate(factors) if factor} == {3: 10.0, 11: 10.0}


@pytest.mark.parametrize("seconds", [0.2, 7.0, 95.5, 3_601.0, 90_000.0, 2_000_000.0])
def test_mean_of_the_real_time_factors_is_that_of_the_headline(seconds: float) -> None:
    start = datetime(2026, 11, 1, 12, tzinfo=UTC)
    result = RunResult(
        manifest_uri="s3://b/manifest.parquet",
        manifest_id="0",
        fingerprint="f",
        attempt_id="1",
        transcribed=20,
        transcribe_started_at=start.isoformat(timespec="milliseconds"),
        transcribe_seconds=seconds,
        # Before and after transcribing, the job did other things.
        wall_seconds=seconds + 50,
        finished_at=(start + timedelta(seconds=seconds + 20)).isoformat(timespec="seconds"),
    )
    throughput = Throughput.of(result)
    assert throughput is not None
    times = {f"s3://b/{i}": start + timedelta(seconds=seconds * i / 20) for i in range(20)}
    rows = make_transcript_rows(times, duration_s=seconds, transcribed_at=times.__getitem__)
    for batch in rows.to_batches():
        throughput.add(batch)
    done = throughput.to_dict()
    lengths = [done["seconds_a_bin"]] * len(done["real_time_factors"])
    lengths[-1] -= sum(lengths) - done["seconds"]
    total = sum(f * length for f, length in zip(done["real_time_factors"], lengths, strict=True))
    assert total / done["seconds"] == pytest.approx(20 * min(seconds, 1.0), rel=0.01)
    assert len(lengths) <= 16


def test_page_shows_a_number_on_every_bar_round_times_and_the_cost(tmp_path: Path) -> None:
    start = datetime(2026, 11, 1, 12, tzinfo=UTC)
    names = [f"{i}.wav" for i in range(90)]
    rows = [
        row(name, duration_s=100.0, transcribed_at=start + timedelta(seconds=3 * i + 1))
        for i, name in enumerate(names)
    ]
    run = staged_run(tmp_path, names, rows)
    result = dataclasses.replace(
        read_result(run, STORAGE),
        transcribed=90,
        transcribed_audio_seconds=9_000.0,
        transcribe_seconds=275.0,
        real_time_factor=9_000 / 275,
        transcribe_started_at=start.isoformat(),
        task_seconds=1_000.0,
        gpu_seconds=500.0,
        finished_at=(start + timedelta(seconds=300)).isoformat(),
        wall_seconds=310.0,
    )
    STORAGE.write_bytes(run.result_uri, result.to_json().encode())
    page, shown = page_of(run)
    classes = [attributes.get("class") for _, attributes in shown.tags]
    bars_of_plots = page.count('rx="1.5"')
    assert bars_of_plots == classes.count("number") == 1 + 1 + 14
    for text in (
        "32.7×",
        "mean 32.7×",
        "4.6 min",
        "8.3 min of GPUs",
        "1 min",
        "2 min",
        "3 min",
        "4 min",
    ):
        assert text in shown.text, text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (0.25, "0.25"),
        (9.96, "10"),
        (638.4, "638"),
        (999.6, "1.0k"),
        (1553, "1.6k"),
        (99_950, "100k"),
        (999_500, "1.0M"),
        (12_345_678, "12M"),
    ],
)
def test_number_fits_on_a_bar(value: float, text: str) -> None:
    assert short_number(value) == text


def test_messages_are_cut_between_words(tmp_path: Path) -> None:
    message = "decoding failed " * 100
    run = staged_run(tmp_path, ["a.wav"], [{**error("a.wav"), "error_message": message}])
    _, shown = page_of(run)
    assert "decoding failed …" in shown.text or "decoding …" in shown.text
    assert not re.search(r"(?<!failed|coding) …", shown.text)


def test_job_without_a_result_or_work_has_no_throughput(tmp_path: Path) -> None:
    assert Throughput.of(None) is None
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    assert Throughput.of(read_result(run, STORAGE)) is None


def test_memory_does_not_grow_with_rows() -> None:
    batch = make_transcript_rows([f"s3://b/{i}" for i in range(500)]).to_batches()[0]
    summary = Summary()
    for _ in range(10):
        summary.add(batch)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(60):
        summary.add(batch)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert summary.files == 35_000
    assert grown < 200_000, f"{grown:,} bytes for 30,000 rows"
