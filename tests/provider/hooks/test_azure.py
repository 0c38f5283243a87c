"""Azure Blob Storage, as its emulator has it, behaves like the other stores."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import obstore
import pytest
from azure import Azure, azurite, azurite_binary, container_sas, create_container, put_blob

from airflow_whisper.hooks.object_storage import object_storage
from airflow_whisper.operators.discover import DiscoverAudioOperator
from whisper_spark.storage.clients import object_store
from whisper_spark.storage.objects import (
    ObjectChanged,
    ObjectForbidden,
    ObjectNotFound,
    ObjectStorage,
    StorageError,
)
from whisper_spark.storage.parquet import open_parquet

pytestmark = pytest.mark.server

# Azure itself refuses control characters, which Azurite accepts:
# https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
ODD_NAMES = [
    "/b.wav",
    "../c.wav",
    "a//b.wav",
    "a/./b.wav",
    "a/../b.wav",
    "full.wav/",
    "tab\t.wav",
    "two\nlines.wav",
]

NAMES = [
    "plain.wav",
    "with space.wav",
    "hash#1%20?.wav",
    "zürich-通话.wav",
    "dt=2026-11-01/nested.wav",
    "empty.wav",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    binary = azurite_binary()
    if binary is None:
        pytest.skip("Azurite is not installed: `make test-azure` fetches it with npm")
    with azurite(binary, tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def folder(server: Azure) -> tuple[ObjectStorage, str]:
    """A storage, and the URI of an empty folder in a container of this test's own."""
    name = f"calls-{uuid.uuid4().hex[:8]}"
    return create_container(server, name), f"az://{name}/raw"


def listed(storage: ObjectStorage, uri: str) -> dict[str, dict[str, Any]]:
    return {row["audio_uri"]: row for batch in storage.list(uri) for row in batch.to_pylist()}


def test_names_come_back_exactly_as_they_are(folder: tuple[ObjectStorage, str]) -> None:
    storage, base = folder
    for name in NAMES:
        storage.write_bytes(f"{base}/{name}", b"" if name == "empty.wav" else name.encode())
    objects = listed(storage, base)
    assert set(objects) == {f"{base}/{name}" for name in NAMES}
    for uri, row in objects.items():
        # The etag of a listing and that of a read are one.
        with storage.open(uri, etag=row["audio_etag"]) as file:
            assert len(file.read()) == row["audio_bytes"]
        assert storage.info(uri).etag == row["audio_etag"]
    assert storage.folders(base) == ["dt=2026-11-01"]
    storage.delete([*objects, f"{base}/missing"])
    assert not storage.any_under(base)


def test_what_happened_to_an_object_is_told(folder: tuple[ObjectStorage, str]) -> None:
    storage, base = folder
    storage.write_bytes(f"{base}/a.wav", b"first")
    etag = storage.info(f"{base}/a.wav").etag
    storage.write_bytes(f"{base}/a.wav", b"second")
    with pytest.raises(ObjectChanged):
        storage.open(f"{base}/a.wav", etag=etag)
    with pytest.raises(ObjectNotFound):
        storage.open(f"{base}/missing.wav")
    with pytest.raises(ObjectNotFound, match="there is no bucket"):
        listed(storage, "az://no-such-container/raw")
    wrong = ObjectStorage({**storage.config, "azure_storage_account_key": "d3Jvbmc="})
    with pytest.raises(ObjectForbidden) as error:
        wrong.open(f"{base}/a.wav")
    assert "d3Jvbmc" not in str(error.value)
    assert "127.0.0.1" not in str(error.value)


def test_of_many_writers_one_wins(folder: tuple[ObjectStorage, str]) -> None:
    storage, base = folder
    with ThreadPoolExecutor(8) as pool:
        won = [*pool.map(lambda i: storage.write_bytes(f"{base}/a", b"%d" % i, if_absent=True), range(8))]
    assert won.count(True) == 1
    assert storage.read_bytes(f"{base}/a") == b"%d" % won.index(True)


def test_object_is_replaced_only_by_who_knows_its_version(
    folder: tuple[ObjectStorage, str], tmp_path: Path
) -> None:
    storage, base = folder
    path = tmp_path / "new"
    path.write_text("first")
    first = storage.replace(path, f"{base}/a", None)
    assert first is not None
    assert storage.replace(path, f"{base}/a", None) is None
    file, version = storage.open_version(f"{base}/a")
    assert file.read() == b"first"
    path.write_text("second")
    assert storage.replace(path, f"{base}/a", version) is not None
    assert storage.replace(path, f"{base}/a", version) is None


