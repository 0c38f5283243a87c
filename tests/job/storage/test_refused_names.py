"""A name that obstore refuses or alters costs its own object: all others of the bucket are listed.

For names in S3 see also test_objects.py, for those in Azure tests/provider/hooks/test_azure.py.
"""

from __future__ import annotations

import contextlib
import http.server
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from literal_s3 import LiteralS3, literal_s3
from web_server import web_server

from whisper_spark.storage.clients import endpoint_of
from whisper_spark.storage.http import without_proxy_for
from whisper_spark.storage.list_relay import relayed_store
from whisper_spark.storage.objects import ObjectForbidden, ObjectStorage, StorageError

ODD = ["", "/b", "a//b", "a/./b", "a/../b", "tab\t", "two\nlines", "esc\x1b[0m", "del\x7f", "nul\0", "full/"]
PLAIN = ["a", "a/..b", "a+b &%41", "a/c", "é<", "full", "z\ufffd", "~"]


def listed(storage: ObjectStorage, uri: str, chunk_size: int = 1000) -> tuple[list[str], list[str]]:
    """URIs of the objects of a listing, and of those that were left out."""
    left_out: list[str] = []
    batches = storage.list(uri, chunk_size=chunk_size, unreadable=left_out.append)
    return [uri for batch in batches for uri in batch.column("audio_uri").to_pylist()], left_out


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_every_name_in_google_cloud_storage_is_listed_or_reported_once(page: int) -> None:
    keys = {f"in/{key}": b"" if key == "" else key.encode() for key in [*ODD, *PLAIN]}
    with literal_s3(keys, page) as server:
        storage = ObjectStorage(server.google_config)
        found, left_out = listed(storage, "gs://bucket/in/", page)
        assert sorted(found) == sorted(f"gs://bucket/in/{key}" for key in PLAIN)
        # "in/" is a folder marker.
        assert sorted(left_out) == sorted(f"gs://bucket/in/{key}" for key in ODD if key)
        for uri in found:
            assert storage.read_bytes(uri).decode() == uri.removeprefix("gs://bucket/in/")
        assert sorted(storage.folders("gs://bucket/in/")) == ["a", "full"]
        assert storage.any_under("gs://bucket/in/")


def test_many_objects_around_an_odd_name_in_google_cloud_storage_come_once_each() -> None:
    names = [f"in/{i:04}" for i in range(2500)]
    with literal_s3(dict.fromkeys([*names, "in/1234//x", "in/2222\t"], b"x")) as server:
        found, left_out = listed(ObjectStorage(server.google_config), "gs://bucket/in/", 700)
        assert found == [f"gs://bucket/{name}" for name in names]
        assert left_out == ["gs://bucket/in/1234//x", "gs://bucket/in/2222\t"]
        # Three pages, and one again after the name that is refused.
        assert len(server.requests) <= 4


def test_listing_around_odd_names_is_authorised_tried_again_and_says_what_is_refused() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"private_key": key.decode(), "private_key_id": "1", "client_email": "calls@example.com"}
    with literal_s3({"in/a//b": b"x", "in/c": b"x"}) as server:
        config = {
            "google_base_url": server.google_config["google_base_url"],
            "google_service_account_key": json.dumps(account),
        }
        server.failures = [200, 503]
        assert listed(ObjectStorage(config), "gs://bucket/in/") == (
            ["gs://bucket/in/c"],
            ["gs://bucket/in/a//b"],
        )
        assert len(server.authorizations) == 3
        assert all(header is not None and header.startswith("Bearer ey") for header in server.authorizations)
        server.failures = [200, 403]
        with pytest.raises(ObjectForbidden, match=r"gs://bucket/in/: AccessDenied"):
            listed(ObjectStorage(config), "gs://bucket/in/")


