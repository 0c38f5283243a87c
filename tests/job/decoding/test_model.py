"""The model is found, fetched once for each host, and verified."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from servers import S3Server

from whisper_spark import WhisperOptions
from whisper_spark.decoding.model import ModelError, find_model
from whisper_spark.storage.objects import ObjectStorage

SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path / "cache"))
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
    assert [p.name for p in Path(folders.pop()).parent.iterdir() if p.is_dir()] != []
    assert not list((cache / "whisper_spark" / "models").glob("fetch-*"))


def test_a_model_uri_with_nothing_behind_it_says_so(s3: S3Server, cache: Path) -> None:
    with pytest.raises(ModelError, match="there is no model at"):
        find_model(WhisperOptions(model=f"s3://{s3.bucket('models')}/nothing"), s3.config)
