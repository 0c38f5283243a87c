"""The speaker model is found, fetched, checked and run as the options say; a wrong one fails at load."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from onnx import TensorProto
from recordings import samples_of
from servers import S3Server
from speaker_models import Shape, write_model
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model import ModelError
from whisper_spark.speakers import model as models
from whisper_spark.speakers.fbank import kaldi_fbank
from whisper_spark.speakers.model import SpeakerModel, find_speaker_model, load_speaker_model
from whisper_spark.storage.objects import ObjectStorage

CPU = Device("cpu", 0, 1, 1)
FRAMES: Shape = ("B", "T", 80)


def options(model: Path | str, **values: str) -> WhisperOptions:
    return WhisperOptions(model="base", diarize=True, speaker_model=str(model), **values)


# --- found and fetched ---------------------------------------------------------------------------------


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", FRAMES)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert find_speaker_model(options(tmp_path, speaker_model_sha256=sha256)) == path


def test_a_model_in_an_object_store_is_fetched_once(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path / "cache"))
    data = write_model(tmp_path / "model.onnx", FRAMES).read_bytes()
    uri = f"s3://{s3.bucket('speakers')}/resnet34/"
    storage = ObjectStorage(s3.config)
    storage.write_bytes(f"{uri}voxceleb_resnet34_LM.onnx", data)
    storage.write_bytes(f"{uri}avg_model.pt", b"not needed")
    found = find_speaker_model(options(uri), s3.config)
    assert [path.name for path in found.parent.iterdir()] == ["voxceleb_resnet34_LM.onnx"]
    assert found.read_bytes() == data
    stamp = found.stat().st_mtime_ns
    assert find_speaker_model(options(uri), s3.config) == found
    assert found.stat().st_mtime_ns == stamp


def test_a_repository_is_downloaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, **arguments: object) -> str:
        asked.update(arguments, name=name)
        return str(write_model(tmp_path / "model.onnx", FRAMES).parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = find_speaker_model(options("org/name", speaker_model_revision="v1"))
    assert found == tmp_path / "model.onnx"
    assert asked.pop("name") == "org/name"
    assert asked.pop("revision") == "v1"
    repository = ["model.onnx", "model.pt", "onnx/model_fp16.onnx"]
    assert list(filter_repo_objects(repository, **asked)) == ["model.onnx"]


def test_an_empty_folder_in_an_object_store_is_refused(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path / "cache"))
    uri = f"s3://{s3.bucket('speakers')}/nothing/"
    with pytest.raises(ModelError, match="there is no model at"):
        find_speaker_model(options(uri), s3.config)
    ObjectStorage(s3.config).write_bytes(f"{uri}model.onnx", b"")
    with pytest.raises(ModelError, match=r"is no speaker model: \*\.onnx missing or empty"):
        find_speaker_model(options(uri), s3.config)


def test_a_folder_without_a_model_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere on host"):
        find_speaker_model(options(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"must hold one \.onnx file, and .* holds none"):
        find_speaker_model(options(tmp_path))
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"holds 2 of them: a\.onnx, b\.onnx"):
        find_speaker_model(options(tmp_path))


def test_weights_that_are_not_the_ones_named_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", FRAMES)
    with pytest.raises(ModelError, match=r"speaker_model_sha256 is 000.*are not the ones these options name"):
        find_speaker_model(options(tmp_path, speaker_model_sha256="0" * 64))


def test_unreachable_hub_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: object) -> str:
        raise OSError("no route to host\n\nsee the log")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    # Without line breaks, because the task log shows the first line as the cause.
    told = r"cannot get model 'org/name' from the hub .*no route to host see the log\)\. Executors without"
    with pytest.raises(ModelError, match=told):
        find_speaker_model(options("org/name"))


# --- loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [("B", "T", 80), (1, "T", 80), ("B", "T", "bins"), ("B", "samples"), (1, "samples")],
    ids=lambda shape: " ".join(map(str, shape)),
)
def test_both_inputs_are_understood_whatever_their_batch(tmp_path: Path, shape: Shape) -> None:
    model = SpeakerModel(
        write_model(tmp_path / "m.onnx", (*shape[:-1], 80 if len(shape) == 3 else shape[-1])), CPU
    )
    sounds = np.random.default_rng(1).standard_normal((3, 24_000)).astype(np.float32) / 10
    found = model.embed(sounds)
    assert found.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found[1:2], model.embed(sounds[1:2]), atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_sounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SpeakerModel(write_model(tmp_path / "m.onnx", FRAMES), CPU)
    batches: list[int] = []

    def fbank(samples: np.ndarray, window: str) -> np.ndarray:
        batches.append(len(samples))
        return kaldi_fbank(samples, window)

    monkeypatch.setattr(models, "kaldi_fbank", fbank)
    sounds = np.random.default_rng(1).standard_normal((37, 8_000)).astype(np.float32) / 10
    found = model.embed(sounds)
    assert (sum(batches), max(batches)) == (37, 8)
    np.testing.assert_allclose(found[30:], model.embed(sounds[30:]), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "values", "says"),
    [
        (("B", "T", 40), {}, r"takes feats \['B', 'T', 40\].*Two inputs are understood"),
        (("B", 80, "T"), {}, "Two inputs are understood"),
        (("B", 16_000), {}, "each of any length"),
        (("B", "C", "T", 80), {}, "Two inputs are understood"),
        (("B", "samples"), {"type_": TensorProto.INT64}, r"tensor\(int64\).*Two inputs"),
        (("B", "T", 80), {"exponent": 0}, "noise is as similar to a voice as the voice is to itself"),
        (("B", "T", 80), {"exponent": np.nan}, "its output embedding is not one vector of fixed length"),
        (("B", "samples"), {"pooled": False}, "its output embedding is not one vector of fixed length"),
        (("B", "T", 80), {"metadata": {"sample_rate": "8000"}}, "wants audio at 8000 Hz"),
    ],
)
def test_a_model_that_does_not_fit_fails_at_load(
    tmp_path: Path, shape: Shape, values: dict, says: str
) -> None:
    path = write_model(tmp_path / "m.onnx", shape, **values)
    with pytest.raises(ModelError, match=says):
        SpeakerModel(path, CPU)


@pytest.mark.parametrize("content", [b"", b"onnx", b"\x08\x09" * 5_000], ids=len)
def test_a_corrupt_model_fails_at_load(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="cannot load the speaker model"):
        load_speaker_model(options(tmp_path), CPU)


@pytest.mark.parametrize(
    ("values", "window", "scale"),
    [
        ({}, "hamming", 32_768),
        ({"name": "feature"}, "povey", 1),
        ({"metadata": {"normalize_samples": "1", "sample_rate": "16000"}}, "povey", 1),
    ],
)
def test_filter_banks_are_those_that_the_model_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict, window: str, scale: int
) -> None:
    model = SpeakerModel(write_model(tmp_path / "m.onnx", FRAMES, **values), CPU)
    asked = []

    def fbank(samples: np.ndarray, window: str) -> np.ndarray:
        asked.append((window, float(samples.max())))
        return np.zeros((len(samples), 148, 80), np.float32)

    monkeypatch.setattr(models, "kaldi_fbank", fbank)
    model.embed(np.full((1, 24_000), 0.5, np.float32))
    assert asked == [(window, 0.5 * scale)]


def test_speakers_are_alike_with_themselves(
    speaker_model: Path, speech: list[Clip], librivox: list[Clip]
) -> None:
    model = load_speaker_model(options(speaker_model), CPU)
    assert model.likeness > 0.7
    allison = [c for c in speech if c.language == "en" and c.seconds > 3][:3]
    spoken = [samples_of(c.path)[8_000:32_000] for c in [*allison, *librivox[:3]]]
    similarity = model.embed(np.stack(spoken)) @ model.embed(np.stack(spoken)).T
    same, different = (similarity[:3, :3].sum() - 3) / 6, similarity[:3, 3:].mean()
    assert same > different + 0.15