def test_answer_that_is_no_listing_is_an_error_that_says_so() -> None:
    with literal_s3({"in/a": b"x"}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiteralS3, "listing", lambda *_: "<html>Please log in<br></html>")
        with pytest.raises(StorageError, match=r"gs://bucket/in/: .*invalid list response"):
            listed(ObjectStorage(server.google_config), "gs://bucket/in/")
        with pytest.raises(StorageError, match="s3://bucket/in/: the store's answer is not XML"):
            listed(ObjectStorage(server.config), "s3://bucket/in/")


@contextmanager
def recorder(status: int = 403, location: str = "") -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything with a status, and the URLs that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Location", location)
            self.end_headers()

    with web_server(Handler) as port:
        yield f"http://127.0.0.1:{port}", asked


def test_listing_of_an_account_in_the_uri_goes_to_its_endpoint() -> None:
    with recorder() as (address, asked):
        config = {
            "azure_storage_endpoint": address.replace("127.0.0.1", "localhost"),
            "azure_storage_sas_key": "sv=2021-08-06&sig=a%2Bb%3D",
        }
        relayed = relayed_store("abfss", "calls@localhost", config, lambda _: None)
        with relayed as store, pytest.raises(obstore.exceptions.BaseError):
            obstore.list_with_delimiter(store, "in")
    (request,) = asked
    assert request.startswith("/calls?restype=container&comp=list&prefix=in%2F")
    assert "sig=a%2Bb%3D" in request


