"""A new table is created before audio is transcribed, if its files can be written from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from lakes import TABLE
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from servers import S3Server

from airflow_whisper.table.errors import CatalogRefusedError
from airflow_whisper.table.schema import load_table
from airflow_whisper.table.warehouse import prepare_new_table

CONNECTION = "connection 'lake'"


def rest(s3: S3Server, **changes: str) -> Catalog:
    return load_catalog("lake", type="rest", **{**s3.lake().properties, **changes})


def objects(s3: S3Server, catalog: Catalog) -> list[str]:
    bucket = catalog.properties["warehouse"].removeprefix("s3://")
    found: list[dict[str, Any]] = s3.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return [item["Key"] for item in found]


def test_new_table_is_created_and_nothing_else_is_left(s3: S3Server) -> None:
    catalog = rest(s3)
    prepare_new_table(catalog, TABLE, ["dt"], CONNECTION)
    loaded = load_table(catalog, TABLE)
    assert loaded is not None
    assert loaded.current_snapshot() is None
    assert [key for key in objects(s3, catalog) if "/data/" in key] == []


def test_table_that_this_machine_cannot_write_is_refused_with_the_missing_properties(s3: S3Server) -> None:
    # The catalog itself has written the table's metadata.
    catalog = rest(s3, **{"s3.secret-access-key": "of another store"})
    with pytest.raises(
        CatalogRefusedError, match=r"cannot write there.*'lake'.*s3\.secret-access-key"
    ) as refused:
        prepare_new_table(catalog, TABLE, ["dt"], CONNECTION)
    assert isinstance(refused.value, AirflowFailException)
    assert "SIGNATURE_DOES_NOT_MATCH" in str(refused.value)
    assert s3.secret_key not in str(refused.value)


def test_catalog_that_cannot_create_the_table_is_refused(s3: S3Server, tmp_path: Path) -> None:
    catalog = rest(s3, warehouse="s3://no-such-warehouse")
    with pytest.raises(CatalogRefusedError, match=f"{TABLE} cannot be created.*'lake'.*no-such-warehouse"):
        prepare_new_table(catalog, TABLE, ["dt"], CONNECTION)
    (tmp_path / "a file").touch()
    local = SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/c.db", warehouse=f"file://{tmp_path}/a file/below")
    with pytest.raises(CatalogRefusedError, match="cannot be created"):
        prepare_new_table(local, TABLE, ["dt"], CONNECTION)
