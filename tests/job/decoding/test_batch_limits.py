"""Batches stay below the size at which CTranslate2 silently computes wrong results."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.decoding import model_shape
from whisper_spark.decoding.batch_size import (
    choose_batch_size,
    free_gpu_bytes,
    share_of_memory,
    total_gpu_bytes,
    with_fitting_workers,
)
from whisper_spark.decoding.calls import BatchTooLargeError, Model
from whisper_spark.decoding.contexts import MARGIN_FRAMES, context_frames, context_lengths
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.encoder_output import Encoded
from whisper_spark.decoding.model_shape import LARGEST, ModelShape, read_shape
from whisper_spark.engine.transcriber import AudioFile, get_engine

TINY, BASE, SMALL = ModelShape(6, 384, 4), ModelShape(8, 512, 6), ModelShape(12, 768, 12)
MEDIUM, TURBO = ModelShape(16, 1024, 24), ModelShape(20, 1280, 4)
GPU = Device("cuda", 0, 2, 1)
GIB = 2**30


@pytest.mark.parametrize("shape", [TINY, BASE, SMALL, MEDIUM, LARGEST], ids=lambda shape: str(shape.width))
@pytest.mark.parametrize("frames", [1000, 1001, 1200, 2400, 2999, FULL_FRAMES])
def test_the_largest_batch_stays_below_32_bits_and_one_window_more_does_not(
    shape: ModelShape, frames: int
) -> None:
    most, positions = shape.most_windows(frames), (frames + 1) // 2
    assert most * shape.heads * positions**2 < 2**32 <= (most + 1) * shape.heads * positions**2


def test_large_models_take_95_windows_of_30_seconds() -> None:
    assert LARGEST.most_windows(FULL_FRAMES) == 95


def test_beams_count_where_they_are_more_than_positions() -> None:
    assert LARGEST.most_windows(FULL_FRAMES, beams=1500) == 95
    assert LARGEST.most_windows(FULL_FRAMES, beams=3000) == 47


def test_feed_forward_layers_count_where_contexts_are_short() -> None:
    most = LARGEST.most_windows(200)
    assert most * 100 * 4 * 1280 < 2**32 <= (most + 1) * 100 * 4 * 1280


def test_a_single_window_always_goes() -> None:
    assert ModelShape(heads=2**20, width=2**20, decoder_layers=1).most_windows(FULL_FRAMES) == 1


def weights_file(folder: Path, heads: int, width: int, layers: int) -> Path:
    """A folder with the beginning of a ``model.bin``."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    def variable(name: str, shape: tuple[int, ...], data: bytes) -> bytes:
        dimensions = b"".join(struct.pack("<I", size) for size in shape)
        head = string(name) + struct.pack("<B", len(shape)) + dimensions
        return head + struct.pack("<BI", 0, len(data)) + data

    (folder / "model.bin").write_bytes(
        struct.pack("<I", 6)
        + string("WhisperSpec")
        + struct.pack("<II", 3, 4 + layers)
        + variable("encoder/conv1/bias", (width,), b"\0" * 4 * width)
        + variable("decoder/layer_norm/gamma", (width,), b"\0" * 4 * width)
        + b"".join(variable(f"decoder/layer_{i}/x", (2, 3), b"\0" * 24) for i in range(layers))
        + variable("encoder/layer_norm/gamma", (width,), b"\0" * 4 * width)
        + variable("encoder/num_heads", (), heads.to_bytes(2, "little"))
    )
    return folder


def test_the_limit_follows_from_the_heads_and_width_of_the_model(model_dir: Path, tmp_path: Path) -> None:
    assert read_shape(model_dir) == BASE
    assert read_shape(weights_file(tmp_path, 20, 1280, 32)) == LARGEST
    assert read_shape(weights_file(tmp_path, 300, 32, 2)) == ModelShape(300, 32, 2)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 100, b"PK\x03\x04 something else"])
def test_a_model_that_tells_nothing_is_taken_for_the_largest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    assert read_shape(tmp_path) == LARGEST


class Weights:
    """Counts the windows that reach CTranslate2."""

    n_mels = 80
    is_multilingual = True

    def __init__(self) -> None:
        self.windows: list[int] = []

    def encode(self, features: Any) -> Any:
        self.windows.append(features.shape[0])
        return features

    def detect_language(self, encoded: Any) -> list[Any]:
        self.windows.append(encoded.shape[0])
        return []

    def generate(self, encoded: Any, prompts: Any, **settings: Any) -> list[Any]:
        return self.detect_language(encoded)

    def align(self, encoded: Any, *arguments: Any) -> list[Any]:
        return self.detect_language(encoded)


