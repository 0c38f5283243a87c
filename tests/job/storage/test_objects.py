"""Objects on local disks and on a real S3 server behave the same way."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from literal_s3 import literal_s3
from servers import S3Server
from web_server import web_server

from whisper_spark.storage.objects import (
    MEMORY_SPOOL_BYTES,
    ObjectChanged,
    ObjectForbidden,
    ObjectNotFound,
    ObjectStorage,
    StorageError,
    folder_uri,
    join_uri,
    normalise_uri,
)

ODD_NAMES = [
    "plain.wav",
    "with space.wav",
    " leading space.wav",
    "trailing space ",
    "no extension",
    "hash#1.wav",
    "percent%.wav",
    "encoded%20space.wav",
    "encoded%2Fslash.wav",
    "question?x=1&y=2.wav",
    "quotes'\".wav",
    "plus+and=equals.wav",
    "brackets[1]{2}(3)<4>.wav",
    "star*tilde~caret^pipe|tick`.wav",
    "colon: semicolon;.wav",
    "ends with colon:",
    "dt=2026-11-01/nested.wav",
    "zürich-вызов-通话.wav",
    "emoji-🎧.wav",
]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ObjectStorage, str]:
    """A storage and the URI of an empty folder in it."""
    if request.param == "local":
        return ObjectStorage(), f"file://{tmp_path}/objects"
    server: S3Server = request.getfixturevalue("s3")
    return ObjectStorage(server.config), f"s3://{server.bucket('objects')}/folder"


def listed(storage: ObjectStorage, uri: str, **kwargs: Any) -> dict[str, dict[str, Any]]:
    return {row["audio_uri"]: row for batch in storage.list(uri, **kwargs) for row in batch.to_pylist()}


# --- names ---------------------------------------------------------------------------------------------


def test_names_come_back_exactly_as_they_are(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    for name in ODD_NAMES:
        storage.write_bytes(f"{folder}/{name}", name.encode())
    objects = listed(storage, folder, chunk_size=7)
    assert set(objects) == {f"{folder}/{name}" for name in ODD_NAMES}
    for uri, row in objects.items():
        assert storage.open(uri, etag=row["audio_etag"]).read() == uri.removeprefix(f"{folder}/").encode()
        info = storage.info(uri)
        assert (info.uri, info.size, info.etag) == (uri, row["audio_bytes"], row["audio_etag"])
    storage.delete(objects)
    assert not storage.any_under(folder)


def test_keys_on_the_server_are_the_raw_ones(s3: S3Server) -> None:
    bucket = s3.bucket("raw")
    for name in ODD_NAMES:
        s3.client().put_object(Bucket=bucket, Key=f"in/{name}", Body=name.encode())
    storage = ObjectStorage(s3.config)
    assert set(listed(storage, f"s3://{bucket}/in/")) == {f"s3://{bucket}/in/{name}" for name in ODD_NAMES}
    storage.write_bytes(f"s3://{bucket}/out/a b#%20?.wav", b"x")
    keys = s3.client().list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]
    assert [k["Key"] for k in keys] == ["out/a b#%20?.wav"]


def test_local_name_with_a_newline_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.wav").write_bytes(b"audio")
    storage = ObjectStorage()
    (uri,) = listed(storage, str(tmp_path))
    assert storage.read_bytes(uri) == b"audio"


def test_names_with_control_characters_come_back_as_they_are(s3: S3Server) -> None:
    bucket = s3.bucket("control")
    names = [
        "a.wav",
        "del\x7f.wav",
        "esc\x1b[31m.wav",
        "sub-x.wav",
        "sub/b.wav",
        "t\tab/c.wav",
        "two\nlines.wav",
    ]
    for key in [*(f"in/{name}" for name in names), "in/folder/"]:
        s3.client().put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith("/") else key.encode())
    storage = ObjectStorage(s3.config)
    for chunk_size in (1, 3, 1000):
        objects = listed(storage, f"s3://{bucket}/in/", chunk_size=chunk_size)
        assert sorted(objects) == sorted(f"s3://{bucket}/in/{name}" for name in names)
    for uri, row in objects.items():
        assert storage.open(uri, etag=row["audio_etag"]).read().decode() == uri.removeprefix(
            f"s3://{bucket}/"
        )
        info = storage.info(uri)
        assert (info.size, info.etag) == (row["audio_bytes"], row["audio_etag"])
    assert listed(storage, f"s3://{bucket}/in/sub/").keys() == {f"s3://{bucket}/in/sub/b.wav"}
    assert sorted(storage.folders(f"s3://{bucket}/in/")) == ["folder", "sub", "t\tab"]


ODD_KEYS = [
    "",
    "/b",
    "a",
    "a//b",
    "a/./b",
    "a/../b",
    "a/..b",
    "a+b &%41",
    "é\x1b<",
    "z\ufffd",
    "z\r\n",
    "z\0",
    "~",
]


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_every_key_is_listed_or_reported_once(page: int) -> None:
    keys = {f"in/{key}": key.encode() for key in ODD_KEYS}
    with literal_s3(keys, page) as server:
        storage, unreadable = ObjectStorage(server.config), list[str]()
        objects = listed(storage, "s3://bucket/in/", chunk_size=page, unreadable=unreadable.append)
        assert sorted(unreadable) == ["s3://bucket/in/a/../b", "s3://bucket/in/a/./b"]
        readable = {f"s3://bucket/in/{key}" for key in ODD_KEYS if key} - {*unreadable}
        assert set(objects) == readable
        for uri in readable:
            assert storage.read_bytes(uri).decode() == uri.removeprefix("s3://bucket/in/")
        for uri in unreadable:
            with pytest.raises(StorageError, match="Rename"):
                storage.open(uri)
        assert storage.folders("s3://bucket/in/") == ["a"]


def test_many_objects_around_an_odd_one_come_once_each() -> None:
    names = [f"in/{i:04}" for i in range(2500)]
    with literal_s3(dict.fromkeys([*names, "in/1234//x", "in/2222\n"], b"x")) as server:
        batches = ObjectStorage(server.config).list("s3://bucket/in/", chunk_size=700)
        uris = [uri for batch in batches for uri in batch.column("audio_uri").to_pylist()]
        assert len(uris) == len(set(uris)) == 2502
        # Three pages, and one more for each odd name.
        assert len(server.requests) <= 5


def test_listing_of_odd_names_is_tried_again_and_says_what_is_refused() -> None:
    with literal_s3({"in/two\nlines": b"x"}) as server:
        storage = ObjectStorage(server.config)
        server.failures = [503]
        assert set(listed(storage, "s3://bucket/in/")) == {"s3://bucket/in/two\nlines"}
        server.failures = [200, 403]
        with pytest.raises(ObjectForbidden, match=r"s3://bucket/in/: AccessDenied"):
            listed(storage, "s3://bucket/in/")


def test_names_that_cannot_be_read_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (b"caf\xe9.wav", b"stra\xdfe"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).mkdir()
    (tmp_path / "ok.wav").write_bytes(b"x")
    assert set(listed(ObjectStorage(), str(tmp_path))) == {f"file://{tmp_path}/ok.wav"}
    assert f"2 objects under {tmp_path} have names that cannot be read" in caplog.text
    assert "caf\\udce9.wav" in caplog.text or "stra\\udcdfe" in caplog.text
    assert ObjectStorage().folders(str(tmp_path)) == []


def test_keys_that_no_store_addresses_are_neither_written_nor_deleted(s3: S3Server) -> None:
    bucket = s3.bucket("odd")
    storage = ObjectStorage(s3.config)
    storage.write_bytes(f"s3://{bucket}/a", b"x")
    for uri in (f"s3://{bucket}//a", f"s3://{bucket}/b/../a"):
        for action in (lambda uri: storage.write_bytes(uri, b"y"), lambda uri: storage.delete([uri])):
            with pytest.raises(StorageError, match="cannot be addressed"):
                action(uri)
    assert storage.read_bytes(f"s3://{bucket}/a") == b"x"


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/data/calls", "file:///data/calls"),
        ("/data/calls/", "file:///data/calls/"),
        ("/data//calls/../x", "file:///data/x"),
        ("file:/data/x", "file:///data/x"),
        ("FILE:///data/x", "file:///data/x"),
        ("//data/x", "file:///data/x"),
        ("file:////data/x", "file:///data/x"),
        ("/", "file:///"),
        ("file:///data/a%20b", "file:///data/a%20b"),
        ("file://localhost/data", "file:///data"),
        ("s3a://bucket/key/", "s3://bucket/key/"),
        ("S3://Bucket/Key", "s3://Bucket/Key"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/a%20b ?#", "s3://bucket/a%20b ?#"),
        ("gcs://bucket/key", "gs://bucket/key"),
        ("abfs://c@account.dfs.core.windows.net/k", "abfss://c@account.dfs.core.windows.net/k"),
        ("abfs://container/key", "az://container/key"),
    ],
)
def test_one_spelling_for_each_place(given: str, normal: str) -> None:
    assert normalise_uri(given) == normal
    assert normalise_uri(normal) == normal


def test_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise_uri("./calls/") == normalise_uri("calls/") == f"file://{tmp_path}/calls/"


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("ftp://host/x", "s3://"),
        ("s3:/bucket/x", "write s3://bucket/x"),
        ("s3:bucket/x", "write s3://bucket/x"),
        ("file:data/x", "write file://data/x"),
        ("s3:///key", "names no bucket"),
        ("file://data/x", "file:///data/x"),
        ("s3://bucket?list-type=2/x", "cannot be the name of a bucket"),
        ("s3://bucket#/x", "cannot be the name of a bucket"),
        ("s3://user:password@bucket/x", "cannot be the name of a bucket"),
        ("s3://evil.example:443/x", "cannot be the name of a bucket"),
        ("s3://a bucket/x", "cannot be the name of a bucket"),
        ("s3://../x", "cannot be the name of a bucket"),
        ("abfss://c@acct.dfs.core.windows.net:443/k", "cannot be the name of a bucket"),
        ("/data/a\0b", "zero byte"),
    ],
)
def test_uri_that_cannot_work_is_explained(uri: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        folder_uri(uri)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/raw", "s3://bucket/raw/"),
        ("s3a://bucket/raw/", "s3://bucket/raw/"),
        ("s3://bucket/dt=1/a b?#%20", "s3://bucket/dt=1/a b?#%20/"),
        ("gcs://bucket/.hidden/...", "gs://bucket/.hidden/.../"),
        ("/data//calls/./x/..", "file:///data/calls/"),
        ("file:///", "file:///"),
        ("abfs://c@account.dfs.core.windows.net", "abfss://c@account.dfs.core.windows.net/"),
    ],
)
def test_folders_end_in_one_slash(given: str, normal: str) -> None:
    assert folder_uri(given) == normal
    assert folder_uri(normal) == normal


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("s3://bucket//raw/", "s3://bucket/raw/"),
        ("s3://bucket/raw//", "s3://bucket/raw/"),
        ("s3://bucket/a//raw", "s3://bucket/a/raw/"),
        ("s3a://bucket/./raw", "s3://bucket/raw/"),
        ("gs://bucket/raw/..", "gs://bucket/raw/"),
        ("az://container//", "az://container/"),
        ("s3://bucket/raw\n", "control character"),
    ],
)
def test_folder_that_is_hardly_meant_is_refused(uri: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"taken literally\. Did you mean '.*|{meant}") as error:
        folder_uri(uri)
    assert meant in str(error.value)


def test_joining_puts_one_slash_between() -> None:
    assert join_uri("s3://b/", "/a/", "b.json") == "s3://b/a/b.json"


# --- listing -------------------------------------------------------------------------------------------


def test_listing_is_recursive_and_typed(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    for name in ("a.wav", "deep/er/b.wav", "deeper.wav"):
        storage.write_bytes(f"{folder}/{name}", b"12345")
    (batch,) = storage.list(folder)
    assert [str(f.type) for f in batch.schema] == ["string", "string", "int64", "timestamp[us, tz=UTC]"]
    assert set(listed(storage, f"{folder}/deep/")) == {f"{folder}/deep/er/b.wav"}
    row = listed(storage, folder)[f"{folder}/a.wav"]
    assert row["audio_bytes"] == 5
    assert abs(row["last_modified"] - datetime.now(UTC)) < timedelta(minutes=5)


def test_listing_comes_in_batches(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    for i in range(7):
        storage.write_bytes(f"{folder}/{i}", b"x")
    assert [batch.num_rows for batch in storage.list(folder, chunk_size=3)] == [3, 3, 1]


def test_folder_that_does_not_exist_is_empty(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    assert listed(storage, f"{folder}/nothing/here") == {}
    assert not storage.any_under(f"{folder}/nothing/here")


def test_folder_markers_are_no_objects_but_empty_files_are(s3: S3Server) -> None:
    bucket = s3.bucket("markers")
    for key in ("in/", "in/folder/", "in/empty.wav", "in/folder/a.wav"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=b"x" if key.endswith("a.wav") else b"")
    uris = set(listed(ObjectStorage(s3.config), f"s3://{bucket}/in/"))
    assert uris == {f"s3://{bucket}/in/empty.wav", f"s3://{bucket}/in/folder/a.wav"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.wav").write_bytes(b"x")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "source" / "nowhere.wav").symlink_to(tmp_path / "missing.wav")
    source = f"file://{tmp_path}/source"
    assert set(listed(ObjectStorage(), source)) == {f"{source}/linked/a.wav"}


def test_missing_bucket_is_not_an_empty_one(s3: S3Server) -> None:
    storage, uri = ObjectStorage(s3.config), f"s3://missing-{uuid.uuid4().hex[:8]}/x/"
    for action in (listed, ObjectStorage.any_under):
        with pytest.raises(ObjectNotFound, match="there is no bucket"):
            action(storage, uri)
    assert not ObjectStorage(s3.config).any_under(f"s3://{s3.bucket('empty')}/")


# --- reading -------------------------------------------------------------------------------------------


def test_large_object_is_read_through_a_file_and_can_be_sought(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    data = os.urandom(MEMORY_SPOOL_BYTES + 4321)
    storage.write_bytes(f"{folder}/large", data)
    with storage.open(f"{folder}/large") as file:
        assert file.seekable()
        file.seek(-5, os.SEEK_END)
        assert file.read() == data[-5:]
        file.seek(0)
        assert file.read() == data


def test_replaced_object_is_noticed(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    uri = f"{folder}/a.wav"
    storage.write_bytes(uri, b"first")
    etag = storage.info(uri).etag
    assert storage.open(uri, etag=etag).read() == b"first"
    storage.write_bytes(uri, b"second one")
    assert storage.info(uri).etag != etag
    with pytest.raises(ObjectChanged, match=r"a\.wav was replaced"):
        storage.open(uri, etag=etag)


def test_object_that_is_gone(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    storage.write_bytes(f"{folder}/here/a.wav", b"x")
    assert storage.exists(f"{folder}/here/a.wav")
    for uri in (f"{folder}/gone.wav", f"{folder}/here", f"{folder}/here/a.wav/below"):
        assert not storage.exists(uri)
        with pytest.raises(ObjectNotFound, match=r"does not exist"):
            storage.open(uri)


def test_wrong_secret_is_forbidden_and_never_shown(s3: S3Server) -> None:
    bucket = s3.bucket("forbidden")
    uri = f"s3://{bucket}/a.wav"
    ObjectStorage(s3.config).write_bytes(uri, b"x")
    storage = ObjectStorage({**s3.config, "aws_secret_access_key": "not-the-secret-at-all"})
    actions: list[Callable[[], Any]] = [
        lambda: storage.open(uri),
        lambda: storage.info(uri),
        lambda: listed(storage, f"s3://{bucket}/"),
        lambda: storage.write_bytes(f"s3://{bucket}/b.wav", b"x"),
    ]
    for action in actions:
        with pytest.raises(ObjectForbidden, match=f"s3://{bucket}/") as error:
            action()
        assert "not-the-secret-at-all" not in str(error.value)
        assert s3.endpoint.removeprefix("http://") not in str(error.value)


AS_NOBODY = """
import json, os, sys, pyarrow  # before it may no longer read the installation
from whisper_spark.storage.objects import ObjectForbidden, ObjectStorage
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
outcome = {}
for name, action in {"open": lambda: ObjectStorage().open(sys.argv[1] + "/secret.wav"),
                     "list": lambda: list(ObjectStorage().list(sys.argv[1] + "/closed"))}.items():
    try:
        action()
    except ObjectForbidden as error:
        outcome[name] = str(error)
