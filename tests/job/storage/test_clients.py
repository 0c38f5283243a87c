"""Where requests and credentials of a store go, told from the addresses that its client makes."""

from __future__ import annotations

from datetime import timedelta

import obstore
import pytest

from whisper_spark.storage.clients import object_store
from whisper_spark.storage.objects import ObjectStorage, StorageError

AWS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region": "eu-west-1"}
AZURE = {"azure_storage_account_name": "acct", "azure_storage_account_key": "a2V5"}


def address(scheme: str, bucket: str, config: dict[str, str]) -> str:
    """The URL of an object, without its signature."""
    store = object_store(scheme, bucket, config)
    return obstore.sign(store, "GET", "a.wav", timedelta(minutes=1)).partition("?")[0]  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("config", "url"),
    [
        ({}, "https://s3.eu-west-1.amazonaws.com/calls/a.wav"),
        ({"aws_endpoint": "http://minio:9000"}, "http://minio:9000/calls/a.wav"),
        ({"aws_virtual_hosted_style_request": "true"}, "https://calls.s3.eu-west-1.amazonaws.com/a.wav"),
        (
            {"aws_virtual_hosted_style_request": "true", "aws_endpoint": "https://s3.example:8443"},
            "https://calls.s3.example:8443/a.wav",
        ),
    ],
)
def test_s3_is_asked_for_the_bucket_of_the_uri(config: dict[str, str], url: str) -> None:
    assert address("s3", "calls", AWS | config) == url


@pytest.mark.parametrize(
    ("bucket", "config", "url"),
    [
        ("calls", {}, "https://acct.blob.core.windows.net/calls/a.wav"),
        ("calls@acct.dfs.core.windows.net", {}, "https://acct.blob.core.windows.net/calls/a.wav"),
        ("calls@ACCT.blob.core.windows.net", {}, "https://acct.blob.core.windows.net/calls/a.wav"),
        ("calls@acct.dfs.core.chinacloudapi.cn", {}, "https://acct.blob.core.chinacloudapi.cn/calls/a.wav"),
        ("calls@acct.z01.blob.storage.azure.net", {}, "https://acct.z01.blob.storage.azure.net/calls/a.wav"),
        (
            "calls@acct.storage.internal.example",
            {"azure_storage_endpoint": "https://acct.storage.internal.example"},
            "https://acct.storage.internal.example/calls/a.wav",
        ),
        (
            "calls@acct.dfs.core.windows.net",
            {"azure_storage_endpoint": "https://storage.internal.example/acct"},
            "https://storage.internal.example/acct/calls/a.wav",
        ),
    ],
)
def test_azure_is_asked_at_its_own_hosts_and_the_connections(
    bucket: str, config: dict[str, str], url: str
) -> None:
    assert address("abfss" if "@" in bucket else "az", bucket, AZURE | config) == url


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "acct.evil.example",
        "acct.dfs.core.windows.net.evil.example",
        "acct.evil-core.windows.net",
        "core.windows.net",
        "localhost",
        "127.0.0.1",
    ],
)
@pytest.mark.parametrize("config", [AZURE, {}, AZURE | {"azure_storage_endpoint": "https://other.example"}])
def test_azure_host_of_somebody_else_is_refused(host: str, config: dict[str, str]) -> None:
    with pytest.raises(StorageError, match="neither Azure's nor the connection's"):
        ObjectStorage(config).open(f"abfss://calls@{host}/a.wav")


def test_key_of_one_azure_account_is_not_sent_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "abfss://calls@other.dfs.core.windows.net/a.wav"
    with pytest.raises(StorageError, match=r"names the account 'other'.*for 'acct'"):
        ObjectStorage(AZURE).open(uri)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acct")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    with pytest.raises(StorageError, match=r"names the account 'other'.*for 'acct'"):
        ObjectStorage().open(uri)


@pytest.mark.parametrize(
    "endpoint",
    [
        *(
            "localhost:9000",
            "minio",
            "//x",
            "http://",
            "http:// x",
            "https://[::1",
            "ftp://x",
            "http://x:99999",
        ),
        *(
            "",
            " http://x",
            "http://x/?a=1",
            "http://x#y",
            "http://user:hidden-word@x",
            "http://x\n",
            "http://ü",
        ),
    ],
)
def test_endpoint_that_is_no_url_is_an_error_like_others(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="is not a URL such as https://") as error:
        ObjectStorage(AWS | {"aws_endpoint": endpoint}).open("s3://calls/a.wav")
    assert "hidden-word" not in str(error.value)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match="is not a URL such as https://"):
            ObjectStorage(AWS).open("s3://calls/a.wav")


@pytest.mark.parametrize("name", ["aws_access_key_id", "aws_session_token", "aws_region"])
def test_panic_of_the_client_is_an_error_like_others(name: str) -> None:
    config = AWS | {"aws_endpoint": "http://127.0.0.1:9", name: "hidden-word\n"}
    storage = ObjectStorage(config)
    for action in (storage.open, storage.info, storage.any_under, storage.folders):
        with pytest.raises(StorageError, match=r"refuses its settings.*line breaks") as error:
            action("s3://calls/a.wav")
        assert "hidden-word" not in str(error.value)
