r"""An S3 server that takes keys such as ``//``, ``..`` and ``\x1b`` literally, as Amazon S3 does.

SeaweedFS does not. The server also stands in for Google Cloud Storage, for which there is no server with its
XML API: listings have the same form there, as https://cloud.google.com/storage/docs/xml-api/get-bucket-list
describes.
"""

from __future__ import annotations

import hashlib
import http.server
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote_plus, unquote, urlsplit

from web_server import web_server

_MODIFIED = "Wed, 23 Oct 2024 19:19:28 GMT"


@dataclass
class LiteralS3:
    """A running server with one bucket, ``bucket``."""

    keys: dict[str, bytes]
    page: int = 1000
    forbidden: tuple[str, ...] = ()
    """Prefixes whose listing is forbidden."""
    failures: list[int] = field(default_factory=list)
    """Status codes of the next listings. 200 succeeds, as do all later listings."""
    port: int = 0
    requests: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    """The header of this name of each request."""

    @property
    def config(self) -> dict[str, str]:
        """Configuration for ``ObjectStorage(config)``, with obstore's keys."""
        return {
            "aws_endpoint": f"http://127.0.0.1:{self.port}",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "aws_region": "us-east-1",
        }

    @property
    def google_config(self) -> dict[str, str]:
        """Configuration for ``ObjectStorage(config)`` that takes the server for Google Cloud Storage."""
        return {"google_base_url": f"http://127.0.0.1:{self.port}", "google_skip_signature": "true"}

    def listing(self, query: dict[str, str]) -> str:
        """Return the response to ListObjectsV2, with keys in byte order."""
        url = query.get("encoding-type") == "url"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        token = query.get("continuation-token")
        start = bytes.fromhex(token).decode() if token else query.get("start-after", "")
        entries: list[str] = []
        seen: set[str] = set()
        for key in sorted(self.keys, key=str.encode):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            folder = (
                prefix + rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else ""
            )
            if folder in seen or (folder or key).encode() <= start.encode():
                continue
            seen.add(folder or key)
            if folder:
                entries.append(f"<CommonPrefixes><Prefix>{_text(folder, url)}</Prefix></CommonPrefixes>")
            else:
                entries.append(_contents(key, self.keys[key], url))
            if len(entries) == self.page:
                token = (folder or key).encode().hex()
                entries.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
                break
        encoding = "<EncodingType>url</EncodingType>" if url else ""
        truncated = str(len(entries) > self.page).lower()
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult '
            f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>{encoding}'
            f"<IsTruncated>{truncated}</IsTruncated>{''.join(entries)}</ListBucketResult>"
        )


def _contents(key: str, data: bytes, url: bool) -> str:
    return (
        f"<Contents><Key>{_text(key, url)}</Key><LastModified>2024-10-23T19:19:28.000Z</LastModified>"
        f"<ETag>&quot;{_etag(data)}&quot;</ETag><Size>{len(data)}</Size></Contents>"
    )


def _text(key: str, url: bool) -> str:
    if url:
        return quote_plus(key, safe="/")
    return "".join(f"&#x{ord(c):x};" if c in "<>&" or ord(c) < 32 else c for c in key)


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@contextmanager
def literal_s3(keys: dict[str, bytes], page: int = 1000) -> Iterator[LiteralS3]:
    """Run the server with these objects. Listings have pages of this size."""
    state = LiteralS3(keys, page)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            state.requests.append(self.path)
            state.hosts.append(self.headers["Host"])
            state.authorizations.append(self.headers["Authorization"])
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            key = unquote(url.path.removeprefix("/bucket").removeprefix("/"))
            if "list-type" in query and not key:
                status = state.failures.pop(0) if state.failures else 200
                status = 403 if query.get("prefix", "") in state.forbidden else status
                denied = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
                return self._answer(status, (state.listing(query) if status == 200 else denied).encode())
            if key not in state.keys:
                return self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>")
            return self._answer(200, state.keys[key])

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{_etag(body)}"')
            self.send_header("Last-Modified", _MODIFIED)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with web_server(Handler) as state.port:
        yield state