listed = ObjectStorage().list(sys.argv[1] + "/raw")
outcome["raw"] = [uri for batch in listed for uri in batch.column("audio_uri").to_pylist()]
print(json.dumps(outcome))
"""


def test_local_file_without_permission_is_forbidden_and_folders_of_the_system_are_left_out() -> None:
    # A process of its own, which gives up being root if it is; pytest's folders are closed to others.
    folder = Path("/tmp", f"whisper-permission-{uuid.uuid4().hex}")
    closed = [folder / "closed", folder / "raw" / "lost+found", folder / "raw" / ".Trash-0"]
    for path in closed:
        path.mkdir(parents=True)
    (folder / "raw" / "a.wav").write_bytes(b"x")
    folder.chmod(0o755)
    (folder / "secret.wav").write_bytes(b"x")
    (folder / "secret.wav").chmod(0)
    for path in closed:
        path.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder)],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        outcome = json.loads(done.stdout)
        assert "secret.wav" in outcome["open"]
        assert "closed" in outcome["list"]
        assert outcome["raw"] == [f"file://{folder}/raw/a.wav"]
    finally:
        for path in closed:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_store_that_does_not_answer_fails_in_bounded_time(s3: S3Server) -> None:
    storage = ObjectStorage({**s3.config, "aws_endpoint": "http://127.0.0.1:9"})
    start = time.monotonic()
    with pytest.raises(StorageError, match="s3://bucket/a") as error:
        storage.open("s3://bucket/a.wav")
    assert time.monotonic() - start < 60
    assert "127.0.0.1" not in str(error.value)
    assert type(error.value) is StorageError


@contextmanager
def answering(respond: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[dict[str, str]]:
    """A server that answers every GET the same way; gives the configuration that leads to it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

    with web_server(Handler) as port:
        yield {
            "aws_endpoint": f"http://127.0.0.1:{port}",
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "aws_region": "us-east-1",
        }


