"""Clients of object stores: credentials, timeouts and retries."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# A store that does not answer is given up after about a minute. `timeout` covers a whole request with
# its body, so it has to allow for large recordings; `read_timeout` is what notices a stalled transfer.
_CLIENT_OPTIONS: dict[str, Any] = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "30m"}
_RETRY: dict[str, Any] = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=90),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}

_CONFIG_PREFIX = {"s3": "aws_", "gs": "google_", "az": "azure_", "abfss": "azure_"}
_AWS_FILES = (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))


def object_store(scheme: str, bucket: str, config: Mapping[str, str]) -> ObjectStore:
    """A client for one bucket.

    :param scheme: ``s3``, ``gs``, ``az`` or ``abfss``.
    :param bucket: for ``abfss`` it is ``CONTAINER@ACCOUNT.dfs.core.windows.net``.
    :param config: see :class:`whisper_spark.storage.objects.ObjectStorage`.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    prefix = _CONFIG_PREFIX[scheme]
    own: dict[str, Any] = {k: v for k, v in config.items() if k.startswith(prefix)}
    client = _CLIENT_OPTIONS | {
        k: v for k, v in config.items() if not k.startswith(("aws_", "google_", "azure_"))
    }
    client.setdefault("allow_http", own.pop(prefix + "allow_http", _plain_http(scheme, own)))
    common: dict[str, Any] = {"client_options": client, "retry_config": _RETRY}
    if scheme == "s3":
        provider = _aws_credentials(own)
        return S3Store(bucket, config=cast("Any", own), credential_provider=provider, **common)
    if scheme == "gs":
        return GCSStore(bucket, config=cast("Any", own), **common)
    container, _, host = bucket.partition("@")
    if host:
        account, _, domain = host.partition(".")
        own["azure_storage_account_name"] = account
        if domain and not domain.endswith(".core.windows.net") and "azure_storage_endpoint" not in own:
            own["azure_storage_endpoint"] = f"https://{account}.{re.sub('^dfs[.]', 'blob.', domain)}"
    return AzureStore(container, config=cast("Any", own), **common)


def _plain_http(scheme: str, own: Mapping[str, str]) -> str:
    """Whether the endpoint asked for is plain HTTP, as ``"true"`` or ``"false"``."""
    env = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "gs": ("GOOGLE_BASE_URL",),
    }.get(scheme, ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"))
    asked = [v for k, v in own.items() if "endpoint" in k] or [os.environ.get(name, "") for name in env]
    emulator = "azure_storage_use_emulator" in own or "AZURE_STORAGE_USE_EMULATOR" in os.environ
    return "true" if emulator or any(v.lower().startswith("http://") for v in asked) else "false"


def _aws_credentials(own: dict[str, Any]) -> Any:
    """Credentials that the client would not find by itself, else ``None``. Takes keys out of ``own``."""
    key = own.pop("aws_access_key_id", None)
    if key:
        # As a set: the client would complete it with an AWS_SESSION_TOKEN from the environment.
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

        return Boto3CredentialProvider()  # profiles, SSO included
    except (ImportError, ValueError):
        return None  # no boto3, or a profile without credentials: the instance role is next
