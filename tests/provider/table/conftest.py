"""The catalogs that the tests of the table run in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from lakes import (
    Lake,
)
from pyiceberg.catalog.rest import RestCatalog

from airflow_whisper.hooks.catalog import open_catalog


@pytest.fixture
def sqlite(catalog_env: SimpleNamespace) -> Lake:
    return Lake(lambda: open_catalog(None))


@pytest.fixture(params=["sqlite", "rest"])
def lake(request: pytest.FixtureRequest) -> Lake:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")
    warehouse = request.getfixturevalue("s3").lake()
    return Lake(lambda: RestCatalog(warehouse.name, **warehouse.properties))
