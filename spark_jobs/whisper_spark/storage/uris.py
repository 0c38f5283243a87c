"""Normalises URIs of folders and objects, in object stores and on local disks.

A URI is ``s3://bucket/`` plus the exact key of the object, or ``file://`` plus an absolute path. Nothing in
it is percent-encoded, so ``a%20b.wav`` and ``a b.wav`` are two different files.
"""

from __future__ import annotations

import os
import re

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfss", "abfss": "abfss"}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)

# Valid text between "://" and the next slash. Other characters could become a host, a port, a user or a query
# in the URL of a request.
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")

# Keys that the client refuses, because HTTP or the store could interpret them differently.
_UNPLAIN = re.compile(r"[\x00-\x1f\x7f]|(^|/)\.{0,2}(/|$)")


def join_uri(base: str, *parts: str) -> str:
    """``base`` and ``parts`` joined by exactly one slash each."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def normalise_uri(uri: str) -> str:
    """Normalise the URI of an object: a path becomes ``file://``, ``s3a://`` ``s3://``, ``gcs://`` ``gs://``.

    ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY`` becomes ``abfss://`` and keeps its account;
    ``abfs://CONTAINER/KEY`` becomes ``az://CONTAINER/KEY``, whose account comes from the configuration.
    A slash at the end is kept. Use :func:`folder_uri`, which is stricter, for folders.

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
    """Normalise the URI of a folder: as :func:`normalise_uri`, with exactly one slash at the end.

    For sources, staging and models. ``s3://bucket//raw/`` and ``s3://bucket/raw//`` are refused: an object
    store treats them as other folders than ``s3://bucket/raw/``, which is rarely intended.

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
    """Split a URI into scheme, bucket and key.

    The bucket of ``abfss`` is ``CONTAINER@HOST``. The bucket of ``file`` is empty, and the key is the path
    without its first slash.

    :raises ValueError: for a scheme that is not supported, and for a missing or invalid bucket name.
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
    """Whether all clients address a key alike: no control characters, no empty, ``.`` or ``..`` part."""
    # A fast path for almost all keys of a listing, which takes a quarter of the time of the expression.
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
    # abspath keeps two slashes at the start of a path, which mean the same as one on Linux.
    absolute = "/" + absolute.lstrip("/")
    return "file://" + absolute + ("/" if path.endswith("/") and absolute != "/" else "")
