"""An object is replaced only by a writer that knows its current version."""

from __future__ import annotations

import http.server
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import S3Server
from web_server import web_server

from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage

S3 = pytest.param("s3", marks=pytest.mark.server)
WITHOUT_CONDITIONS = pytest.param("s3 without conditional writes", marks=pytest.mark.server)


@pytest.fixture(params=["local", S3, WITHOUT_CONDITIONS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStorage, str]:
    """A storage, and the URI of an object that does not exist."""
    if request.param == "local":
        return ObjectStorage(), f"file://{tmp_path}/objects/index"
    server: S3Server = request.getfixturevalue("s3")
    config = dict(server.config)
    if request.param != "s3":
        config["aws_conditional_put"] = "disabled"
    return ObjectStorage(config), f"s3://{server.bucket('objects')}/folder/index"


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_object_is_replaced_only_by_who_knows_its_version(
    place: tuple[ObjectStorage, str], tmp_path: Path
) -> None:
    storage, uri = place
    first = storage.replace(written(tmp_path / "new", "first"), uri, None)
    assert first is not None
    assert storage.replace(written(tmp_path / "new", "late"), uri, None) is None
    file, version = storage.open_version(uri)
    with file:
        assert file.read() == b"first"
    assert version == first
    second = storage.replace(written(tmp_path / "new", "second"), uri, version)
    assert second not in (None, first)
    assert storage.replace(written(tmp_path / "new", "late"), uri, version) is None
    assert storage.read_bytes(uri) == b"second"
    storage.delete([uri])
    assert storage.replace(written(tmp_path / "new", "late"), uri, second) is None
    with pytest.raises(ObjectNotFound):
        storage.open_version(uri)
    assert storage.replace(written(tmp_path / "new", "third"), uri, None) is not None
    assert [
        row for batch in storage.list(uri.rpartition("/")[0]) for row in batch["audio_uri"].to_pylist()
    ] == [uri]


@pytest.mark.parametrize("place", ["local", S3], indirect=True)
def test_of_many_writers_that_know_the_version_one_wins(
    place: tuple[ObjectStorage, str], tmp_path: Path
) -> None:
    storage, uri = place
    version = storage.replace(written(tmp_path / "new", "first"), uri, None)

    def replaced(number: int) -> bool:
        path = written(tmp_path / f"new-{number}", f"writer {number}")
        return ObjectStorage(storage.config).replace(path, uri, version) is not None

    with ThreadPoolExecutor(8) as pool:
        won = [*pool.map(replaced, range(8))]
    assert won.count(True) == 1
    assert storage.read_bytes(uri).decode() == f"writer {won.index(True)}"


@pytest.mark.slow
def test_store_that_refuses_conditional_writes_gets_unconditional_ones(tmp_path: Path) -> None:
    conditions: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            conditions.append(self.headers.get("If-Match"))
            self.answer(501 if conditions[-1] else 200, "2")

        def do_HEAD(self) -> None:
            self.answer(200, "1")

        def answer(self, status: int, etag: str) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Last-Modified", "Wed, 23 Oct 2024 19:19:28 GMT")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with web_server(Handler) as port:
        storage = ObjectStorage(
            {
                "aws_endpoint": f"http://127.0.0.1:{port}",
                "aws_access_key_id": "key",
                "aws_secret_access_key": "secret",
                "aws_region": "us-east-1",
            }
        )
        path = written(tmp_path / "new", "new")
        assert storage.replace(path, "s3://bucket/index", {"e_tag": '"1"'}) == {"e_tag": '"2"'}
        assert (conditions[0], conditions[-1]) == ('"1"', None)
        asked = len(conditions)
        assert storage.replace(path, "s3://bucket/index", {"e_tag": '"another"'}) is None
        assert len(conditions) == asked