def test_listing_of_the_emulator_goes_there_as_its_account(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorder() as (address, asked):
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", address)
        config = {"azure_storage_use_emulator": "true", "azure_storage_endpoint": "http://127.0.0.1:1"}
        assert endpoint_of("az", "calls", config) == f"{address}/devstoreaccount1"
        relayed = relayed_store("az", "calls", config, lambda _: None)
        with relayed as store, pytest.raises(obstore.exceptions.BaseError):
            obstore.list_with_delimiter(store, "in")
        with pytest.raises(ObjectForbidden):
            ObjectStorage(config).folders("az://calls/in")
    # The client of the listing asks as that of everything else.
    assert asked == ["/devstoreaccount1/calls?restype=container&comp=list&prefix=in%2F&delimiter=%2F"] * 2


@pytest.mark.parametrize("form", ["google_service_account_key", "google_service_account", "environment"])
def test_names_are_left_out_where_the_service_account_names_the_server(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with literal_s3({"in/a//b": b"x", "in/c": b"x"}) as server:
        account = {"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}
        key = json.dumps({**account, "gcs_base_url": server.google_config["google_base_url"]})
        (tmp_path / "key.json").write_text(key)
        config = {form: key if form.endswith("key") else str(tmp_path / "key.json")}
        if form == "environment":
            config = {}
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", key)
        assert listed(ObjectStorage(config), "gs://bucket/in/") == (
            ["gs://bucket/in/c"],
            ["gs://bucket/in/a//b"],
        )


def test_credentials_of_a_listing_follow_no_redirect() -> None:
    with recorder() as (elsewhere, asked), recorder(307, elsewhere) as (address, _):
        config = {"google_base_url": address, "google_skip_signature": "true"}
        relayed = relayed_store("gs", "bucket", config, lambda _: None)
        with relayed as store, pytest.raises(obstore.exceptions.BaseError):
            obstore.list_with_delimiter(store, "in")
        assert not asked


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "all_proxy", None])
def test_credentials_of_a_listing_never_go_to_a_proxy_in_plain_text(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with literal_s3({"in/a//b": b"x", "in/c": b"x"}) as server, recorder() as (address, asked):
        storage = ObjectStorage(server.google_config)
        if name is None:
            storage = ObjectStorage(
                {**server.google_config, "proxy_url": address, "proxy_excludes": "127.0.0.1"}
            )
        else:
            monkeypatch.setenv(name, address)
        relayed = relayed_store("gs", "bucket", storage.config, lambda _: None)
        with relayed as store, contextlib.suppress(obstore.exceptions.BaseError):
            obstore.list_with_delimiter(store, "in")
        # The relay asks the proxy for the store. obstore does not ask it for the relay.
        assert {url.partition("?")[0] for url in asked} <= {
            f"{server.google_config['google_base_url']}/bucket"
        }


def test_proxy_of_obstore_leaves_out_the_relay_and_keeps_other_exceptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert without_proxy_for("127.0.0.1", {}) == {}
    given = {"proxy_url": "http://p:1", "proxy_excludes": "a.example"}
    assert without_proxy_for("127.0.0.1", given)["proxy_excludes"] == "127.0.0.1,a.example"
    monkeypatch.setenv("http_proxy", "http://p:1")
    assert without_proxy_for("127.0.0.1", {}) == {"proxy_url": "http://p:1", "proxy_excludes": "127.0.0.1"}
    monkeypatch.setenv("https_proxy", "http://p:2")
    monkeypatch.setenv("no_proxy", "b.example")
    assert without_proxy_for("127.0.0.1", {}) == {
        "proxy_url": "http://p:2",
        "proxy_excludes": "127.0.0.1,b.example",
    }


@pytest.mark.parametrize(
    ("scheme", "bucket", "config", "endpoint"),
    [
        ("gs", "b", {}, "https://storage.googleapis.com"),
        ("gs", "b", {"google_base_url": "http://h:1"}, "http://h:1"),
        ("az", "c", {"azure_storage_account_name": "acct"}, "https://acct.blob.core.windows.net"),
        ("az", "c", {"azure_endpoint": "https://h.example/acct"}, "https://h.example/acct"),
        ("az", "c", {"azure_storage_use_emulator": "true"}, "http://127.0.0.1:10000/devstoreaccount1"),
        (
            "az",
            "c",
            {"azure_storage_use_emulator": "1", "azure_storage_account_name": "acct"},
            "http://127.0.0.1:10000/acct",
        ),
        (
            "az",
            "c",
            {"azure_storage_use_emulator": "false", "azure_storage_account_name": "acct"},
            "https://acct.blob.core.windows.net",
        ),
        ("gs", "b", {"google_service_account_key": '{"gcs_base_url": "http://h:2"}'}, "http://h:2"),
        (
            "az",
            "c",
            {"azure_storage_account_name": "acct", "azure_use_fabric_endpoint": "true"},
            "https://acct.blob.fabric.microsoft.com",
        ),
        ("abfss", "c@acct.dfs.core.windows.net", {}, "https://acct.blob.core.windows.net"),
        (
            "abfss",
            "c@acct.dfs.core.usgovcloudapi.net",
            {},
            "https://acct.blob.core.usgovcloudapi.net",
        ),
        (
            "abfss",
            "c@acct.private.example",
            {"azure_storage_endpoint": "https://acct.private.example"},
            "https://acct.private.example",
        ),
    ],
)
def test_listings_are_forwarded_to_the_endpoint_of_the_bucket(
    scheme: str, bucket: str, config: dict[str, str], endpoint: str
) -> None:
    assert endpoint_of(scheme, bucket, config) == endpoint


# --- S3 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 3, 1000])
@pytest.mark.parametrize("odd", [[], ["in/w//odd"]])
def test_object_and_the_object_of_its_name_with_a_slash_are_told_apart(page: int, odd: list[str]) -> None:
    keys = {
        "in/w": b"w",
        "in/x": b"right",
        "in/x-y": b"y",
        "in/x.wav": b"z",
        "in/x/": b"another",
        "in/x/a": b"a",
        "in/z": b"",
        "in/z/": b"",
    }
    with literal_s3({**keys, **dict.fromkeys(odd, b"odd")}, page) as server:
        storage = ObjectStorage(server.config)
        found, left_out = listed(storage, "s3://bucket/in/", page)
        wanted = [f"s3://bucket/{key}" for key in [*keys, *odd] if not key.endswith("/")]
        assert sorted(found) == sorted(wanted)
        # The folder marker "z/" has no content that could be lost.
        assert left_out == ["s3://bucket/in/x/"]
        assert storage.read_bytes("s3://bucket/in/x") == b"right"
