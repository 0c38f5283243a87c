"""Which device the engine takes. No GPU can be had here, so CTranslate2 is made to claim some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import pytest
from note import write_block

from whisper_spark import WhisperOptions
from whisper_spark.decoding import device
from whisper_spark.decoding.device import Device, UnusableDeviceError, choose_device
from whisper_spark.decoding.model import load_weights


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes CTranslate2 see so many GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def see(count: int) -> None:
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: count)

    return see


def spark_task(monkeypatch: pytest.MonkeyPatch, addresses: list[str] | None, partition: int = 0) -> None:
    """Makes this process a Spark task with these GPUs and four cores."""
    resources = {} if addresses is None else {"gpu": SimpleNamespace(addresses=addresses)}
    task = SimpleNamespace(resources=lambda: resources, partitionId=lambda: partition, cpus=lambda: 4)
    monkeypatch.setattr(device, "_task_context", lambda: task)


@pytest.mark.parametrize(
    ("visible", "seen", "address", "index"),
    [
        (None, 8, "7", 7),
        (None, 1, "7", 0),
        (None, 1, "GPU-2f0a", 0),
        ("4,5,6,7", 4, "6", 2),
        ("GPU-1b9c,GPU-2f0a", 2, "GPU-2f0a", 1),
        ("4,5", 2, "1", 1),
    ],
    ids=["host", "container", "container-uuid", "restricted", "uuid", "restricted-relative"],
)
def test_task_takes_the_gpu_that_spark_gave_it(
    visible: str | None, seen: int, address: str, index: int, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(seen)
    spark_task(monkeypatch, [address])
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = choose_device(WhisperOptions(device="auto"))
    assert (device.kind, device.index) == ("cuda", index)


@pytest.mark.parametrize("address", ["4", "GPU-2f0a"])
def test_gpu_that_cannot_be_told_from_others_is_an_error(
    address: str, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(4)
    spark_task(monkeypatch, [address])
    with pytest.raises(UnusableDeviceError, match=f"gave this task the GPU '{address}'.*sees 4 GPUs"):
        choose_device(WhisperOptions(device="cuda"))


def test_tasks_spread_over_gpus_that_spark_does_not_manage(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    taken = []
    for partition in range(4):
        spark_task(monkeypatch, None, partition)
        taken.append(choose_device(WhisperOptions(device="auto")).index)
    assert taken == [0, 1, 0, 1]


def test_cuda_without_a_gpu_says_what_to_check(gpus: Any) -> None:
    gpus(0)
    with pytest.raises(UnusableDeviceError, match=r"nvidia-smi.*libcublas\.so\.12.*device='auto'"):
        choose_device(WhisperOptions(device="cuda"))


def test_auto_falls_back_to_all_cores_of_the_task(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(0)
    spark_task(monkeypatch, None)
    assert choose_device(WhisperOptions(device="auto")) == Device("cpu", 0, workers=4, threads=1)


@pytest.mark.parametrize(
    ("kind", "asked", "used"),
    [("cuda", "auto", "float16"), ("cpu", "auto", "int8"), ("cuda", "int8", "int8")],
)
def test_weights_are_half_precision_on_a_gpu_unless_asked_otherwise(
    kind: str, asked: str, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(ctranslate2.models, "Whisper", lambda folder, **settings: loaded.update(settings))
    load_weights(Path("model"), WhisperOptions(compute_type=asked), Device(kind, 3, 1, 1))
    assert (loaded["compute_type"], loaded["device"], loaded["device_index"]) == (used, kind, 3)


GPU_BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="there is a GPU")
def test_gpu_benchmark_without_a_gpu_says_so_before_it_makes_anything(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(GPU_BENCHMARK), "--corpus", "no-such-corpus"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("no CUDA device: ")


def test_tables_replace_those_of_the_last_time_and_nothing_else(tmp_path: Path) -> None:
    note = tmp_path / "RESULTS.md"
    note.write_text("# Results\n\n<!-- begin gpu -->\nold\n<!-- end gpu -->\n\nwritten by hand\n")
    write_block("gpu", ["| new |"], note)
    write_block("overhead", ["5 %"], note)
    text = note.read_text()
    assert "old" not in text
    assert text.index("| new |") < text.index("written by hand") < text.index("5 %")
