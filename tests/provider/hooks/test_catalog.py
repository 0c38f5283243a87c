"""Catalogs from Airflow connections, and the embedded one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from lakes import (
    TABLE,
    change,
    data_files_on_disk,
    uris,
)
from pyiceberg.catalog.sql import SqlCatalog
from servers import S3Server, free_ports

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table.errors import CatalogConnectionError, CatalogError, CatalogRefusedError
from airflow_whisper.table.replace import replace_rows
from airflow_whisper.table.schema import load_table


def test_embedded_catalog_lies_in_the_folder_of_the_variable(catalog_env: SimpleNamespace) -> None:
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert (catalog_env.warehouse / "catalog.db").is_file()
    assert data_files_on_disk(catalog_env.warehouse)
    # What the documentation tells people to paste must find the same table.
    folder = catalog_env.warehouse
    own = SqlCatalog("whisper", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    assert own.load_table(TABLE).scan().count() == 1


def test_embedded_catalog_defaults_to_airflow_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_WHISPER_WAREHOUSE", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home of airflow"))
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert (tmp_path / "home of airflow" / "whisper_warehouse" / "catalog.db").is_file()
    assert uris(open_catalog(None)) == ["a"]


def test_warehouse_is_a_setting_of_airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(tmp_path / "earlier"))
    assert open_catalog(None).properties["warehouse"] == f"file://{tmp_path}/earlier"
    # The variable of Airflow's own kind goes before that of earlier releases.
    monkeypatch.setenv("AIRFLOW__WHISPER__WAREHOUSE", str(tmp_path / "configured"))
    assert open_catalog(None).properties["warehouse"] == f"file://{tmp_path}/configured"


@pytest.mark.parametrize("folder", ["s3://lake/warehouse", "/tmp/a#b", "/tmp/a?b"])
def test_embedded_catalog_refuses_a_folder_it_cannot_use(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", folder)
    with pytest.raises(CatalogConnectionError, match="AIRFLOW_WHISPER_WAREHOUSE"):
        open_catalog(None)


def test_missing_connection_says_how_to_create_it() -> None:
    with pytest.raises(
        CatalogConnectionError, match=r"airflow connections add no_such_catalog --conn-type iceberg"
    ):
        open_catalog("no_such_catalog")


def test_connection_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "aws", "login": "k", "password": "s3cret-s3cret"})
    )
    with pytest.raises(CatalogConnectionError, match="is of type 'aws'") as refused:
        open_catalog("lake")
    assert "s3cret" not in str(refused.value)


def test_iceberg_connection_reaches_a_rest_catalog_that_checks_signatures(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.lake().connection)
    registered = replace_rows(open_catalog("lake"), TABLE, change(["a", "b"]))
    assert registered is not None
    assert registered.table_location.startswith("s3://")
    assert uris(open_catalog("lake")) == ["a", "b"]


def oauth(s3: S3Server, **changes: Any) -> str:
    """A connection to the same catalog for an OAuth2 client."""
    tokens = f"{s3.iceberg_uri}/v1/oauth/tokens"
    connection = {
        "conn_type": "iceberg",
        "host": s3.iceberg_uri,
        "login": s3.access_key,
        "password": s3.secret_key,
        "extra": {"warehouse": "lake", "oauth2-server-uri": tokens},
    }
    return json.dumps({**connection, **changes})


def test_iceberg_connection_with_a_wrong_client_is_refused_and_not_tried_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", oauth(s3))
    open_catalog("lake")
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", oauth(s3, password="another-secret"))
    with pytest.raises(
        CatalogRefusedError, match=r"'lake' cannot be opened at http.*Check.*password"
    ) as refused:
        open_catalog("lake")
    assert isinstance(refused.value, AirflowFailException)
    assert "another-secret" not in str(refused.value)


def test_catalog_that_asks_for_credentials_late_is_told_with_the_table_and_not_tried_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", oauth(s3, login=None, password=None))
    catalog = open_catalog("lake")
    with pytest.raises(
        CatalogRefusedError, match=r"'lake' does not let .* table speech\.t: .*password"
    ) as error:
        load_table(catalog, "speech.t")
    assert isinstance(error.value, AirflowFailException)


def test_table_name_that_the_catalog_refuses_is_told_and_not_tried_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.lake().connection)
    with pytest.raises(CatalogRefusedError, match=r"'lake' refuses .* table Speech ü\.t: .*`table`"):
        load_table(open_catalog("lake"), "Speech ü.t")


def test_connection_whose_extra_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "iceberg", "host": "http://127.0.0.1:1", "extra": "{warehouse: speech}"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(connection))
    with pytest.raises(CatalogConnectionError, match=r"connection .lake. is not JSON.*double quotes"):
        open_catalog("lake")


def test_database_of_an_unknown_kind_is_told_with_the_kinds_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"type": "sql", "uri": "postgres://user:hidden-word@db.example/iceberg"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    with pytest.raises(CatalogConnectionError, match=r"'lake' names .*postgresql\+psycopg2://") as error:
        open_catalog("lake")
    assert "hidden-word" not in str(error.value)


def test_catalog_that_is_down_may_come_back(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    there = f"http://127.0.0.1:{port}"
    extra = {"warehouse": "lake", "oauth2-server-uri": f"{there}/v1/oauth/tokens"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", oauth(s3, host=there, extra=extra))
    with pytest.raises(CatalogError, match=f"'lake' cannot be reached at {there}") as failed:
        open_catalog("lake")
    assert not isinstance(failed.value, AirflowFailException)


def test_iceberg_connection_reaches_a_sql_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake").mkdir()
    extra = {"type": "sql", "uri": f"sqlite:///{tmp_path}/lake/c.db", "warehouse": f"file://{tmp_path}/lake"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    replace_rows(open_catalog("lake"), TABLE, change(["a"]))
    assert uris(open_catalog("lake")) == ["a"]


def test_secrets_of_a_connection_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    masked: list[str] = []
    monkeypatch.setattr("airflow.sdk.log.mask_secret", lambda secret, name=None: masked.append(str(secret)))
    extra = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/c.db",
        "s3.secret-access-key": "storage-secret",
        "token-refresh-enabled": "true",
        "auth": {"oauth2": {"client_secret": "oauth-secret"}},
        "backup": "postgresql://user:database-secret@host/db",
    }
    connection = {"conn_type": "iceberg", "password": "catalog-secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(connection))
    open_catalog("lake")
    assert {"storage-secret", "oauth-secret", "database-secret", "catalog-secret"} <= set(masked)
    assert "true" not in masked  # would black out half of every log


@pytest.mark.parametrize("name", ["w%20x", "100%", "q%2Fz", "a b", "é+&;"])
def test_embedded_catalog_lies_in_a_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(tmp_path / name))
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert uris(open_catalog(None)) == ["a"]
    assert (tmp_path / name / "catalog.db").is_file()
    assert data_files_on_disk(tmp_path / name)


@pytest.mark.parametrize(
    ("executor", "refused"),
    [
        ("LocalExecutor", None),
        ("airflow.executors.local_executor.LocalExecutor", None),
        ("KubernetesExecutor", "KubernetesExecutor"),
        ("CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor,KubernetesExecutor", "KubernetesExecutor"),
        ("LocalExecutor;team_a=CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor,mine:my.company.PodExecutor", "PodExecutor"),
    ],
)
def test_embedded_catalog_is_refused_where_it_would_vanish_with_a_pod(
    executor: str, refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_WHISPER_WAREHOUSE", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    if refused is None:
        open_catalog(None)
        return
    with pytest.raises(
        CatalogConnectionError, match=f"{refused}.*catalog_conn_id.*AIRFLOW_WHISPER_WAREHOUSE"
    ):
        open_catalog(None)
    # A folder that somebody chose may be one that all machines share.
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(tmp_path / "shared"))
    open_catalog(None)


def test_embedded_catalog_is_refused_in_a_pod_whatever_its_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_WHISPER_WAREHOUSE", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    monkeypatch.setenv("AIRFLOW_IS_K8S_EXECUTOR_POD", "True")
    with pytest.raises(CatalogConnectionError, match="KubernetesExecutor"):
        open_catalog(None)


def test_sql_catalog_may_have_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = {"uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}"}
    extra = {"type": "sql", "name": "lakehouse", **properties}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    replace_rows(open_catalog("lake"), TABLE, change(["a"]))
    # Another tool knows the catalog's name, and nothing of Airflow's connection.
    assert SqlCatalog("lakehouse", **properties).load_table(TABLE).scan().count() == 1
    assert uris(open_catalog("lake")) == ["a"]


@pytest.mark.parametrize("name", ["", 7])
def test_name_of_a_catalog_must_be_a_name(name: object, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"type": "sql", "name": name, "uri": "sqlite://"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    with pytest.raises(CatalogConnectionError, match="must be the name of a catalog"):
        open_catalog("lake")
