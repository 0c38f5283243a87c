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
from whisper_spark.decoding.device import (
    GPU_TASKS,
    TASK_CORES,
    Device,
    UnusableDeviceError,
    available_cores,
    choose_compute_type,
    choose_device,
)
from whisper_spark.decoding.model import ModelError, load_weights
from whisper_spark.engine.readers import reader_processes
from whisper_spark.spark.conf import spark_defaults, task_share


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make CTranslate2 report this number of GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def see(count: int) -> None:
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: count)

    return see


def spark_task(
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[str] | None,
    partition: int = 0,
    cores: int = 4,
    properties: dict[str, str] | None = None,
) -> None:
    """Makes this process a Spark task with these GPUs, cores and local properties."""
    resources = {} if addresses is None else {"gpu": SimpleNamespace(addresses=addresses)}
    task = SimpleNamespace(
        resources=lambda: resources,
        partitionId=lambda: partition,
        cpus=lambda: cores,
        getLocalProperty=(properties or {}).get,
    )
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
    ("cores", "tasks", "asked", "workers"),
    [
        (64, 1, None, 4),
        (16, 1, None, 4),
        (12, 1, None, 3),
        (8, 1, None, 2),
        (4, 1, None, 2),
        (3, 1, None, 1),
        (16, 4, None, 1),
        (2, 1, 3, 3),
        (16, 4, 2, 2),
    ],
)
def test_gpu_gets_several_decoders_when_it_has_cores_for_them_and_no_other_task(
    cores: int, tasks: int, asked: int | None, workers: int, gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    spark_task(monkeypatch, ["0"], cores=cores, properties={GPU_TASKS: str(tasks)})
    chosen = choose_device(WhisperOptions(num_workers=asked))
    assert (chosen.workers, chosen.tasks) == (workers, tasks)


def test_tasks_that_share_a_gpu_read_with_their_part_of_the_cores(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1)
    conf = {
        "spark.executor.cores": "16",
        "spark.executor.resource.gpu.amount": "1",
        "spark.task.resource.gpu.amount": "0.25",
    }
    # Without spark.task.cpus a task gets four cores, and with another number it may use four all the same.
    assert spark_defaults({**conf, "spark.master": "yarn"}, WhisperOptions())["spark.task.cpus"] == "4"
    spark_task(monkeypatch, ["0"], cores=1, properties=task_share({**conf, "spark.task.cpus": "1"}))
    device = choose_device(WhisperOptions())
    assert available_cores() == reader_processes(WhisperOptions(), device) == 4
    assert (device.tasks, device.workers) == (4, 1)


@pytest.mark.parametrize(
    ("conf", "cores", "tasks"),
    [
        ({}, None, "1"),
        ({"spark.master": "local[3]"}, "1", "1"),
        ({"spark.master": "local[3]", "spark.task.cpus": "3"}, "3", "1"),
        ({"spark.executor.cores": "16", "spark.task.cpus": "4"}, "4", "1"),
        ({"spark.executor.cores": "16", "spark.task.cpus": "5"}, "5", "1"),
        ({"spark.executor.cores": "16", "spark.task.resource.gpu.amount": "1"}, "16", "1"),
        ({"spark.executor.cores": "16", "spark.task.resource.gpu.amount": "0.3"}, "5", "3"),
        (
            {
                "spark.executor.cores": "16",
                "spark.executor.resource.gpu.amount": "4",
                "spark.task.resource.gpu.amount": "1",
            },
            "4",
            "1",
        ),
        (
            {
                "spark.executor.cores": "16",
                "spark.executor.resource.gpu.amount": "2",
                "spark.task.resource.gpu.amount": "0.5",
                "spark.task.cpus": "8",
            },
            "8",
            "2",
        ),
        ({"spark.executor.cores": "16", "spark.task.resource.gpu.amount": "many"}, "1", "1"),
    ],
)
def test_part_of_an_executor_follows_from_cores_and_gpus(
    conf: dict[str, str], cores: str | None, tasks: str
) -> None:
    share = task_share(conf)
    assert (share.get(TASK_CORES), share[GPU_TASKS]) == (cores, tasks)


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


@pytest.mark.parametrize(
    ("kind", "supported", "chosen"),
    [
        ("cuda", {"float32", "float16", "bfloat16", "int8", "int8_float16", "int8_bfloat16"}, "float16"),
        ("cuda", {"float32", "float16", "int8", "int8_float16", "int8_float32"}, "float16"),
        ("cuda", {"float32", "int8", "int8_float32"}, "int8_float32"),
        ("cuda", {"float32"}, "float32"),
        ("cuda", RuntimeError("CUDA driver version is insufficient"), "float16"),
        ("cpu", {"float32", "int8", "int8_float32"}, "int8"),
        ("cpu", {"float32"}, "float32"),
    ],
    ids=["ampere", "volta", "pascal", "maxwell", "unknown", "cpu", "cpu-without-int8"],
)
def test_auto_takes_the_best_type_that_the_device_computes(
    kind: str, supported: set[str] | Exception, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def types(name: str, index: int) -> set[str]:
        asked.append((name, index))
        if isinstance(supported, Exception):
            raise supported
        return supported

    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", types)
    assert choose_compute_type(WhisperOptions(), Device(kind, 3, 1, 1)) == chosen
    assert asked == [(kind, 3)]
    # Whoever names a type gets it, or CTranslate2's error.
    assert choose_compute_type(WhisperOptions(compute_type="bfloat16"), Device(kind, 3, 1, 1)) == "bfloat16"


def test_model_that_a_gpu_cannot_load_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: str, **settings: Any) -> None:
        raise RuntimeError("CUDA failed with error out of memory")

    monkeypatch.setattr(ctranslate2.models, "Whisper", fail)
    with pytest.raises(ModelError, match=r"on GPU 0 as float16: CUDA .* out of memory: find the processes"):
        load_weights(Path("model"), WhisperOptions(), Device("cuda", 0, 1, 1))


def test_gpu_that_ctranslate2_refuses_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", fail)
    with pytest.raises(UnusableDeviceError, match=r"driver version is insufficient .*: install NVIDIA"):
        choose_device(WhisperOptions(device="cuda"))


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
