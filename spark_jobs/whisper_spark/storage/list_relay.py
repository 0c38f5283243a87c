"""Lists buckets of Google Cloud Storage and Azure that contain names which obstore refuses.

``calls//a.wav`` is a valid name in both stores, but obstore fails on each page of a listing that contains
such a name. Neither store lets obstore sign a listing that somebody else requests, as S3 does (see
:mod:`whisper_spark.storage.raw_keys`). So for such a bucket obstore sends its listings to a server in this
process, which forwards them to the store and takes these names out of the answers. obstore still finds the
credentials and signs the requests: a signature covers neither the host nor the scheme of the URL.

The server listens on the loopback interface only. It has no credentials of its own and forwards requests to
one endpoint, which is that of the configuration or of the cloud.
"""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus, urlsplit
from xml.etree import ElementTree

from whisper_spark.storage.clients import endpoint_of, store_at
from whisper_spark.storage.http import TIMEOUT_SECONDS, opener, without_proxy_for
from whisper_spark.storage.uris import is_plain

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_HOST = "127.0.0.1"

# Headers that belong to one connection (RFC 9110, section 7.6.1), or that the client sets for each.
_OWN_HEADERS = {"host", "connection", "accept-encoding", "content-length", "transfer-encoding"}

# Elements of a listing for an object or a folder, with the child that contains its name.
_NAMES = {"Contents": "Key", "CommonPrefixes": "Prefix", "Blob": "Name", "BlobPrefix": "Name"}


@contextmanager
def relayed_store(
    scheme: str, bucket: str, config: Mapping[str, str], left_out: Callable[[str], None]
) -> Iterator[ObjectStore]:
    """A client whose listings leave out names that obstore refuses. Only for listings.

    :param scheme: ``gs``, ``az`` or ``abfss``.
    :param left_out: called with the key of each object that is left out, from another thread.
    :raises StorageError: for an invalid configuration, as
        :func:`~whisper_spark.storage.clients.object_store`.
    """
    parts = urlsplit(endpoint_of(scheme, bucket, config))
    server = _Relay(f"{parts.scheme}://{parts.netloc}", config, left_out)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        address = f"http://{_HOST}:{server.server_port}{parts.path}"
        yield store_at(scheme, bucket, {**config, **without_proxy_for(_HOST, config)}, address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Relay(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, root: str, config: Mapping[str, str], left_out: Callable[[str], None]) -> None:
        self.root, self.left_out = root, left_out
        self.opener = opener(config)
        super().__init__((_HOST, 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Relay

    def do_GET(self) -> None:
        """Forward a listing."""
        path = "/" + self.path.lstrip("/")
        try:
            status, body = 200, self._listing(path)
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except (OSError, HTTPException):
            # obstore tries again.
            status, body = 502, b""
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _listing(self, path: str) -> bytes:
        body = self._fetched(path)
        try:
            return _without_refused_names(body, self.server.left_out)
        except ElementTree.ParseError:
            if "list-type=2" not in path:
                return body
        # In Google Cloud Storage, names may contain characters that XML cannot, unless they are encoded.
        body = self._fetched(f"{path}&encoding-type=url")
        try:
            return _without_refused_names(body, self.server.left_out)
        except ElementTree.ParseError:
            # obstore says what is wrong with it.
            return body

    def _fetched(self, path: str) -> bytes:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
        # The root names the scheme: that of the store's endpoint, which is checked.
        request = urllib.request.Request(self.server.root + path, headers=headers)  # noqa: S310
        with self.server.opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            body: bytes = response.read()
            return body

    def log_message(self, *_: object) -> None:
        """Do not log: a URL may contain a signature."""


def _without_refused_names(body: bytes, left_out: Callable[[str], None]) -> bytes:
    """A page of a listing without the names that obstore refuses.

    :raises ElementTree.ParseError: when the page is not XML.
    """
    # The XML comes from the store that also holds the audio, so it is trusted.
    page = ElementTree.fromstring(body)  # noqa: S314
    for element in page.iter():
        # ElementTree would write other prefixes for the namespaces than it has read.
        element.tag = element.tag.rpartition("}")[2]
    encoded = page.findtext("EncodingType") == "url"
    # It is not documented whether "+" is a space. Where spaces are "%20", it is not.
    decoded = unquote if b"%20" in body else unquote_plus
    for parent in list(page.iter()):
        for item in [child for child in parent if child.tag in _NAMES]:
            name = item.find(_NAMES[item.tag])
            if name is None:
                continue
            key = name.text = decoded(name.text or "") if encoded else name.text or ""
            if not _is_listed(item, name, key):
                parent.remove(item)
                if not key.endswith("/") or _size(item):
                    left_out(key)
    return ElementTree.tostring(page, encoding="unicode").encode()


def _is_listed(item: ElementTree.Element, name: ElementTree.Element, key: str) -> bool:
    """Whether obstore lists a name, and lists it unaltered."""
    # Azure percent-encodes names that XML cannot contain. obstore removes a slash at the end, so only folders
    # and folder markers, which are empty, may have one.
    return (
        is_plain(key.removesuffix("/"))
        and name.get("Encoded") != "true"
        and not (key.endswith("/") and _size(item))
    )


def _size(item: ElementTree.Element) -> int:
    return int(item.findtext("Size") or item.findtext("Properties/Content-Length") or 0)
