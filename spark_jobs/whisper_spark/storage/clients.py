"""Creates clients of object stores, with credentials, endpoints, timeouts and retries.

Credentials are sent only to the endpoint in their configuration or in the environment, or to the cloud's own
domain, and never to a host in a URI.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from whisper_spark.storage.errors import StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Store

# A request fails after about a minute without an answer. `timeout` limits a whole request with its body, so
# it must allow for large recordings; `read_timeout` detects a stalled transfer.
_CLIENT_OPTIONS: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "30m"}
_RETRY: dict[str, Any] = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=90),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}

_CONFIG_PREFIX = {"s3": "aws_", "gs": "google_", "az": "azure_", "abfss": "azure_"}
_AWS_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))

# Configuration keys and environment variables from which the client takes the endpoint.
_ENDPOINTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "s3": (("aws_endpoint", "aws_endpoint_url"), ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")),
    "gs": (("google_base_url",), ("GOOGLE_BASE_URL",)),
    "az": (
        ("azure_storage_endpoint", "azure_endpoint"),
        ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    ),
}

# Address, account and key of an Azurite on this host, as the client has them. The key is no secret:
# https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
_EMULATOR_ADDRESS = ("AZURITE_BLOB_STORAGE_URL", "http://127.0.0.1:10000")
_EMULATOR_ACCOUNT = "devstoreaccount1"
_EMULATOR_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# https://cloud.google.com/storage/docs/request-endpoints
_GOOGLE = "https://storage.googleapis.com"

# Storage domains of all Azure clouds: learn.microsoft.com/azure/storage/common/storage-account-overview
# and .../azure/azure-government/compare-azure-government-global-azure.
_AZURE_DOMAINS = (
    ".core.windows.net",
    ".core.chinacloudapi.cn",
    ".core.usgovcloudapi.net",
    ".storage.azure.net",
    ".fabric.microsoft.com",
)

# Credentials that are valid for one storage account only, unlike those of a user or an application.
_AZURE_ACCOUNT_CREDENTIALS = (
    "azure_storage_account_key",
    "azure_storage_access_key",
    "azure_storage_master_key",
    "azure_storage_sas_key",
    "azure_storage_sas_token",
)


def object_store(scheme: str, bucket: str, config: Mapping[str, str]) -> ObjectStore:
    """A client for one bucket.

    :param scheme: ``s3``, ``gs``, ``az`` or ``abfss``.
    :param bucket: name of the bucket; for ``abfss``, ``CONTAINER@ACCOUNT.dfs.core.windows.net``.
    :param config: see :class:`whisper_spark.storage.objects.ObjectStorage`.
    :raises StorageError: for a host that belongs neither to Azure nor to the configuration, and for an
        endpoint that is not a URL.
    """
    if scheme == "s3":
        return s3_store_at(bucket, config, None)
    return _store(scheme, bucket, *_settings(scheme, bucket, config))


def store_at(scheme: str, bucket: str, config: Mapping[str, str], address: str) -> ObjectStore:
    """A client for one bucket in Google Cloud Storage or Azure that sends its requests to another address.

    It authorises them as it would for :func:`endpoint_of`.

    :param address: URL that replaces that endpoint.
    """
    own, common = _settings(scheme, bucket, config)
    keys = _ENDPOINTS["gs" if scheme == "gs" else "az"][0]
    own = {key: value for key, value in own.items() if key not in keys} | {keys[0]: address}
    common["client_options"]["allow_http"] = "true"
    return _store(scheme, bucket, own, common)


def configured_endpoint(scheme: str, config: Mapping[str, str]) -> str | None:
    """The endpoint in the configuration or the environment; ``None``: that of the cloud.

    :raises StorageError: for an endpoint that is not a URL.
    """
    own, _ = _split_config(scheme, config)
    return _endpoint(scheme, own)


def endpoint_of(scheme: str, bucket: str, config: Mapping[str, str]) -> str:
    """The URL of the service that holds a bucket in Google Cloud Storage or Azure.

    :raises StorageError: as :func:`object_store`.
    """
    own, _ = _settings(scheme, bucket, config)
    endpoint = own.get("azure_storage_endpoint") or _endpoint(scheme, own)
    if endpoint or scheme == "gs":
        return endpoint or _GOOGLE
    account = own.get("azure_storage_account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    fabric = own.get("azure_use_fabric_endpoint") or os.environ.get("AZURE_USE_FABRIC_ENDPOINT", "")
    domain = "fabric.microsoft.com" if fabric.lower() in ("true", "1") else "core.windows.net"
    return f"https://{account}.blob.{domain}"


def _settings(scheme: str, bucket: str, config: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a store in Google Cloud Storage or Azure, and arguments that every client gets."""
    own, common = _split_config(scheme, config)
    own |= _account_of(scheme, bucket, own)
    if scheme != "gs" and _uses_emulator(own):
        own |= _emulator(own)
        own.pop("azure_endpoint", None)
    return own, common


