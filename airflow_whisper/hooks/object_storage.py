"""Create object storage clients from Airflow connections."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.hooks.connection_extra import extra_problem
from whisper_spark.storage.clients import check_endpoint, configured_endpoint
from whisper_spark.storage.objects import ObjectStorage, StorageError, normalise_uri

if TYPE_CHECKING:
    from airflow.sdk import Connection

_TYPES_OF_SCHEME = {
    "s3": ("aws",),
    "gs": ("google_cloud_platform",),
    "az": ("wasb", "adls", "azure_data_lake"),
    "abfss": ("wasb", "adls", "azure_data_lake"),
}

# For messages: what a connection of each type looks like, and what brings Airflow's form for it.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "aws": {
        "conn_type": "aws",
        "login": "ACCESS_KEY",
        "password": "SECRET_KEY",
        "extra": {"region_name": "us-east-1", "endpoint_url": "https://..., for other stores than AWS"},
    },
    "google_cloud_platform": {"conn_type": "google_cloud_platform", "extra": {"key_path": "/path/key.json"}},
    "wasb": {"conn_type": "wasb", "login": "ACCOUNT", "password": "ACCOUNT_KEY"},
}
_PROVIDERS = {
    "aws": "airflow-provider-whisper[amazon]",
    "google_cloud_platform": "apache-airflow-providers-google",
    "wasb": "apache-airflow-providers-microsoft-azure",
}

# Settings whose values are the contents of files, which may contain line breaks.
_TEXTS = ("root_certificate", "google_service_account_key")

# Where requests go without an endpoint.
_CLOUDS = {"s3": "Amazon S3", "gs": "Google Cloud Storage"}

# Parts of the messages of stores: a bucket, or a key, that they do not know.
_NO_BUCKET = "there is no bucket"
_UNKNOWN_KEY = re.compile(r"SignatureDoesNotMatch|InvalidAccessKeyId")

_SECRET_KEYS = ("secret", "token", "sas_key", "account_key", "service_account_key")


class InvalidConnectionError(ConfigurationError):
    """An Airflow connection is missing, or cannot be used for its purpose."""


def object_storage(conn_id: str | None, uri: str, *, connection: Any = None) -> ObjectStorage:
    """Return the object storage of ``uri``, with the credentials of a connection.

    :param conn_id, connection: see :func:`storage_config`.
    :raises InvalidConnectionError: see :func:`storage_config`.
    """
    return ObjectStorage(storage_config(conn_id, uri, connection=connection))


@contextmanager
def explained_access(argument: str, conn_id: str | None, storage: ObjectStorage, uri: str) -> Iterator[None]:
    """Use it around requests to a store: its errors then name what to look at.

    That is the argument, the connection, and the endpoint that the requests went to.

    :param argument: argument of the operator that names the place, for example ``"source"``.
    :param conn_id: the connection that was used; ``None``: ambient credentials.
    :param storage: what sends the requests.
    :param uri: the place.
    :raises ConfigurationError: for a bucket that does not exist and for credentials that the store does not
        know, because a retry cannot help.
    """
    try:
        yield
    except StorageError as error:
        used = f"connection {conn_id!r}" if conn_id else "the credentials of this machine"
        said = f"{argument}: {str(error).rstrip('.')}.{_destination(conn_id, storage, uri)}"
        if _NO_BUCKET in str(error):
            hint = f"Check `{argument}`, and the endpoint of {used}"
            raise ConfigurationError(f"{said} {hint}") from error
        if _UNKNOWN_KEY.search(str(error)):
            raise ConfigurationError(f"{said} Correct the key of {used}") from error
        hint = f"This request used {used}: check its permissions and its endpoint"
        raise type(error)(f"{said} {hint}") from error


def _destination(conn_id: str | None, storage: ObjectStorage, uri: str) -> str:
    """A sentence that says where requests went; empty where the URI says it.

    An endpoint with a password in it is refused before any request.
    """
    scheme = normalise_uri(uri).partition("://")[0]
    if scheme == "file":
        return ""
    endpoint = configured_endpoint(scheme, storage.config)
    if endpoint:
        return f" The request went to {endpoint}."
    if scheme not in _CLOUDS:
        return ""
    went = f" The request went to {_CLOUDS[scheme]}, because no endpoint is set"
    if scheme != "s3" or conn_id is None:
        return f"{went}."
    return f"{went}: the endpoint of another store is endpoint_url in the connection's extra."


def storage_config(conn_id: str | None, uri: str, *, connection: Any = None) -> dict[str, str]:
    """Return the configuration, including secrets, with which ``ObjectStorage`` can access ``uri``.

    See :class:`whisper_spark.storage.objects.ObjectStorage`. Every secret is masked in Airflow's logs.

    :param conn_id: a connection of type ``aws``, ``google_cloud_platform``, ``wasb``, ``adls`` or
        ``azure_data_lake``; ``None``: ambient credentials, and the result is empty.
    :param connection: the connection, if the caller already has it; ``None``: look it up.
    :raises InvalidConnectionError: if the connection does not exist, its type does not match the URI, or it
        requires a provider that is not installed.
    :raises ValueError: if the URI is not supported.
    """
    scheme = normalise_uri(uri).partition("://")[0]
    if conn_id is None or scheme == "file":
        return {}
    connection = connection or _connection(conn_id, scheme)
    kind = connection.conn_type or ""
    if kind not in _TYPES_OF_SCHEME[scheme]:
        wanted = " or ".join(repr(t) for t in _TYPES_OF_SCHEME[scheme])
        raise InvalidConnectionError(
            f"connection {conn_id!r} is of type {kind!r}, but {scheme}:// needs one of type {wanted}"
            f"{_became_generic(conn_id, scheme) if kind == 'generic' else ''}"
        )
    if problem := extra_problem(connection):
        raise InvalidConnectionError(problem)
    config = _CONFIG_OF_TYPE[kind](conn_id, connection, _extra(connection, kind))
    config = {key: value for key, value in config.items() if value}
    _mask(config)
    _check(conn_id, config)
    return config


def _check(conn_id: str, config: Mapping[str, str]) -> None:
    """Reject values that would crash the store's client. The messages contain no secrets."""
    for key, value in config.items():
        if key.endswith("_endpoint"):
            try:
                check_endpoint(value)
            except StorageError as error:
                raise InvalidConnectionError(f"connection {conn_id!r}: {error}") from None
        elif key not in _TEXTS and re.search(r"[\x00-\x1f\x7f]", str(value)):
            raise InvalidConnectionError(
                f"connection {conn_id!r}: what becomes {key} holds a line break or another control character"
            )


