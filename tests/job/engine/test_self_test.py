"""The self-test that refuses a device with wrong results before the first file."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from whisper_spark import WhisperOptions
from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.windows import Chunk, ChunkMap, Window
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import Device, UnusableDeviceError
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine import self_test as module
from whisper_spark.engine.self_test import check_full_batch, self_test

RIGHT = WindowText(
    channel=0,
    number=0,
    tokens=(1,),
    text="He was not an ill-disposed young man.",
    language="en",
    avg_logprob=-0.2,
    no_speech_prob=0.0,
    compression_ratio=1.0,
    temperature=0.0,
    capped=False,
    reliable=True,
    start=0.0,
    end=2.5,
)
WINDOW = Window(0, 0, ChunkMap((Chunk(0.0, 0.0, 2.5),)), np.zeros((80, 250), np.float32))


class Decoder:
    """A stand-in for a decoder on a GPU whose rows are wrong from number ``wrong_from`` on."""

    def __init__(
        self, *wrong: str, wrong_from: int = 40, right: WindowText = RIGHT, error: str | None = None
    ) -> None:
        self.batch_size = 64
        self.options = SimpleNamespace(model="large-v3")
        self.device = SimpleNamespace(name="GPU 0")
        self.shapes: list[tuple[int, int]] = []
        self._wrong, self._from, self._right, self._error = wrong, wrong_from, right, error

    def encode(self, windows: list[Window], frames: int) -> None:
        self.shapes.append((len(windows), frames))
        if self._error and len(windows) > 1:
            raise RuntimeError(self._error)

    def transcribe(self, encoded: None, windows: list[Window], *others: object) -> list[WindowText]:
        wrong = [dataclasses.replace(self._right, text=text) for text in self._wrong]
        rows = [self._right] * len(windows)
        rows[self._from : self._from + len(wrong)] = wrong if len(windows) > self._from else []
        return rows


def check(decoder: Any) -> None:
    check_full_batch(decoder, WINDOW)


def test_the_full_batch_has_the_largest_shape_that_the_engine_uses() -> None:
    decoder = Decoder()
    check(decoder)
    assert decoder.shapes[-1] == (64, FULL_FRAMES)


@pytest.mark.parametrize("wrong", ["", "Thank you.", "the the the the the the the the the"])
def test_a_device_that_computes_rows_of_a_full_batch_wrong_is_refused(wrong: str) -> None:
    with pytest.raises(UnusableDeviceError, match=r"batch_size=64 failed: 2 rows .* set batch_size=32"):
        check(Decoder(wrong, wrong))


def test_the_last_row_of_a_full_batch_is_looked_at() -> None:
    with pytest.raises(UnusableDeviceError, match="1 rows"):
        check(Decoder("Thank you.", wrong_from=63))


def test_a_word_that_arithmetic_changes_is_no_fault_of_the_device() -> None:
    check(Decoder("He was not an ill disposed young men."))


@pytest.mark.parametrize("changes", [{"reliable": False}, {"temperature": 0.4}])
def test_a_model_that_is_unsure_or_draws_words_by_chance_proves_nothing(changes: dict[str, Any]) -> None:
    check(Decoder("Thank you.", right=dataclasses.replace(RIGHT, **changes)))


def test_a_full_batch_without_memory_is_left_to_the_engine_which_decodes_it_in_parts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "whisper_spark"):
        check(Decoder(error="CUDA failed with error out of memory"))
    assert "batch_size=64 ran out of memory" in caplog.text


def test_a_full_batch_that_breaks_the_device_is_refused() -> None:
    with pytest.raises(UnusableDeviceError, match="batch_size=64 failed: CUDA failed with error launch"):
        check(Decoder(error="CUDA failed with error launch failure"))


def test_an_error_that_is_known_is_followed_by_what_to_do() -> None:
    error = "Library libcublas.so.12 is not found or cannot be loaded"
    with pytest.raises(UnusableDeviceError, match=rf"{error}: pip install nvidia-cublas-cu12"):
        check(Decoder(error=error))


def test_whisper_passes_and_only_a_gpu_decodes_a_full_batch(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = WhisperOptions(model=str(model_dir), batch_size=2)
    cpu = Device("cpu", 0, 1, 1)
    decoder = WindowDecoder(options, model_dir, cpu)
    checked: list[int] = []

    def check_on_cpu(decoder: WindowDecoder, window: Window) -> None:
        checked.append(decoder.batch_size)
        decoder.device = cpu
        check_full_batch(decoder, window)

    monkeypatch.setattr(module, "check_full_batch", check_on_cpu)
    self_test(decoder, options)
    assert checked == []
    decoder.device = Device("cuda", 0, 1, 1)
    self_test(decoder, options)
    assert checked == [2]
