"""What the doctor says about GPUs. Drivers and cards are stand-ins: none can be had here."""

from __future__ import annotations

import re
import tempfile
from typing import Any

import ctranslate2
import pytest

from whisper_spark import WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.cuda import Driver, Gpu, NoDriverError
from whisper_spark.doctor import gpu as gpu_module
from whisper_spark.doctor.checks import Check
from whisper_spark.doctor.gpu import gpu_checks

H100 = Gpu("stand-in H100", (9, 0), 80 * 2**30)
T4 = Gpu("stand-in T4", (7, 5), 15 * 2**30)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | NoDriverError, seen: int | Exception | None = None
) -> None:
    """A host with this driver, on which CTranslate2 sees so many GPUs or fails."""

    def read() -> Driver:
        if isinstance(driver, NoDriverError):
            raise driver
        return driver

    def count() -> int:
        found = (len(driver.gpus) if isinstance(driver, Driver) else 0) if seen is None else seen
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(cuda, "read_driver", read)
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", count)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: {"float16", "float32"})
    monkeypatch.setattr(cuda, "_has_driver", lambda: True)
    monkeypatch.setenv("CUDA_CACHE_PATH", tempfile.gettempdir())


def found(monkeypatch: pytest.MonkeyPatch, device: str = "cuda", **options: Any) -> dict[str, Check]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return {check.name: check for check in gpu_checks(WhisperOptions(device=device, **options))}


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Driver(12040, (H100,)), r"supports CUDA 12\.4, and CTranslate2 needs 12\.8 on stand-in H100"),
        (Driver(11040, (T4,)), r"supports CUDA 11\.4, and CTranslate2 needs 12\.0"),
    ],
)
@pytest.mark.parametrize(("device", "status"), [("cuda", "failed"), ("auto", "warning")])
def test_driver_that_is_too_old_is_told_with_the_one_to_install(
    driver: Driver, words: str, device: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, driver)
    check = found(monkeypatch, device)["NVIDIA driver"]
    assert check.status == status
    assert re.search(words, check.found)
    assert re.match(r"Install NVIDIA driver 5\d\d or newer on the host", check.fix)


@pytest.mark.parametrize("driver", [Driver(12080, (H100,)), Driver(12000, (T4,)), Driver(13000, (H100, T4))])
def test_driver_that_is_new_enough_for_its_cards_is_fine(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, driver)
    assert found(monkeypatch)["NVIDIA driver"].status == "ok"


def test_gpu_that_no_container_was_given_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Driver(12080, ()))
    check = found(monkeypatch)["NVIDIA driver"]
    assert (check.status, check.found) == ("failed", "it shows no GPU to this process")
    assert "docker run --gpus all" in check.fix


def test_library_that_cannot_be_loaded_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # The driver is a stand-in. That libcublas cannot be loaded is real, unless this machine has it.
    stand_in(monkeypatch, Driver(12080, (H100,)))
    monkeypatch.setattr(cuda, "needed_libraries", lambda: ("libcublas.so.99", "libcudnn.so.99"))
    check = found(monkeypatch)["CUDA libraries"]
    assert check.status == "failed"
    assert check.found.startswith(
        "libcublas.so.99 cannot be loaded (libcublas.so.99: cannot open shared object"
    )
    assert "1 more" in check.found
    assert "pip install nvidia-cublas-cu12" in check.fix


def test_libraries_are_read_from_the_installed_ctranslate2() -> None:
    assert cuda.needed_libraries() == ("libcublas.so.12",)


def test_compute_type_that_the_gpu_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Driver(12080, (H100,)))
    check = found(monkeypatch, compute_type="bfloat16")["compute type"]
    assert check.status == "failed"
    assert check.found == "bfloat16; the GPU can do float16, float32"
    assert found(monkeypatch)["compute type"].status == "ok"


def test_ctranslate2_that_fails_is_quoted_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError(
        "CUDA failed with error CUDA driver version is insufficient for CUDA runtime version"
    )
    stand_in(monkeypatch, Driver(12080, (H100,)), seen=error)
    check = found(monkeypatch)["GPU"]
    assert check.status == "failed"
    assert "driver version is insufficient for CUDA runtime version: install NVIDIA driver 525" in check.found


def test_gpu_whose_memory_others_hold_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Driver(12080, (H100,)))
    from whisper_spark.decoding import batch_size

    monkeypatch.setattr(batch_size, "free_gpu_bytes", lambda device: 10 * 2**30)
    check = found(monkeypatch)["GPU memory"]
    assert (check.status, check.found) == ("warning", "10.0 of 80.0 GiB free on GPU 0")
    monkeypatch.setattr(batch_size, "free_gpu_bytes", lambda device: 70 * 2**30)
    assert found(monkeypatch)["GPU memory"].status == "ok"


def test_no_gpu_is_looked_for_when_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, NoDriverError("must not be asked"))
    assert [check.status for check in gpu_checks(WhisperOptions(device="cpu"))] == ["ok"]


def test_card_without_a_driver_is_a_warning_even_where_the_cpu_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, NoDriverError("no NVIDIA driver was found"))
    monkeypatch.setattr(gpu_module, "_has_device_files", lambda: True)
    assert found(monkeypatch, "auto")["NVIDIA driver"].status == "warning"