def test_large_file_goes_up_in_parts_and_comes_down(
    folder: tuple[ObjectStorage, str], tmp_path: Path
) -> None:
    storage, base = folder
    (tmp_path / "source").write_bytes(os.urandom(65 * 1024 * 1024))
    assert storage.upload(tmp_path / "source", f"{base}/a")
    storage.download(f"{base}/a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


def test_name_that_cannot_be_addressed_is_named(folder: tuple[ObjectStorage, str], server: Azure) -> None:
    storage, base = folder
    with pytest.raises(StorageError, match="cannot be addressed"):
        storage.write_bytes(f"{base}//a.wav", b"x")
    with pytest.raises(StorageError, match="cannot be addressed"):
        storage.open(f"{base}/../a.wav")


def test_signature_that_only_reads_is_enough_for_a_source(
    folder: tuple[ObjectStorage, str], server: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, base = folder
    uri = f"{base}/a.wav"
    storage.write_bytes(uri, b"audio")
    container = base.split("/")[2]
    store = object_store("az", container, server.config)
    url = obstore.sign(store, "GET", "raw/a.wav", timedelta(minutes=5))  # type: ignore[call-overload]
    connection = {
        "conn_type": "wasb",
        "host": server.endpoint,
        "login": server.config["azure_storage_account_name"],
        "extra": {"sas_token": urlencode(parse_qsl(url.partition("?")[2]))},
    }
    monkeypatch.setenv("AIRFLOW_CONN_READER", json.dumps(connection))
    reader = object_storage("reader", uri)
    assert reader.read_bytes(uri) == b"audio"
    with pytest.raises(ObjectForbidden):
        reader.write_bytes(uri, b"other")


def test_a_partition_in_azure_is_discovered(
    folder: tuple[ObjectStorage, str],
    server: Azure,
    catalog_env: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, base = folder
    monkeypatch.setenv("AIRFLOW_CONN_AZURE", server.connection)
    for name in NAMES:
        storage.write_bytes(f"{base}/{name}", b"x")
    task = DiscoverAudioOperator(
        task_id="discover",
        source=base,
        partition={"dt": "2026-11-01"},
        table="speech.transcripts",
        staging=base.replace("/raw", "/staging"),
        source_conn_id="azure",
    )
    result = task.execute({})
    with open_parquet(result["manifest_uri"], storage) as file:
        assert set(file.read().column("audio_uri").to_pylist()) == {f"{base}/{name}" for name in NAMES}


def test_odd_names_cost_themselves(
    folder: tuple[ObjectStorage, str],
    server: Azure,
    catalog_env: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage, base = folder
    monkeypatch.setenv("AIRFLOW_CONN_AZURE", server.connection)
    for name in [*ODD_NAMES, "a/c.wav", "full.wav", "z.wav"]:
        assert put_blob(server, base.split("/")[2], f"raw/{name}", name.encode()) == 201
    assert put_blob(server, base.split("/")[2], "raw/marker/", b"") == 201
    left_out: list[str] = []
    batches = [*storage.list(base, unreadable=left_out.append)]
    found = [uri for batch in batches for uri in batch.column("audio_uri").to_pylist()]
    assert sorted(found) == [f"{base}/{name}" for name in ("a/c.wav", "full.wav", "z.wav")]
    assert storage.read_bytes(f"{base}/full.wav") == b"full.wav"
    assert sorted(left_out) == sorted(f"{base}/{name}" for name in ODD_NAMES)
    assert sorted(storage.folders(base)) == ["a", "full.wav", "marker"]
    task = DiscoverAudioOperator(
        task_id="discover",
        source=base,
        partition={"dt": "2026-11-01"},
        table="speech.transcripts",
        staging=base.replace("/raw", "/staging"),
        source_conn_id="azure",
    )
    result = task.execute({})
    with open_parquet(result["manifest_uri"], storage) as file:
        assert sorted(file.read().column("audio_uri").to_pylist()) == sorted(found)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert f"{len(ODD_NAMES)} objects under {base}" in warning


def test_odd_names_are_left_out_for_who_has_a_signature_only(
    folder: tuple[ObjectStorage, str], server: Azure
) -> None:
    _, base = folder
    container = base.split("/")[2]
    for name in ("a//b.wav", "c.wav"):
        put_blob(server, container, f"raw/{name}", b"x")
    reader = ObjectStorage(
        {
            "azure_storage_account_name": server.config["azure_storage_account_name"],
            "azure_storage_endpoint": server.endpoint,
            "azure_storage_sas_key": container_sas(container),
        }
    )
    left_out: list[str] = []
    (batch,) = reader.list(base, unreadable=left_out.append)
    assert batch.column("audio_uri").to_pylist() == [f"{base}/c.wav"]
    assert left_out == [f"{base}/a//b.wav"]


def test_odd_names_are_left_out_where_the_setting_for_emulators_names_the_store(
    folder: tuple[ObjectStorage, str], server: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base = folder
    for name in ("a//b.wav", "c.wav"):
        put_blob(server, base.split("/")[2], f"raw/{name}", b"x")
    account = server.config["azure_storage_account_name"]
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", server.endpoint.removesuffix(f"/{account}"))
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    storage = ObjectStorage(
        {name: value for name, value in server.config.items() if name != "azure_storage_endpoint"}
    )
    left_out: list[str] = []
    (batch,) = storage.list(base, unreadable=left_out.append)
    assert batch.column("audio_uri").to_pylist() == [f"{base}/c.wav"]
    assert left_out == [f"{base}/a//b.wav"]
    assert storage.read_bytes(f"{base}/c.wav") == b"x"