def encoded(windows: int, positions: int) -> Encoded:
    return Encoded.of(np.zeros((windows, positions, 1), np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, n: model.encode(np.zeros((n, 80, 20), np.float32)),
        lambda model, n: model.detect_language(encoded(n, 10)),
        lambda model, n: model.generate(encoded(n, 10), []),
        lambda model, n: model.generate(encoded(n, 5), [], beam_size=20),
        lambda model, n: model.generate(encoded(n, 5), [], num_hypotheses=20),
        lambda model, n: model.align(encoded(n, 10), [], [], []),
    ],
    ids=["encode", "language", "decode", "beams", "samples", "align"],
)
def test_a_batch_of_one_window_too_many_reaches_ctranslate2_in_no_step(call: Any) -> None:
    weights = Weights()
    # 2^20 heads x 10 x 10 positions: 40 windows.
    model = Model(weights, ModelShape(heads=2**20, width=1, decoder_layers=1))
    call(model, 40)
    with pytest.raises(BatchTooLargeError, match="41 windows"):
        call(model, 41)
    assert weights.windows == [40]


@pytest.mark.parametrize(
    ("shape", "free", "batch"),
    [
        (BASE, 80 * GIB, 64),
        (TURBO, 76 * GIB, 64),
        (TURBO, 22 * GIB, 44),
        (LARGEST, 76 * GIB, 64),
        (LARGEST, 20 * GIB, 19),
        (LARGEST, 2 * GIB, 1),
        (LARGEST, 0, 1),
        (LARGEST, None, 64),
    ],
)
def test_the_default_batch_fits_into_the_free_memory_of_the_gpu(
    shape: ModelShape, free: int | None, batch: int
) -> None:
    chosen = choose_batch_size(WhisperOptions(), GPU, shape, 3 * GIB, free)
    assert chosen == batch
    asked = choose_batch_size(WhisperOptions(batch_size=48), GPU, shape, 3 * GIB, free)
    assert asked == 48  # who asks for more than fits gets it, and halves when it does not


def test_twice_the_numbers_bytes_make_half_the_batch() -> None:
    half = choose_batch_size(WhisperOptions(), GPU, LARGEST, 3 * GIB, 40 * GIB)
    full = choose_batch_size(WhisperOptions(compute_type="float32"), GPU, LARGEST, 3 * GIB, 40 * GIB)
    assert half == 2 * full or half == 2 * full + 1