def _connection(conn_id: str, scheme: str) -> Connection:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        kind = _TYPES_OF_SCHEME[scheme][0]
        raise InvalidConnectionError(
            f"there is no connection {conn_id!r}. Create one with `{_add_command(conn_id, kind)}`, in the UI "
            f"under Admin > Connections or, as the same JSON, in the environment as "
            f"AIRFLOW_CONN_{conn_id.upper()}; or leave the argument out to use the credentials of the machine"
        ) from None


def _add_command(conn_id: str, kind: str) -> str:
    """The command that creates a connection.

    With ``--conn-json``, because ``--conn-type`` becomes ``generic`` where the provider of the type is not
    installed.
    """
    return f"airflow connections add {conn_id} --conn-json '{json.dumps(_EXAMPLES[kind])}'"


def _became_generic(conn_id: str, scheme: str) -> str:
    kind = _TYPES_OF_SCHEME[scheme][0]
    return (
        f". `airflow connections add --conn-type {kind}` makes a generic one where {_PROVIDERS[kind]} is not "
        f"installed. Delete it and use `{_add_command(conn_id, kind)}`"
    )


def _extra(connection: Connection, kind: str) -> dict[str, Any]:
    """The non-empty extras, without the prefix that old connection forms added."""
    prefix = f"extra__{kind}__"
    extra: Mapping[str, Any] = connection.extra_dejson
    return {key.removeprefix(prefix): value for key, value in extra.items() if value not in (None, "")}


def _aws(conn_id: str, connection: Connection, extra: dict[str, Any]) -> dict[str, Any]:
    # Names and order of precedence as in the amazon provider's AwsConnectionWrapper.
    service = (extra.get("service_config") or {}).get("s3") or {}
    botocore = extra.get("config_kwargs") or {}
    config = {
        "aws_endpoint": service.get("endpoint_url") or extra.get("endpoint_url"),
        "aws_region": extra.get("region_name"),
        **_tls(conn_id, extra),
    }
    if (botocore.get("s3") or {}).get("addressing_style") == "virtual":
        config["aws_virtual_hosted_style_request"] = "true"
    if botocore.get("signature_version") == "unsigned":
        return config | {"aws_skip_signature": "true"}
    if any(extra.get(key) for key in ("role_arn", "profile_name", "session_kwargs", "s3_config_file")):
        return config | _aws_by_provider(conn_id)
    key, secret = connection.login, connection.password
    if not (key and secret):
        key, secret = extra.get("aws_access_key_id"), extra.get("aws_secret_access_key")
    if key and secret:
        config |= {"aws_access_key_id": key, "aws_secret_access_key": secret}
        config["aws_session_token"] = extra.get("aws_session_token")
    return config


def _aws_by_provider(conn_id: str) -> dict[str, Any]:
    try:
        from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook
    except ImportError:
        raise InvalidConnectionError(
            f"connection {conn_id!r} asks for a role or a profile, which the Amazon provider resolves: "
            "install airflow-provider-whisper[amazon]"
        ) from None
    hook = AwsBaseHook(aws_conn_id=conn_id, client_type="s3")
    try:
        credentials = hook.get_credentials()
    # botocore raises its own errors, and the hook AttributeError for a profile without credentials.
    except Exception as error:
        raise InvalidConnectionError(
            f"no AWS credentials could be had through connection {conn_id!r}: {error}"
        ) from error
    return {
        "aws_access_key_id": credentials.access_key,
        "aws_secret_access_key": credentials.secret_key,
        "aws_session_token": credentials.token,
    } | ({"aws_region": hook.region_name} if hook.region_name else {})


