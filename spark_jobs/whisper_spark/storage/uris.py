"""One spelling for each place: URIs of folders and objects, in object stores and on local disks.

URIs are raw: ``s3://bucket/`` plus the key exactly as the store has it, ``file://`` plus the absolute
path. Nothing in them is percent-encoded, so ``a%20b.wav`` and ``a b.wav`` are two different files.
"""

from __future__ import annotations

import os
import re

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfss", "abfss": "abfss"}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)

# What may stand between "://" and the next slash. Anything else could end up as a host, a port, a user or
# a query in the address of a request.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")

# Names of which the client refuses to make an address, because HTTP or the store could read them differently.
_UNPLAIN = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}(/|$)")


def join_uri(base: str, *parts: str) -> str:
    """``base`` and ``parts`` joined by exactly one slash each."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def normalise_uri(uri: str) -> str:
    """One spelling for each object: paths become ``file://``, ``s3a://`` becomes ``s3://``, ``gcs://`` ``gs://``.

    ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY`` becomes ``abfss://`` and keeps its account;
    ``abfs://CONTAINER/KEY`` becomes ``az://CONTAINER/KEY``, whose account comes from the configuration.
    A slash at the end is kept. For folders there is :func:`folder_uri`, which is stricter.

    :raises ValueError: for a scheme that is not supported, or a URI without a bucket.
    """
    if "://" not in uri or uri.startswith(("/", "./", "../", "~")):
        scheme, colon, path = uri.partition(":")
        if not colon or "/" in scheme or scheme.lower() not in (*_SCHEMES, "file"):
            return _local_uri(uri)
        if scheme.lower() == "file" and path.startswith("/"):
            return _local_uri(path)
        raise ValueError(f"{uri!r} lacks a slash: write {scheme.lower()}://{path.lstrip('/')}")
    scheme, bucket, key = split_uri(uri)
    if scheme == "file":
        return _local_uri(f"/{key}")
    if scheme == "abfss" and "@" not in bucket:
        scheme = "az"
    return f"{scheme}://{bucket}/{key}"


def folder_uri(uri: str) -> str:
    """One spelling for each folder: as :func:`normalise_uri`, with exactly one slash at the end.

    For sources, staging and models. ``s3://bucket//raw/`` and ``s3://bucket/raw//`` are refused: in an object
    store they are other places than ``s3://bucket/raw/``, and hardly ever meant.

    :raises ValueError: also for a path with an empty, ``.`` or ``..`` component or a control character.
    """
    normal = normalise_uri(uri)
    scheme, bucket, key = split_uri(normal)
    path = key.removesuffix("/")
    if scheme != "file" and key and not is_plain(path):
        tidy = "/".join(part for part in path.split("/") if part not in ("", ".", ".."))
        raise ValueError(
            f"{uri!r} has an empty, '.' or '..' folder or a control character in its path, and folders of an "
            f"object store are taken literally. Did you mean {f'{scheme}://{bucket}/{tidy}/'!r}?"
        )
    return f"{scheme}://{bucket}/{path}/" if path else f"{scheme}://{bucket}/"


def split_uri(uri: str) -> tuple[str, str, str]:
    """Scheme, bucket and key.

    The bucket of ``abfss`` is ``CONTAINER@HOST``. That of ``file`` is empty, and its key lacks the slash
    at the start.

    :raises ValueError: for a scheme that is not supported, no bucket, or one that cannot be a bucket's name.
    """
    match = _URI.fullmatch(uri)
    scheme = match.group(1).lower() if match else ""
    if match is None or (scheme != "file" and scheme not in _SCHEMES):
        known = "s3://, gs://, az://, abfss:// or file://"
        raise ValueError(f"{uri!r} is not supported: write a local path, or a URI that starts with {known}")
    bucket, key = match.group(2), match.group(3)
    if scheme == "file":
        if bucket not in ("", "localhost"):
            raise ValueError(
                f"{uri!r} names the host {bucket!r}: a local path is written file:///{bucket}/{key}"
            )
        return "file", "", key
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket: write {scheme}://BUCKET/PATH")
    if not _BUCKET.fullmatch(bucket) or ("@" in bucket and _SCHEMES[scheme] != "abfss"):
        raise ValueError(f"{uri!r}: {bucket!r} cannot be the name of a bucket: write {scheme}://BUCKET/PATH")
    return _SCHEMES[scheme], bucket, key


def is_plain(key: str) -> bool:
    """Whether all clients make the same address of a key: no control characters, ``//``, ``.`` nor ``..``."""
    # Almost all keys of a listing pass this, in a quarter of the time.
    if (
        key
        and key.isprintable()
        and "//" not in key
        and "/." not in key
        and key[0] not in "./"
        and key[-1] != "/"
    ):
        return True
    return _UNPLAIN.search(key) is None


def _local_uri(path: str) -> str:
    if "\0" in path:
        raise ValueError(f"{path!r} holds a zero byte, which no path can")
    absolute = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path has no abspath
    if os.name == "nt":
        absolute = "/" + absolute.replace("\\", "/")
    # A path may start with two slashes, which abspath keeps and Linux does not tell from one.
    absolute = "/" + absolute.lstrip("/")
    return "file://" + absolute + ("/" if path.endswith("/") and absolute != "/" else "")
