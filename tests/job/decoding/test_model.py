"""The model is found, fetched once for each host, and verified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from servers import S3Server

from whisper_spark import WhisperOptions
from whisper_spark.decoding.model import ModelError, find_model
from whisper_spark.decoding.model_cache import cache_folder
from whisper_spark.storage.objects import ObjectStorage

SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "cache"


def upload(folder: dict[str, bytes], uri: str, config: dict[str, str]) -> None:
    storage = ObjectStorage(config)
    for name, data in folder.items():
        storage.write_bytes(f"{uri}/{name}", data)


SMALL = {"model.bin": b"weights", "config.json": b"{}", "tokenizer.json": b"{}"}


def test_a_folder_is_used_as_it_is(model_dir: Path) -> None:
    assert find_model(WhisperOptions(model=str(model_dir), model_sha256=SHA256)) == model_dir


def test_weights_that_are_not_the_ones_named_are_refused(model_dir: Path) -> None:
    with pytest.raises(ModelError, match="are not the ones these options name"):
        find_model(WhisperOptions(model=str(model_dir), model_sha256="0" * 64))


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelError, match=r"config\.json, tokenizer\.json missing"):
        find_model(WhisperOptions(model=str(tmp_path)))


def test_a_model_in_an_object_store_is_fetched_once(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    options = WhisperOptions(model=uri)
    folder = find_model(options, s3.config)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == SMALL
    stamp = (folder / "model.bin").stat().st_mtime_ns
    assert find_model(options, s3.config) == folder
    assert (folder / "model.bin").stat().st_mtime_ns == stamp


def test_new_weights_under_the_same_uri_are_fetched_anew(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    before = find_model(WhisperOptions(model=uri), s3.config)
    upload({"model.bin": b"better weights"}, uri, s3.config)
    after = find_model(WhisperOptions(model=uri), s3.config)
    assert after != before
    assert (after / "model.bin").read_bytes() == b"better weights"


def test_what_is_not_of_the_model_is_not_fetched(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}"
    others = {"pytorch_model.bin": b"x", "old/model.bin": b"x", "README.md": b"x", "../up.json": b"x"}
    wanted = {**SMALL, "preprocessor_config.json": b"{}", "vocabulary.txt": b"a"}
    upload({k: v for k, v in {**wanted, **others}.items() if ".." not in k}, uri, s3.config)
    folder = find_model(WhisperOptions(model=uri), s3.config)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*")} == {*wanted}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": b"{}", "tokenizer.json": b"{}"}, "model.bin missing or empty"),
        ({**SMALL, "model.bin": b""}, "model.bin missing or empty"),
        ({**SMALL, "tokenizer.json": b"x" * 1001}, "tokenizer.json has 1,001 bytes"),
    ],
)
def test_what_is_no_model_is_refused_before_it_is_fetched(
    s3: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], says: str
) -> None:
    monkeypatch.setattr("whisper_spark.decoding.model_cache._LARGEST_TEXT", 1000)
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(files, uri, s3.config)
    with pytest.raises(ModelError, match=says):
        find_model(WhisperOptions(model=uri), s3.config)
    assert not cache.exists()


def test_model_larger_than_the_disk_is_refused_before_it_is_fetched(
    s3: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload({**SMALL, "model.bin": b"x" * 5000}, uri, s3.config)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5000))
    with pytest.raises(ModelError, match=r"has room for 0\.0 GB: set WHISPER_SPARK_CACHE"):
        find_model(WhisperOptions(model=uri), s3.config)
    assert not list(cache.rglob("model.bin"))


def test_model_that_is_replaced_while_it_is_fetched_is_not_used(
    s3: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    original = ObjectStorage.download

    def replacing(self: ObjectStorage, source: str, *args: Any, **kwargs: Any) -> None:
        if source.endswith("model.bin"):
            upload({"model.bin": b"WEIGHTS"}, uri, s3.config)
        original(self, source, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStorage, "download", replacing)
        with pytest.raises(ModelError, match=r"model\.bin was replaced"):
            find_model(WhisperOptions(model=uri), s3.config)
    assert (find_model(WhisperOptions(model=uri), s3.config) / "model.bin").read_bytes() == b"WEIGHTS"


def test_copies_that_nobody_uses_any_more_are_removed(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    options = WhisperOptions(model=uri)
    copies = []
    for weights in (b"first", b"second", b"third"):
        upload({**SMALL, "model.bin": weights}, uri, s3.config)
        copies.append(find_model(options, s3.config))
        if weights == b"first":
            two_days_ago = time.time() - 2 * 86400
            os.utime(copies[0], (two_days_ago, two_days_ago))
            (copies[0].parent / "fetch-killed").mkdir()
    # The one before may be in use.
    assert {p.name for p in copies[0].parent.iterdir() if p.is_dir()} == {p.name for p in copies[1:]}


def test_a_model_on_a_disk_is_used_where_it_is(model_dir: Path, cache: Path) -> None:
    assert find_model(WhisperOptions(model=f"file://{model_dir}/", model_sha256=SHA256)) == model_dir
    assert not cache.exists()


def test_a_model_uri_is_not_followed_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in SMALL.items():
        (folder / name).write_bytes(data)
    (tmp_path / "secret.json").write_bytes(b"{}")
    assert find_model(WhisperOptions(model=f"file://{folder}")) == folder
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is a link that leads out of"):
        find_model(WhisperOptions(model=f"file://{folder}"))


def test_a_model_uri_that_cannot_work_is_explained() -> None:
    with pytest.raises(ModelError, match="Did you mean 's3://bucket/model/'"):
        find_model(WhisperOptions(model="s3://bucket//model"))


# --- the cache is this user's own ------------------------------------------------------------------------


def test_the_cache_is_private(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    folder = find_model(WhisperOptions(model=uri), s3.config)
    for place in (cache / "whisper_spark", *folder.relative_to(cache).parents):
        assert (cache / place).stat().st_mode & 0o077 == 0 or place == Path()
    assert folder.stat().st_mode & 0o077 == 0


def test_each_user_has_a_temporary_cache_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file, so that there is no ~/.cache")
    monkeypatch.delenv("WHISPER_SPARK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder() == tmp_path / f"whisper_spark-{os.getuid()}"
    assert cache_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_a_planted_model_is_not_loaded(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    options = WhisperOptions(model=uri)
    folder = find_model(options, s3.config)
    for planted in (folder, folder.parent):
        os.chown(planted, 65534, -1)
        with pytest.raises(ModelError, match="belongs to another user"):
            find_model(options, s3.config)
        os.chown(planted, os.getuid(), -1)
    assert find_model(options, s3.config) == folder
    os.chown(cache / "whisper_spark", 65534, -1)
    assert not find_model(options, s3.config).is_relative_to(cache)


def test_a_cache_that_others_can_write_is_not_used(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    options = WhisperOptions(model=uri)
    folder = find_model(options, s3.config)
    folder.chmod(0o777)
    with pytest.raises(ModelError, match="others can write into"):
        find_model(options, s3.config)
    (cache / "whisper_spark").chmod(0o777)
    assert not find_model(options, s3.config).is_relative_to(cache)


def test_planted_links_are_not_followed(s3: S3Server, cache: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload(SMALL, uri, s3.config)
    options = WhisperOptions(model=uri)
    folder = find_model(options, s3.config)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = folder.parent / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    with pytest.raises(ModelError):
        find_model(options, s3.config)
    assert victim.read_text() == "precious"
    lock.unlink()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link"):
        find_model(options, s3.config)


def test_several_workers_of_one_host_fetch_one_copy(s3: S3Server, cache: Path) -> None:
    uri = f"s3://{s3.bucket('models')}/tiny"
    upload({**SMALL, "model.bin": b"x" * 20_000_000}, uri, s3.config)
    code = (
        "import json, sys; from whisper_spark import WhisperOptions;"
        "from whisper_spark.decoding.model import find_model;"
        "print(find_model(WhisperOptions(model=sys.argv[1]), json.loads(sys.stdin.read())))"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    folders = {worker.communicate(json.dumps(s3.config))[0].strip() for worker in workers}
    assert len(folders) == 1
    copy = Path(folders.pop())
    assert [p for p in copy.parent.iterdir() if p.is_dir()] == [copy]


def test_a_model_uri_with_nothing_behind_it_says_so(s3: S3Server, cache: Path) -> None:
    with pytest.raises(ModelError, match="there is no model at"):
        find_model(WhisperOptions(model=f"s3://{s3.bucket('models')}/nothing"), s3.config)
