r"""Lists and reads S3 objects whose keys obstore refuses or alters: control characters, empty components.

``calls//a.wav`` and ``two\nlines.wav`` are valid S3 keys, but obstore fails on a listing that contains them.
Listings here request percent-encoded names (``encoding-type=url``).

obstore still signs the requests and reads the objects. It appends the path to the endpoint of a
virtual-hosted bucket, and S3 ignores the query parameter ``x-id``. So with an endpoint that ends in
``?x-id=``, the path becomes the value of this parameter, and every request goes to the URL before it.
"""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree

from whisper_spark.storage.backend import plain_etag
from whisper_spark.storage.clients import s3_store_at
from whisper_spark.storage.errors import StorageError, error_of_status
from whisper_spark.storage.http import TIMEOUT_SECONDS, opener

if TYPE_CHECKING:
    from obstore.store import S3Store

ANY_PATH = "object"
"""The path to pass to clients of :func:`client_of`, which ignore it."""

_SIGNED_FOR = timedelta(minutes=5)
_TRIES = 4


@dataclass(frozen=True, slots=True)
class RawObject:
    """One object of a listing. ``size`` is in bytes, ``last_modified`` in UTC."""

    key: str
    size: int
    etag: str | None
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class RawPage:
    """One page of a listing: objects in the order of the store, and whether there are more pages."""

    objects: Sequence[RawObject]
    more: bool


def can_be_read(key: str) -> bool:
    """Whether an object with this key can be read.

    ``.`` and ``..`` components cannot be addressed, because HTTP clients resolve them in URLs.
    """
    return not key.endswith("/") and not {".", ".."} & set(key.split("/"))


def client_of(bucket: str, config: Mapping[str, str], key: str) -> S3Store:
    """A client that accesses one object, whatever path it is given."""
    return s3_store_at(bucket, config, f"{_bucket_url(bucket, config)}/{quote(key)}?x-id=")


def list_page(bucket: str, config: Mapping[str, str], prefix: str, start_after: str | None) -> RawPage:
    """Up to a thousand objects whose keys begin with ``prefix`` and come after ``start_after``.

    :raises StorageError: when the store refuses the request or does not answer.
    """
    page = next(_pages(bucket, config, {"prefix": prefix, "start-after": start_after or ""}))
    objects = [
        RawObject(
            _name(page, item, "Key"),
            int(item.findtext("{*}Size") or 0),
            plain_etag(item.findtext("{*}ETag")),
            datetime.fromisoformat(item.findtext("{*}LastModified") or ""),
        )
        for item in page.iterfind("{*}Contents")
    ]
    return RawPage(objects, page.findtext("{*}IsTruncated") == "true")


def list_folders(bucket: str, config: Mapping[str, str], prefix: str) -> list[str]:
    """Names of the direct subfolders of a prefix.

    :raises StorageError: when the store refuses the request or does not answer.
    """
    return [
        _name(page, item, "Prefix")[len(prefix) :].removesuffix("/")
        for page in _pages(bucket, config, {"prefix": prefix, "delimiter": "/"})
        for item in page.iterfind("{*}CommonPrefixes")
    ]


def _name(page: ElementTree.Element, item: ElementTree.Element, tag: str) -> str:
    text = item.findtext("{*}" + tag) or ""
    return unquote_plus(text) if page.findtext("{*}EncodingType") == "url" else text


def _pages(bucket: str, config: Mapping[str, str], query: dict[str, str]) -> Iterator[ElementTree.Element]:
    url = _bucket_url(bucket, config)
    query = {"list-type": "2", "encoding-type": "url", **{k: v for k, v in query.items() if v}}
    while True:
        # Sign each page separately, because a signature or credential may expire during a long listing.
        address = _signed(s3_store_at(bucket, config, f"{url}?{urlencode(query, quote_via=quote)}&x-id="))
        page = _fetch(f"s3://{bucket}/{query.get('prefix', '')}", address, config)
        yield page
        token = page.findtext("{*}NextContinuationToken")
        if not token:
            return
        query["continuation-token"] = token


def _bucket_url(bucket: str, config: Mapping[str, str]) -> str:
    return _signed(s3_store_at(bucket, config, None)).partition("?")[0].removesuffix("/" + ANY_PATH)


def _signed(store: S3Store) -> str:
    import obstore

    return obstore.sign(store, "GET", ANY_PATH, _SIGNED_FOR)


def _fetch(uri: str, address: str, config: Mapping[str, str]) -> ElementTree.Element:
    client = opener(config)
    for attempt in range(1, _TRIES + 1):
        try:
            with client.open(address, timeout=TIMEOUT_SECONDS) as response:
                # The XML comes from the store that also holds the audio, so it is trusted.
                return ElementTree.fromstring(response.read())  # noqa: S314
        except ElementTree.ParseError as error:
            raise StorageError(f"cannot list {uri}: the store's answer is not XML: {error}") from None
        except urllib.error.HTTPError as error:
            passes = error.code >= 500 or error.code == HTTPStatus.TOO_MANY_REQUESTS
            if not passes or attempt == _TRIES:
                raise error_of_status(uri, error.code, error.read().decode(errors="replace")) from None
        except (OSError, HTTPException) as error:
            if attempt == _TRIES:
                raise StorageError(f"cannot list {uri}: {type(error).__name__}") from None
        # By hand, because executors need not have tenacity.
        time.sleep(2**attempt / 4)
    raise AssertionError("unreachable")