def test_transfer_that_ends_early_is_an_error() -> None:
    def truncated(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.send_header("ETag", '"x"')
        request.send_header("Last-Modified", "Wed, 23 Oct 2024 19:19:28 GMT")
        request.end_headers()
        request.wfile.write(b"only this")

    with answering(truncated) as config, pytest.raises(StorageError, match="s3://bucket/a"):
        ObjectStorage(config).open("s3://bucket/a.wav")


def test_given_credentials_are_not_mixed_with_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str | None] = []

    def note(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("x-amz-security-token"))
        request.send_response(404)
        request.send_header("Content-Length", "0")
        request.end_headers()

    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-somebody-else")
    with answering(note) as config:
        for given in (config, {**config, "aws_session_token": "own-token"}):
            with pytest.raises(ObjectNotFound):
                ObjectStorage(given).open("s3://bucket/a.wav")
    assert seen == [None, "own-token"]


def test_ambient_credentials_come_from_the_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket("ambient")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    ObjectStorage().write_bytes(f"s3://{bucket}/a", b"x")
    assert ObjectStorage({}).read_bytes(f"s3://{bucket}/a") == b"x"


def test_ambient_credentials_come_from_a_profile(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3.bucket("profile")
    credentials = tmp_path / "credentials"
    keys = f"aws_access_key_id={s3.access_key}\naws_secret_access_key={s3.secret_key}\n"
    credentials.write_text(f"[calls]\nregion=us-east-1\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "calls")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    assert ObjectStorage().write_bytes(f"s3://{bucket}/a", b"x")


def test_keys_of_other_stores_are_ignored(s3: S3Server) -> None:
    config = {**s3.config, "google_service_account_key": "{}", "azure_storage_account_name": "a"}
    assert ObjectStorage(config).write_bytes(f"s3://{s3.bucket('many')}/a", b"x")


# --- writing -------------------------------------------------------------------------------------------


def test_of_many_writers_one_wins(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    uri = f"{folder}/once.json"
    with ThreadPoolExecutor(8) as pool:
        won = [*pool.map(lambda i: storage.write_bytes(uri, b"%d" % i, if_absent=True), range(8))]
    assert won.count(True) == 1
    assert storage.read_bytes(uri) == b"%d" % won.index(True)


def test_writing_replaces_unless_told_otherwise(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    uri = f"{folder}/a"
    assert storage.write_bytes(uri, b"1")
    assert storage.write_bytes(uri, b"2")
    assert not storage.write_bytes(uri, b"3", if_absent=True)
    assert storage.read_bytes(uri) == b"2"
    assert set(listed(storage, folder)) == {uri}


@pytest.mark.parametrize("size", [0, 1000, 65 * 1024 * 1024])
def test_file_goes_up_and_comes_down(place: tuple[ObjectStorage, str], tmp_path: Path, size: int) -> None:
    storage, folder = place
    source, target = tmp_path / "source", tmp_path / "below" / "target"
    source.write_bytes(os.urandom(size))
    assert storage.upload(source, f"{folder}/a", if_absent=True)
    assert not storage.upload(source, f"{folder}/a", if_absent=True)
    assert storage.upload(source, f"{folder}/a")
    storage.download(f"{folder}/a", target)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_failed_download_leaves_nothing_behind(place: tuple[ObjectStorage, str], tmp_path: Path) -> None:
    storage, folder = place
    with pytest.raises(ObjectNotFound):
        storage.download(f"{folder}/missing", tmp_path / "target" / "file")
    assert list((tmp_path / "target").iterdir()) == []


def test_half_written_local_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".whisper-0123.tmp").write_bytes(b"half")
    assert listed(ObjectStorage(), str(tmp_path)) == {}


def test_deleting_what_is_not_there_is_no_error(place: tuple[ObjectStorage, str]) -> None:
    storage, folder = place
    uris = [f"{folder}/{i}" for i in range(3)]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    storage.delete([uris[0], f"{folder}/missing", uris[1]])
    assert set(listed(storage, folder)) == {uris[2]}
    storage.delete([])


def test_a_column_of_a_large_parquet_file_is_read_without_the_rest(s3: S3Server) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from whisper_spark.storage.parquet import open_parquet

    table = pa.table({"uri": ["a", "b"], "text": [os.urandom(4_000_000).hex(), "x"]})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    data = buffer.getvalue().to_pybytes()
    uri = f"s3://{s3.bucket('ranges')}/part.parquet"
    storage = ObjectStorage(s3.config)
    storage.write_bytes(uri, data)
    with storage.open_ranges(uri) as file:
        fetched = []
        original = file.readinto
        file.readinto = lambda buffer: fetched.append(original(buffer)) or fetched[-1]  # type: ignore[attr-defined]
        assert pq.ParquetFile(file).read(columns=["uri"]).column("uri").to_pylist() == ["a", "b"]
    assert sum(fetched) < len(data) / 10
    with open_parquet(uri, storage) as parquet:
        assert parquet.read().equals(table)
