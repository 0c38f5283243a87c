"""The page "Reading the table": other tools read what this package wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import blocks, commands, named_block
from lakes import TABLE, change
from packaging.requirements import Requirement
from pyiceberg.catalog import load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from servers import S3Server

from airflow_whisper.table.replace import replace_rows
from whisper_spark.contract import transcript_schema


def run(name: str, names: dict[str, Any], values: dict[str, str] | None = None) -> None:
    """Run a block of the page, with other values, among the names that earlier blocks have left."""
    text = named_block(name).text
    for old, new in (values or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    exec(compile(text, name, "exec"), names)


@pytest.fixture
def rest(s3: S3Server) -> dict[str, Any]:
    """What the first block leaves: a table of two transcripts in a REST catalog on S3."""
    lake = s3.lake()
    catalog = load_catalog("lake", type="rest", **lake.properties)
    replace_rows(
        catalog, TABLE, change(["s3://calls/a.wav", "s3://calls/b.wav"], quality_flags=("repetitive",))
    )
    names: dict[str, Any] = {}
    values = {
        "https://catalog.example.com/api/catalog": lake.properties["uri"],
        'warehouse="speech"': f"warehouse={lake.name!r}",
        "CLIENT_ID:CLIENT_SECRET": f"{s3.access_key}:{s3.secret_key}",
        "https://s3.example.com": s3.endpoint,
        "ACCESS_KEY": s3.access_key,
        "SECRET_KEY": s3.secret_key,
    }
    run("read-pyiceberg-rest", names, values)
    return names


def test_pyiceberg_reads_a_partition_and_a_snapshot_through_rest(
    rest: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rest["rows"].to_arrow().column_names == ["audio_uri", "language", "duration_s", "text"]
    assert rest["rows"].to_arrow().num_rows == 2
    run("read-snapshot", rest)
    assert capsys.readouterr().out.splitlines()[-1] == "2"


def test_duckdb_reads_files_and_words(rest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run("read-duckdb", rest)
    run("read-duckdb-words", rest)
    found = rest["words"].fetchall()
    segments = [s for row in rest["transcripts"].to_pylist() for s in row["segments"]]
    assert found
    assert len(found) == sum(len(segment["words"]) for segment in segments)
    assert {row[0] for row in found} == {"s3://calls/a.wav", "s3://calls/b.wav"}


def test_polars_counts_flags(rest: dict[str, Any]) -> None:
    run("read-polars", rest)
    assert rest["flagged"].rows() == [("repetitive", 2)]


def test_sql_catalogs_are_read_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "whisper_warehouse"
    folder.mkdir()
    uri = f"sqlite:///{folder}/catalog.db"
    for name in ("lake", "whisper"):
        catalog = SqlCatalog(name, uri=uri, warehouse=f"file://{folder}/{name}")
        replace_rows(catalog, TABLE, change(["a"] if name == "lake" else ["a", "b"]))
    run("read-pyiceberg-sql", {}, {"postgresql+psycopg2://USER:PASSWORD@db.example.com/iceberg": uri})
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    run("read-pyiceberg-embedded", {})
    assert capsys.readouterr().out.split() == ["1", "2"]


def test_page_installs_what_its_examples_import() -> None:
    ((_, _, *requirements),) = commands(named_block("read-install"))
    text = "".join(block.text for block in blocks(named_block("read-install").page))
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) - {"os"}
    # The result of `to_pandas()`.
    assert {Requirement(name).name for name in requirements} == {*imported, "pandas"}


def test_page_names_the_fields_of_segments_in_their_order() -> None:
    # Trino's UNNEST names fields by their position.
    (listed,) = re.findall(
        r"UNNEST\(segments\) AS s \((.*?)\)", named_block("read-polars").page.read_text(), re.DOTALL
    )
    names = [name.strip().strip('"') for name in listed.split(",")]
    assert names == [field.name for field in transcript_schema().field("segments").type.value_type]
