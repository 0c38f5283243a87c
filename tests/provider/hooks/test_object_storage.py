"""Airflow connections become object storage configuration; manifests are read back."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import S3Server

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.hooks.object_storage import (
    InvalidConnectionError,
    explained_access,
    object_storage,
    storage_config,
)
from whisper_spark.contract import Run, WhisperOptions, manifest_schema
from whisper_spark.storage.objects import ObjectForbidden, ObjectNotFound, ObjectStorage, StorageError
from whisper_spark.storage.parquet import open_parquet, read_run

Connect = Callable[..., str]

AWS_URI = "s3://calls/raw/"
AZURE_URI = "az://calls/raw/"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def add(conn_type: str, conn_id: str = "store", **fields: Any) -> str:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": conn_type, **fields}))
        return conn_id

    return add


def test_no_connection_means_ambient_credentials() -> None:
    assert storage_config(None, AWS_URI) == {}


def test_local_files_need_no_connection(connect: Connect) -> None:
    assert storage_config("missing", "/data/calls") == {}
    assert storage_config(connect("aws", login="key", password="secret-value"), "file:///data") == {}


def test_s3_through_a_connection_reads_and_writes(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.connection)
    uri = f"s3://{s3.bucket('conn')}/a.wav"
    storage = object_storage("seaweed", uri)
    assert storage.write_bytes(uri, b"audio")
    assert storage.read_bytes(uri) == b"audio"


def test_aws_fields(connect: Connect) -> None:
    conn = connect(
        "aws",
        login="key",
        password="secret-value",
        extra={
            "region_name": "eu-central-1",
            "endpoint_url": "https://everything.example",
            "service_config": {"s3": {"endpoint_url": "https://s3.example"}},
            "aws_session_token": "session-token",
            "verify": False,
        },
    )
    assert storage_config(conn, AWS_URI) == {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret-value",
        "aws_session_token": "session-token",
        "aws_region": "eu-central-1",
        "aws_endpoint": "https://s3.example",
        "allow_invalid_certificates": "true",
    }


def test_aws_keys_in_extra(connect: Connect) -> None:
    extra = {"aws_access_key_id": "key", "aws_secret_access_key": "secret-value"}
    assert storage_config(connect("aws", extra=extra), AWS_URI) == extra


def test_aws_without_keys_uses_the_credentials_of_each_machine(connect: Connect) -> None:
    conn = connect("aws", extra={"region_name": "eu-central-1"})
    assert storage_config(conn, AWS_URI) == {"aws_region": "eu-central-1"}


def test_aws_certificate_travels_as_text(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    config = storage_config(connect("aws", extra={"verify": str(tmp_path / "ca.pem")}), AWS_URI)
    assert config == {"root_certificate": "-----BEGIN CERTIFICATE-----"}
    with pytest.raises(InvalidConnectionError, match=r"verify of connection 'store' cannot be read"):
        storage_config(connect("aws", extra={"verify": str(tmp_path / "missing.pem")}), AWS_URI)


def test_aws_profile_is_resolved_by_the_amazon_provider(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        "access_key_id": "profile-key",
        "secret_access_key": "profile-secret",
        "session_token": "profile-token",
    }
    lines = ["[calls]", *(f"aws_{key}={value}" for key, value in keys.items())]
    (tmp_path / "credentials").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    conn = connect("aws", extra={"profile_name": "calls", "region_name": "eu-west-1"})
    assert storage_config(conn, AWS_URI) == {
        "aws_access_key_id": "profile-key",
        "aws_secret_access_key": "profile-secret",
        "aws_session_token": "profile-token",
        "aws_region": "eu-west-1",
    }


def test_aws_profile_that_does_not_exist(connect: Connect) -> None:
    conn = connect("aws", extra={"profile_name": "nobody"})
    with pytest.raises(InvalidConnectionError, match=r"'store'.*nobody"):
        storage_config(conn, AWS_URI)


def test_aws_role_without_the_provider_names_the_package(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.amazon.aws.hooks.base_aws", None)
    conn = connect("aws", extra={"role_arn": "arn:aws:iam::123456789012:role/audio"})
    with pytest.raises(InvalidConnectionError, match=r"airflow-provider-whisper\[amazon\]"):
        storage_config(conn, AWS_URI)


@pytest.mark.parametrize("field", ["keyfile_dict", "extra__google_cloud_platform__keyfile_dict"])
@pytest.mark.parametrize("encode", [dict, json.dumps])
def test_google_key(connect: Connect, field: str, encode: Callable[[dict[str, str]], Any]) -> None:
    key = {"type": "service_account", "private_key": "-----BEGIN"}
    config = storage_config(connect("google_cloud_platform", extra={field: encode(key)}), "gs://calls/")
    assert list(config) == ["google_service_account_key"]
    assert json.loads(config["google_service_account_key"]) == key


def test_google_key_file_travels_as_text(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text('{"private_key": "x"}')
    conn = connect("google_cloud_platform", extra={"key_path": str(tmp_path / "key.json")})
    assert storage_config(conn, "gs://calls/") == {"google_service_account_key": '{"private_key": "x"}'}


def test_google_without_a_key_uses_the_credentials_of_each_machine(connect: Connect) -> None:
    assert storage_config(connect("google_cloud_platform", extra={"project": "p"}), "gs://calls/") == {}


def test_google_impersonation_is_refused_and_not_ignored(connect: Connect) -> None:
    conn = connect("google_cloud_platform", extra={"impersonation_chain": "a@b"})
    with pytest.raises(InvalidConnectionError, match="impersonation_chain, which is not supported"):
        storage_config(conn, "gs://calls/")


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (
            {"login": "acct", "password": "a2V5"},
            {"azure_storage_account_name": "acct", "azure_storage_account_key": "a2V5"},
        ),
        (
            {"login": "acct", "extra": {"sas_token": "https://acct.blob.core.windows.net/?sv=1&sig=2"}},
            {"azure_storage_account_name": "acct", "azure_storage_sas_key": "sv=1&sig=2"},
        ),
        (
            {
                "login": "client",
                "password": "client-secret",
                "host": "https://acct.blob.core.windows.net/",
                "extra": {"tenant_id": "tenant"},
            },
            {
                "azure_storage_account_name": "acct",
                "azure_storage_tenant_id": "tenant",
                "azure_storage_client_id": "client",
                "azure_storage_client_secret": "client-secret",
            },
        ),
        (
            {
                "extra": {
                    "connection_string": "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=a2V5==;"
                    "EndpointSuffix=core.chinacloudapi.cn"
                }
            },
            {
                "azure_storage_account_name": "acct",
                "azure_storage_account_key": "a2V5==",
                "azure_storage_endpoint": "https://acct.blob.core.chinacloudapi.cn",
            },
        ),
        (
            {"login": "acct", "password": "a2V5", "host": "https://storage.internal.example:10000/acct"},
            {
                "azure_storage_account_name": "acct",
                "azure_storage_account_key": "a2V5",
                "azure_storage_endpoint": "https://storage.internal.example:10000/acct",
            },
        ),
        (
            {"login": "acct", "password": "a2V5", "host": "acct.storage.internal.example"},
            {
                "azure_storage_account_name": "acct",
                "azure_storage_account_key": "a2V5",
                "azure_storage_endpoint": "https://acct.storage.internal.example",
            },
        ),
        ({"login": "acct"}, {"azure_storage_account_name": "acct"}),
    ],
)
@pytest.mark.parametrize("conn_type", ["wasb", "adls"])
def test_azure_fields(
    connect: Connect, conn_type: str, fields: dict[str, Any], config: dict[str, str]
) -> None:
    assert storage_config(connect(conn_type, **fields), AZURE_URI) == config


def test_azure_data_lake_application(connect: Connect) -> None:
    extra = {"tenant": "tenant", "account_name": "acct"}
    conn = connect("azure_data_lake", login="client", password="client-secret", extra=extra)
    assert storage_config(conn, "abfss://calls@acct.dfs.core.windows.net/raw") == {
        "azure_storage_account_name": "acct",
        "azure_storage_tenant_id": "tenant",
        "azure_storage_client_id": "client",
        "azure_storage_client_secret": "client-secret",
    }


def test_azure_connection_string_without_account(connect: Connect) -> None:
    conn = connect("wasb", extra={"connection_string": "AccountKey=a2V5"})
    with pytest.raises(InvalidConnectionError, match="lacks AccountName="):
        storage_config(conn, AZURE_URI)


def test_missing_connection_says_how_to_make_one() -> None:
    with pytest.raises(
        InvalidConnectionError, match=r"no connection 'nowhere'.*--conn-json '{\"conn_type\": \"aws\""
    ):
        storage_config("nowhere", AWS_URI)


def test_connection_that_became_generic_says_how_to_make_one_of_the_right_type(connect: Connect) -> None:
    # What `airflow connections add --conn-type aws` makes where the Amazon provider is not installed.
    conn = connect("generic", login="AKIA")
    with pytest.raises(InvalidConnectionError) as caught:
        storage_config(conn, AWS_URI)
    assert "airflow-provider-whisper[amazon] is not installed" in str(caught.value)
    command = re.search(r"`(airflow connections add \S+ --conn-json .*)`", str(caught.value))
    assert command
    arguments = shlex.split(command[1])
    assert json.loads(arguments[-1])["conn_type"] == "aws"


@pytest.mark.parametrize(
    ("conn_type", "uri", "wanted"),
    [
        ("google_cloud_platform", AWS_URI, "'aws'"),
        ("spark", AWS_URI, "'aws'"),
        ("aws", "gs://calls/", "'google_cloud_platform'"),
        ("aws", AZURE_URI, "'wasb' or 'adls'"),
    ],
)
def test_connection_of_another_kind_is_refused(
    connect: Connect, conn_type: str, uri: str, wanted: str
) -> None:
    with pytest.raises(
        InvalidConnectionError, match=f"is of type '{conn_type}', but .* needs one of type {wanted}"
    ):
        storage_config(connect(conn_type), uri)


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:9000",
        "minio",
        "s3.example/",
        "ftp://s3.example",
        "http://",
        "https:// s3.example",
        "https://[::1",
    ],
)
def test_endpoint_that_is_no_url_is_explained(connect: Connect, endpoint: str) -> None:
    conn = connect("aws", login="key", password="secret-value", extra={"endpoint_url": endpoint})
    with pytest.raises(
        InvalidConnectionError, match=r"'store': the endpoint .* is not a URL such as https://"
    ):
        storage_config(conn, AWS_URI)


def test_password_in_an_endpoint_is_not_shown(connect: Connect) -> None:
    conn = connect("aws", extra={"endpoint_url": "https://user:hidden-word@s3.example"})
    with pytest.raises(InvalidConnectionError, match="is not a URL") as error:
        storage_config(conn, AWS_URI)
    assert "hidden-word" not in str(error.value)


@pytest.mark.parametrize("field", ["login", "password"])
def test_line_break_in_a_key_is_named_and_not_shown(connect: Connect, field: str) -> None:
    conn = connect("aws", **{"login": "key", "password": "secret", field: "secret-value\n"})
    with pytest.raises(InvalidConnectionError, match=r"'store'.*aws_\w+ holds a line break") as error:
        storage_config(conn, AWS_URI)
    assert "secret-value" not in str(error.value)


@pytest.mark.parametrize("secret", [{"password": "a2V5"}, {"extra": {"sas_token": "sv=1&sig=2"}}])
def test_azure_secrets_go_to_no_host_that_stands_in_a_uri(connect: Connect, secret: dict[str, Any]) -> None:
    conn = connect("wasb", login="acct", **secret)
    for host in ("evil.example", "acct.evil.example", "acct.dfs.core.windows.net.evil.example", "evil"):
        uri = f"abfss://calls@{host}/raw/a.wav"
        with pytest.raises(StorageError, match=f"names the host '{host}'.*no credentials are sent there"):
            object_storage(conn, uri).open(uri)
    uri = "abfss://calls@evil.dfs.core.windows.net/raw/a.wav"
    with pytest.raises(StorageError, match="key or SAS is for 'acct' and is sent nowhere else"):
        object_storage(conn, uri).open(uri)


def test_secrets_are_masked_in_logs(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    masked: list[Any] = []
    monkeypatch.setattr("airflow.sdk.log.mask_secret", lambda value, name=None: masked.append(value))
    extra = {"aws_session_token": "session-token"}
    storage_config(connect("aws", login="key", password="secret-value", extra=extra), AWS_URI)
    storage_config(connect("wasb", login="acct", password="account-key"), AZURE_URI)
    storage_config(connect("wasb", login="acct", extra={"sas_token": "sv=1&sig=2"}), AZURE_URI)
    key = {"private_key": "private-key"}
    storage_config(connect("google_cloud_platform", extra={"keyfile_dict": key}), "gs://calls/")
    wanted = {"secret-value", "session-token", "account-key", "sv=1&sig=2", "private-key"}
    assert wanted <= {value for value in masked if isinstance(value, str)}


# --- manifest ------------------------------------------------------------------------------------------


def run_in(folder: str) -> Run:
    options = WhisperOptions(model="base", temperature=(0.0, 0.2))
    return Run(
        table="speech.transcripts",
        partition={"dt": "2026-11-01"},
        source="s3://calls/raw/",
        options=options,
        run_uri=folder,
        manifest_id="0" * 32,
        base_snapshot_id=2**62,
        counts={"new": 1},
        audio_bytes=5,
    )


def test_run_comes_back_from_the_manifest(tmp_path: Path) -> None:
    run, storage = run_in(f"file://{tmp_path}"), ObjectStorage()
    schema = manifest_schema(run.partition).with_metadata(run.to_metadata())
    pq.write_table(schema.empty_table(), tmp_path / "manifest.parquet")
    assert read_run(run.manifest_uri, storage) == run
    with open_parquet(run.manifest_uri, storage) as file:
        assert file.metadata.num_rows == 0


def test_what_is_no_manifest_is_named(tmp_path: Path) -> None:
    storage = ObjectStorage()
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"text\.parquet is no Parquet file"):
        read_run(f"file://{tmp_path}/text.parquet", storage)
    with pytest.raises(ValueError, match=r"other\.parquet: this Parquet file is no manifest"):
        read_run(f"file://{tmp_path}/other.parquet", storage)
    with pytest.raises(ObjectNotFound):
        read_run(f"file://{tmp_path}/missing.parquet", storage)


# --- requests that fail -------------------------------------------------------------------------------------


def refusal(s3: S3Server, uri: str, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Exception:
    """What a listing with this connection says."""
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", json.dumps({**json.loads(s3.connection), **changes}))
    storage = object_storage("calls_s3", uri)
    with (
        pytest.raises((StorageError, ConfigurationError)) as failed,
        explained_access("source", "calls_s3", storage, uri),
    ):
        list(storage.list(uri))
    return failed.value


def test_wrong_bucket_is_told_with_the_connection_and_not_tried_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal(s3, "s3://no-such-bucket/raw/", monkeypatch)
    assert isinstance(error, ConfigurationError)
    assert "there is no bucket s3://no-such-bucket. " in str(error)
    assert "Check `source`" in str(error)
    assert "'calls_s3'" in str(error)


def test_wrong_key_is_told_with_the_connection_and_not_tried_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for field in ("login", "password"):
        error = refusal(s3, f"s3://{s3.bucket()}/raw/", monkeypatch, **{field: "another-value"})
        assert isinstance(error, ConfigurationError)
        assert "Correct the key of connection 'calls_s3'" in str(error)
        assert "another-value" not in str(error)


@pytest.mark.parametrize(
    ("conn_id", "named"), [("calls_s3", "connection 'calls_s3'"), (None, "the credentials of this machine")]
)
def test_store_that_cannot_be_reached_is_told_with_the_connection_and_tried_again(
    conn_id: str | None, named: str
) -> None:
    told = f"^staging: .* {named}: check .* endpoint"
    with (
        pytest.raises(StorageError, match=told) as failed,
        explained_access("staging", conn_id, ObjectStorage(), "s3://calls/a"),
    ):
        raise StorageError("cannot access s3://calls/a: HTTP error: error sending request")
    assert not isinstance(failed.value, ConfigurationError)


@pytest.mark.parametrize(
    "error", [StorageError("error sending request"), ObjectForbidden("no permission"), ObjectNotFound("no")]
)
@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"endpoint_url": "https://s3.example:9000/x"}, r"The request went to https://s3\.example:9000/x\."),
        # Names of other tools, and the field Host of the form, are no endpoint.
        ({"endpoint": "https://s3.example"}, "went to Amazon S3, because no endpoint.* is endpoint_url in"),
        ({}, "went to Amazon S3, because no endpoint.* is endpoint_url in"),
    ],
)
def test_store_that_refuses_is_told_with_the_endpoint_that_was_asked(
    error: Exception, extra: dict[str, str], told: str, connect: Connect
) -> None:
    conn = connect("aws", login="key", password="secret-value", host="https://s3.example", extra=extra)
    storage = object_storage(conn, AWS_URI)
    with (
        pytest.raises(type(error), match=rf"^source: .*{told}.*'store': check"),
        explained_access("source", conn, storage, AWS_URI),
    ):
        raise error


def test_folder_that_is_missing_is_told_without_an_endpoint() -> None:
    with (
        pytest.raises(ObjectNotFound, match=r"^source: file:///a does not exist\. This request used"),
        explained_access("source", None, ObjectStorage(), "file:///a"),
    ):
        raise ObjectNotFound("file:///a does not exist")


@pytest.mark.parametrize("extra", ["{region_name: us-east-1}", "region_name=us-east-1", '["a-secret"]'])
def test_extra_that_is_no_json_object_is_told_without_its_content(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps({"conn_type": "aws", "extra": extra}))
    with pytest.raises(InvalidConnectionError, match="the extra of connection 'store' is not") as error:
        storage_config("store", AWS_URI)
    assert extra not in str(error.value)
