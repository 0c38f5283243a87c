"""The example of docs/redaction.md: what it finds, and that nothing of it is written anywhere."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from spark_cluster import write_run
from spark_session import local_session

from airflow_whisper.export.run import ExportSettings, export_partition
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table.publish import register_run
from whisper_spark import Segment, Transcript, WhisperOptions, whisper_udf
from whisper_spark.spark.run import JobRun
from whisper_spark.spark.task import JobSpec
from whisper_spark.storage.credentials import PLACES
from whisper_spark.storage.objects import ObjectStorage
from whisper_spark.storage.parquet import read_manifest
from whisper_spark.subtitles import FORMATS, Layout

PAGE = Path(__file__).resolve().parents[3] / "docs" / "redaction.md"


def example() -> str:
    (text,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        if "def hide_numbers" in block
    ]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the example as a module."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "hide_numbers.py").write_text(example())
    return folder


def hidden(said: str) -> str:
    names: dict[str, Any] = {}
    exec(compile(example(), "hide_numbers.py", "exec"), names)
    segment = Segment(0, None, 0.0, 1.0, said, "en", -0.1, 1.0, 0.0)
    text: str = names["hide_numbers"](Transcript("a", text=said, segments=(segment,))).text
    return text


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("My card is 4111 1111 1111 1111, thanks.", "My card is [card number], thanks."),
        ("four one one one, one one one one, one one one one, one one one one.", "[card number]."),
        ("four triple one double one double one double one double one double one one one.", "[card number]."),
        ("3782 822463 10005 expires 12 26", "[card number] expires 12 26"),
        ("4111-1111-1111-1111 12/26", "[card number]"),
        # A misheard digit: no card number, but as long as one.
        ("4111 1111 1111 1112 minus 1", "[number] minus 1"),
        ("Call 212 555 0147 now", "Call [phone number] now"),
        ("Call two one two, five double five, oh one four seven.", "Call [phone number]."),
        ("+44 20 7946 0958", "+[phone number]"),
        ("jane.doe@example.com or bob_x@mail.example.org.", "[e-mail address] or [e-mail address]."),
        ("jane dot doe at example dot com please", "[e-mail address] please"),
        ("jane, at, example, dot, com or Jane @ example.com", "[e-mail address] or [e-mail address]"),
        ("j a n e underscore doe at my dash site dot co dot uk", "[e-mail address]"),
        ("John.O'Brien@example.com", "[e-mail address]"),
        ("It is 4 1 1 1, 1 1 1 1, uh, 1 1 1 1... and 1 1 1 1.", "It is [card number]."),
        ("four one one one; one one one one; one one one one; one one one one", "[card number]"),
        ("tel 212‑555–0147", "tel [phone number]"),
        ("two one two um five five five then oh one four seven", "[phone number]"),
        ("We met at 5.30 and at noon. Then we left at 3.5 percent.",) * 2,
        ("Two dogs and one cat in room 101, in 2026.", "Two dogs and one cat in room 101, in 2026."),
        ("oh well, order 12345", "oh well, order 12345"),
        ("", ""),
    ],
)  # fmt: skip
def test_example_hides_numbers_in_figures_and_words(said: str, left: str) -> None:
    assert hidden(said) == left


# --- nothing is written anywhere -------------------------------------------------------------------------

SPOKEN = [
    "Good morning my card is four one one one",
    "one one one one 1111 one one double one",
    "and you can write to jane.doe@example.com",
    "or call two one two five five five oh one four seven",
]
SECRETS = ("four one one one", "1111", "jane.doe", "example.com", "five five five", "oh one four")


@pytest.fixture(scope="module")
def spark(folder: Path) -> Iterator[SparkSession]:
    with local_session({"spark.master": "local[1]"}, "speaking_engine") as session:
        session.sparkContext.addPyFile(str(folder / "hide_numbers.py"))
        yield session


def everything_in(folder: Path) -> str:
    """The content of all files: Parquet files as rows, because what they hold is compressed."""
    found = []
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix == ".parquet":
            found.append(repr(pq.read_table(path, partitioning=None).to_pylist()))
        found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


@pytest.mark.parametrize("version", ["1", None])
def test_what_the_example_hides_is_nowhere(
    spark: SparkSession,
    tmp_path: Path,
    catalog_env: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    version: str | None,
) -> None:
    caplog.set_level(logging.DEBUG)
    audio = []
    for name, lines in {"a.wav": SPOKEN, "b.wav": ["Good morning"]}.items():
        (tmp_path / name).write_text("\n".join(lines))
        audio.append(f"file://{tmp_path}/{name}")
    transform = version and f"hide_numbers:hide_numbers@{version}"
    options = WhisperOptions(model="base", transform=transform)
    staging, out = tmp_path / "staging", tmp_path / "out"
    run = write_run(f"file://{staging}", audio, options)
    storage = ObjectStorage()
    job = JobSpec(
        run=run,
        options=options,
        credentials={place: {} for place in PLACES},
        engine="speaking_engine:get_engine",
        progress_seconds=0.1,
    )
    _, metadata = read_manifest(run.manifest_uri, storage)
    JobRun(spark, job, [metadata.num_rows], time.monotonic()).run()
    assert register_run(run, storage, open_catalog(None), require_report=False) is not None
    settings = ExportSettings(
        template=f"{out}/{{partition}}/{{name}}.{{format}}", formats=tuple(FORMATS), layout=Layout()
    )
    assert export_partition(open_catalog(None), run.table, run.partition, settings, storage).written == 2
    places = {place: everything_in(place) for place in (staging, out, catalog_env.warehouse)}
    places[Path("log")] = caplog.text + "".join(capfd.readouterr())
    for place in (staging, out, catalog_env.warehouse):
        # The other texts are there: this search would find what is not hidden.
        assert "Good morning" in places[place]
        assert ("[card number]" in places[place]) == (version is not None)
    found = {secret for secret in SECRETS for text in places.values() if secret in text}
    assert found == (set() if version else set(SECRETS))


def test_udf_hides_as_well(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whisper_spark import udf

    (tmp_path / "a.wav").write_text("\n".join(SPOKEN))
    monkeypatch.setattr(udf, "ENGINE", "speaking_engine:get_engine")
    options = WhisperOptions(model="base", transform="hide_numbers:hide_numbers@1")
    frame = spark.createDataFrame([(str(tmp_path / "a.wav"),)], "uri string")
    (row,) = frame.select(whisper_udf(options)("uri").alias("t")).collect()
    assert row.t.text == (
        "Good morning my card is [card number] [card number] and you can write to [e-mail address] "
        "or call [phone number]"
    )
    assert not [secret for secret in SECRETS if secret in json.dumps(row.asDict(recursive=True), default=str)]