def _uses_emulator(own: Mapping[str, str]) -> bool:
    value = own.get("azure_storage_use_emulator", os.environ.get("AZURE_STORAGE_USE_EMULATOR", ""))
    # The values that the client takes for true.
    return value.lower() in ("1", "true", "on", "yes", "y")


def _emulator(own: Mapping[str, str]) -> dict[str, str]:
    """Settings with which a client uses the emulator as any other endpoint, which can be replaced."""
    variable, default = _EMULATOR_ADDRESS
    account = own.get("azure_storage_account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    account = account or _EMULATOR_ACCOUNT
    endpoint = f"{os.environ.get(variable, default).rstrip('/')}/{account}"
    check_endpoint(endpoint)
    names = (*_AZURE_ACCOUNT_CREDENTIALS, "azure_storage_token")
    known = any(name in own or name.upper() in os.environ for name in names)
    return {
        "azure_storage_use_emulator": "false",
        "azure_storage_account_name": account,
        "azure_storage_endpoint": endpoint,
        **({} if known else {"azure_storage_account_key": _EMULATOR_KEY}),
    }


def _account_of(scheme: str, bucket: str, own: Mapping[str, str]) -> dict[str, str]:
    _, _, host = bucket.partition("@")
    return _azure_account(bucket, host.lower(), own) if scheme == "abfss" and host else {}


def _store(scheme: str, bucket: str, own: Mapping[str, str], common: Mapping[str, Any]) -> ObjectStore:
    from obstore.store import AzureStore, GCSStore

    if scheme == "gs":
        return GCSStore(bucket, config=cast("Any", own), **common)
    return AzureStore(bucket.partition("@")[0], config=cast("Any", own), **common)


def s3_store_at(bucket: str, config: Mapping[str, str], address: str | None) -> S3Store:
    """A client for one bucket in S3.

    :param address: URL to which the client appends the path of each request; ``None``: that of the bucket.
    """
    from obstore.store import S3Store

    own, common = _split_config("s3", config)
    endpoint = address
    if address is None and own.get("aws_virtual_hosted_style_request", "").lower() == "true":
        # With this setting the client expects an endpoint that includes the bucket.
        scheme, separator, host = (_endpoint("s3", own) or "").partition("://")
        endpoint = f"{scheme}://{bucket}.{host}" if separator else None
    if endpoint:
        for name in _ENDPOINTS["s3"][0]:
            own.pop(name, None)
        own |= {"aws_endpoint": endpoint, "aws_virtual_hosted_style_request": "true"}
    return S3Store(bucket, config=cast("Any", own), credential_provider=_aws_credentials(own), **common)


def _split_config(scheme: str, config: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a configuration into settings of the store and arguments that every client gets."""
    prefix = _CONFIG_PREFIX[scheme]
    own: dict[str, Any] = {k: v for k, v in config.items() if k.startswith(prefix)}
    client = _CLIENT_OPTIONS | {
        k: v for k, v in config.items() if not k.startswith(tuple(_CONFIG_PREFIX.values()))
    }
    endpoint = _endpoint(scheme, own)
    emulator = prefix == "azure_" and _uses_emulator(own)
    plain_http = (endpoint or "").startswith("http://") or emulator
    client.setdefault("allow_http", own.pop(prefix + "allow_http", "true" if plain_http else "false"))
    return own, {"client_options": client, "retry_config": _RETRY}


def _endpoint(scheme: str, own: Mapping[str, str]) -> str | None:
    """The endpoint that the client will use; ``None`` for that of the cloud.

    :raises StorageError: when it is not a URL, with which the client would panic.
    """
    keys, variables = _ENDPOINTS["az" if scheme == "abfss" else scheme]
    found = [own[key] for key in keys if key in own]
    found += [os.environ[name] for name in variables if os.environ.get(name) and not found]
    if scheme == "gs" and not found:
        found = _google_endpoint(own)
    for endpoint in found:
        check_endpoint(endpoint)
    return found[0] if found else None


def _google_endpoint(own: Mapping[str, str]) -> list[str]:
    """The endpoint that a service account names, as those for other servers with Google's API do."""
    names = ("google_service_account_key", "google_service_account", "google_service_account_path")
    given = {name: own[name] for name in names if name in own}
    given = given or {name: os.environ[name.upper()] for name in names if name.upper() in os.environ}
    try:
        for name, value in given.items():
            account = json.loads(value if name == names[0] else Path(value).read_text())
            return [account["gcs_base_url"]] if account.get("gcs_base_url") else []
    except (OSError, ValueError, AttributeError):
        # The client says what is wrong with it.
        return []
    return []


def check_endpoint(endpoint: str) -> None:
    """Check that an endpoint is the URL of a host.

    :raises StorageError: when it is not.
    """
    try:
        parts = urlsplit(endpoint)
        valid = (
            parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        valid = False
    if not valid or re.search(r"[\s?#@\\]|[^\x20-\x7e]", endpoint):
        raise StorageError(
            f"the endpoint {_without_user(endpoint)!r} is not a URL such as https://s3.example:9000"
        )


def _without_user(endpoint: str) -> str:
    # The part before the @ may contain a password.
    return re.sub(r"//[^/]*@", "//***@", endpoint)


def _azure_account(bucket: str, host: str, own: Mapping[str, str]) -> dict[str, str]:
    """The configuration for the storage account in a URI.

    :raises StorageError: when credentials would be sent to a host or account that they do not belong to.
    """
    account, _, domain = host.partition(".")
    endpoint = _endpoint("az", own)
    trusted = endpoint is not None and urlsplit(endpoint).hostname in (
        host,
        host.replace(".dfs.", ".blob.", 1),
    )
    if not trusted and not f".{domain}".endswith(_AZURE_DOMAINS):
        raise StorageError(
            f"abfss://{bucket}/ names the host {host!r}, which is neither Azure's nor the connection's: "
            "no credentials are sent there. If it is yours, name it as the host of the connection"
        )
    known = own.get("azure_storage_account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    bound = any(name in own or name.upper() in os.environ for name in _AZURE_ACCOUNT_CREDENTIALS)
    if bound and known and known != account:
        raise StorageError(
            f"abfss://{bucket}/ names the account {account!r}, but the key or SAS is for {known!r} and is "
            "sent nowhere else. Use a connection for that account"
        )
    named = {"azure_storage_account_name": account}
    if endpoint or domain.endswith(".core.windows.net"):
        return named
    return named | {"azure_storage_endpoint": f"https://{account}.{re.sub('^dfs[.]', 'blob.', domain)}"}


def _aws_credentials(own: dict[str, Any]) -> Any:
    """A provider of credentials that the client would not find itself, or ``None``.

    Removes the credentials from ``own``.
    """
    key = own.pop("aws_access_key_id", None)
    if key:
        # As a provider, because the client would add an AWS_SESSION_TOKEN from the environment to a plain
        # key.
        secret, token = own.pop("aws_secret_access_key", ""), own.pop("aws_session_token", None) or None
        fixed = {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}
        return lambda: fixed
    files = [os.environ.get(n) or Path.home() / ".aws" / f for n, f in _AWS_FILES]
    in_profile = "AWS_PROFILE" in os.environ or any(Path(f).is_file() for f in files)
    otherwise = "aws_skip_signature" in own or "aws_web_identity_token_file" in own
    if otherwise or "AWS_ACCESS_KEY_ID" in os.environ or not in_profile:
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        # Supports all kinds of profiles, including SSO.
        return Boto3CredentialProvider()
    except (ImportError, ValueError):
        # Without boto3, or with a profile without credentials, the client tries the instance role next.
        return None