@pytest.mark.parametrize(("weights", "batch"), [(1 * GIB // 10, 4), (3 * GIB, 2)])
def test_a_cpu_takes_few_windows_at_once(weights: int, batch: int) -> None:
    assert choose_batch_size(WhisperOptions(), Device("cpu", 0, 2, 1), SMALL, weights, None) == batch


def test_a_host_without_a_gpu_has_no_gpu_memory() -> None:
    for bytes_of in (free_gpu_bytes, total_gpu_bytes):
        assert bytes_of(Device("cpu", 0, 1, 1)) is None
        if not ctranslate2.get_cuda_device_count():
            assert bytes_of(GPU) is None


@pytest.mark.parametrize(
    ("shape", "total", "asked", "workers"),
    [
        (LARGEST, 80 * GIB, {}, 2),
        (LARGEST, 24 * GIB, {}, 1),
        (TURBO, 24 * GIB, {}, 2),
        (BASE, 12 * GIB, {}, 2),
        (LARGEST, 24 * GIB, {"num_workers": 2}, 2),
        (LARGEST, 24 * GIB, {"batch_size": 8}, 2),
        (LARGEST, 80 * GIB, {"batch_size": 90}, 1),
        (LARGEST, None, {}, 2),
    ],
)
def test_a_second_decoder_needs_memory_for_a_batch_of_its_own(
    shape: ModelShape, total: int | None, asked: dict[str, int], workers: int
) -> None:
    chosen = with_fitting_workers(WhisperOptions(**asked), GPU, shape, 3 * GIB, total)  # type: ignore[arg-type]
    assert chosen == dataclasses.replace(GPU, workers=workers)


@pytest.mark.parametrize(
    ("shape", "total", "workers"),
    [
        (BASE, 80 * GIB, 4),
        (TURBO, 80 * GIB, 3),
        (LARGEST, 140 * GIB, 3),
        (LARGEST, 80 * GIB, 3),
        (LARGEST, 48 * GIB, 2),
        (LARGEST, 24 * GIB, 1),
        (LARGEST, 8 * GIB, 1),
    ],
)
def test_more_than_two_decoders_need_large_batches_and_large_models_three_at_most(
    shape: ModelShape, total: int, workers: int
) -> None:
    four = dataclasses.replace(GPU, workers=4)
    assert with_fitting_workers(WhisperOptions(), four, shape, 3 * GIB, total).workers == workers


def test_tasks_that_share_a_gpu_leave_memory_to_each_other() -> None:
    free, total, weights = 70 * GIB, 80 * GIB, 3 * GIB
    four = dataclasses.replace(GPU, tasks=4, workers=1)
    share = share_of_memory(four, weights, free, total)
    assert share_of_memory(GPU, weights, free, total) == free
    assert 4 * (share + weights) < total
    # The last one to start sees what the others left.
    assert share_of_memory(four, weights, GIB, total) == GIB
    assert share_of_memory(four, weights, free, 8 * GIB) == 0
    batch = choose_batch_size(WhisperOptions(), four, LARGEST, weights, share)
    assert 1 < batch < choose_batch_size(WhisperOptions(), GPU, LARGEST, weights, free)


@pytest.mark.parametrize(
    ("device", "shape", "contexts"),
    [
        (Device("cpu", 0, 1, 1), BASE, [1000, 1200, 1400, 1600, 1800, 2000, 2200, 2400, 2600, 2800, 3000]),
        (Device("cpu", 0, 1, 1), LARGEST, [1000, 1200, 1400, 1600, 1800, 2000, 2200, 2400, 2600, 2800, 3000]),
        (GPU, SMALL, [1000, 1600, 2400, 3000]),
        (GPU, MEDIUM, [1000, 1400, 1800, 2200, 2400, 3000]),
        (GPU, TURBO, [1000, 1400, 1800, 2200, 2400, 3000]),
    ],
)
def test_contexts_are_few_where_batches_must_be_full(
    device: Device, shape: ModelShape, contexts: list[int]
) -> None:
    possible = context_lengths(device, shape)
    lengths = range(1, FULL_FRAMES + 1)
    assert sorted({context_frames(frames, possible) for frames in lengths}) == contexts
    assert all(context_frames(f, possible) >= min(f + MARGIN_FRAMES, FULL_FRAMES) for f in lengths)


@pytest.mark.parametrize(("asked", "used"), [(238, 238), (239, 238), (1024, 238), (None, 4)])
def test_a_larger_batch_size_is_cut_with_one_line_in_the_log(
    model_dir: Path, caplog: pytest.LogCaptureFixture, asked: int | None, used: int
) -> None:
    options = WhisperOptions(model=str(model_dir), batch_size=asked)
    decoder = WindowDecoder(options, model_dir, Device("cpu", 0, 1, 1))
    assert decoder.batch_size == used
    lines = [record.message for record in caplog.records if "is cut to" in record.message]
    assert len(lines) == (asked not in (None, used))
    assert all(line.startswith(f"batch_size={asked} is cut to 238: ") for line in lines)


def test_every_step_of_the_engine_stays_below_the_limit(
    model_dir: Path, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every window is refined, and those that are still not sure are decoded again.
    options = WhisperOptions(
        model=str(model_dir),
        num_workers=1,
        greedy_log_prob_threshold=0.0,
        log_prob_threshold=-0.2,
        temperature=0,  # type: ignore[arg-type]
    )
    files = [AudioFile(f"file://{clip.path}") for clip in librivox]
    expected = {t.audio_uri: t.text for t in get_engine(options).transcribe(files)}
    # Two full windows stand for what a GPU takes.
    limit = 2 * BASE.heads * 1500**2
    monkeypatch.setattr(model_shape, "_MOST_ELEMENTS", limit)
    elements: dict[str, int] = {}

    def record(step: str) -> Any:
        original = getattr(Model, step)

        def call(self: Model, batch: Any, *arguments: Any, **settings: Any) -> Any:
            shape = batch.shape if step == "encode" else (batch.windows, 0, batch.frames)
            size = shape[0] * BASE.heads * (shape[2] // 2) ** 2
            elements[step] = max(elements.get(step, 0), size)
            return original(self, batch, *arguments, **settings)

        return call

    engine = get_engine(dataclasses.replace(options, batch_size=1024))
    for step in ("encode", "detect_language", "generate", "align"):
        monkeypatch.setattr(Model, step, record(step))
    found = {t.audio_uri: t.text for t in engine.transcribe(files)}
    assert engine._decoder.batch_size == 2
    assert set(elements) == {"encode", "detect_language", "generate", "align"}
    assert max(elements.values()) <= limit
    assert found == expected