def _tls(conn_id: str, extra: dict[str, Any]) -> dict[str, Any]:
    verify = extra.get("verify", True)
    if verify is False or str(verify).lower() == "false":
        return {"allow_invalid_certificates": "true"}
    if verify is True or str(verify).lower() == "true":
        return {}
    return {"root_certificate": _read(conn_id, "verify", str(verify))}


def _google(conn_id: str, connection: Connection, extra: dict[str, Any]) -> dict[str, Any]:
    for name in ("key_secret_name", "impersonation_chain", "idp_issuer_url"):
        if name in extra:
            raise InvalidConnectionError(
                f"connection {conn_id!r} uses {name}, which is not supported: give keyfile_dict or key_path, "
                "or leave all of them out to use the credentials of the machine"
            )
    if extra.get("is_anonymous"):
        return {"google_skip_signature": "true"}
    key = extra.get("keyfile_dict") or extra.get("credential_config_file")
    if isinstance(key, dict):
        key = json.dumps(key)
    if not key and "key_path" in extra:
        key = extra["key_path"]
    if key and not key.lstrip().startswith("{"):
        # Pass the file's content instead of its name, because executors may not have the file.
        key = _read(conn_id, "key_path", key)
    return {"google_service_account_key": key}


def _azure(conn_id: str, connection: Connection, extra: dict[str, Any]) -> dict[str, Any]:
    # As in the microsoft-azure provider's hooks: a connection string takes precedence. With a tenant, login
    # and password belong to an app registration and the host names the account. Without a tenant, login and
    # password are account name and key.
    if "connection_string" in extra:
        return _azure_connection_string(conn_id, extra["connection_string"])
    host = (connection.host or "").partition("://")[2] or connection.host or ""
    account = extra.get("account_name") or host.partition(".")[0] or None
    # Any host except an account in the public cloud: another cloud, an emulator, a private endpoint.
    special = host and "." in host and not host.rstrip("/").endswith(".core.windows.net")
    # As in the provider, a host without a scheme means https.
    address = connection.host if connection.host and "://" in connection.host else f"https://{host}"
    config = {"azure_storage_endpoint": address if special else None}
    tenant = extra.get("tenant_id") or extra.get("tenant")
    if tenant:
        return config | {
            "azure_storage_account_name": account,
            "azure_storage_tenant_id": tenant,
            "azure_storage_client_id": connection.login,
            "azure_storage_client_secret": connection.password,
        }
    config["azure_storage_account_name"] = connection.login or account
    token = extra.get("sas_token")
    if token:
        return config | {"azure_storage_sas_key": str(token).rpartition("?")[2]}
    key = extra.get("shared_access_key") or connection.password or extra.get("account_key")
    if not key and "managed_identity_client_id" in extra:
        config["azure_storage_client_id"] = extra["managed_identity_client_id"]
    return config | {"azure_storage_account_key": key}


def _azure_connection_string(conn_id: str, text: str) -> dict[str, Any]:
    parts = {k.strip().lower(): v for k, _, v in (part.partition("=") for part in text.split(";"))}
    account, endpoint = parts.get("accountname"), parts.get("blobendpoint")
    suffix = parts.get("endpointsuffix", "core.windows.net")
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        return {"azure_storage_use_emulator": "true"}
    if not account and endpoint:
        account = endpoint.partition("://")[2].partition(".")[0]
    if not account:
        raise InvalidConnectionError(
            f"connection_string of connection {conn_id!r} names no account: it lacks AccountName="
        )
    if not endpoint and suffix != "core.windows.net":
        endpoint = f"https://{account}.blob.{suffix}"
    return {
        "azure_storage_account_name": account,
        "azure_storage_account_key": parts.get("accountkey"),
        "azure_storage_sas_key": parts.get("sharedaccesssignature"),
        "azure_storage_endpoint": endpoint,
    }


def _read(conn_id: str, name: str, path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConnectionError(
            f"{name} of connection {conn_id!r} cannot be read: {path}: {error}"
        ) from None


def _mask(config: Mapping[str, str]) -> None:
    from airflow.sdk.log import mask_secret

    for key, value in config.items():
        if key.endswith(_SECRET_KEYS) or "secret" in key:
            mask_secret(value)
    service_account = config.get("google_service_account_key")
    if service_account:
        # Mask the private key inside the JSON, because logs may show it without the rest.
        try:
            mask_secret(json.loads(service_account).get("private_key"))
        except (json.JSONDecodeError, AttributeError):
            return


_CONFIG_OF_TYPE: dict[str, Callable[[str, Any, dict[str, Any]], dict[str, Any]]] = {
    "aws": _aws,
    "google_cloud_platform": _google,
    "wasb": _azure,
    "adls": _azure,
    "azure_data_lake": _azure,
}
