"""How the driver is asked, what errors of CUDA mean, and where compiled kernels are kept."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from whisper_spark.decoding import cuda
from whisper_spark.decoding.cuda import Gpu, NoDriverError

# --- the driver's interface, with a library that pretends ---


class PretendedDriver:
    """Answers the calls of ``libcuda.so.1``."""

    def __init__(self, init: int = 0) -> None:
        self._init = init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._init

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGetName(self, name: Any, size: int, index: int) -> int:  # noqa: N802
        name.value = b"pretended H100"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, index: int) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, index: int) -> int:  # noqa: N802
        size._obj.value = 80 * 2**30
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:  # noqa: N802
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0


def test_driver_is_asked_for_version_and_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: PretendedDriver())
    driver = cuda.read_driver()
    assert (driver.cuda, driver.gpus) == ("12.8", (Gpu("pretended H100", (9, 0), 80 * 2**30),))


def test_driver_that_fails_is_told_by_the_name_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: PretendedDriver(init=100))
    with pytest.raises(NoDriverError, match="fails with CUDA_ERROR_NO_DEVICE"):
        cuda.read_driver()


# --- messages and the cache of kernels ---


@pytest.mark.parametrize(
    ("message", "fix"),
    [
        ("Library libcublas.so.12 is not found or cannot be loaded", "pip install nvidia-cublas-cu12"),
        ("Unable to load any of {libcudnn_ops.so.9.1.0}", "pip install nvidia-cudnn-cu12"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver 525 or newer"),
        ("the provided PTX was compiled with an unsupported toolchain.", "570 or newer"),
        ("no kernel image is available for execution on the device", "570 or newer"),
        ("CUDA failed with error out of memory", "nvidia-smi"),
        ("This CTranslate2 package was not compiled with CUDA support", "from PyPI"),
        ("Requested float16 compute type, but the target device or backend do not support efficient float16",
         "compute_type='auto'"),
        ("CUDA failed with error system not yet initialized", "nvidia-fabricmanager"),
    ],
)  # fmt: skip
def test_error_of_ctranslate2_is_followed_by_what_to_do(message: str, fix: str) -> None:
    told = cuda.explained(RuntimeError(message))
    assert told.startswith(message)
    assert fix in told[len(message) :]
    # Not twice, where an explained error is explained again.
    assert cuda.explained(told) == told


def test_error_that_is_not_known_is_left_as_it_is() -> None:
    assert cuda.explained(ValueError("anything else")) == "anything else"


def test_kernels_are_kept_beside_the_models_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_has_driver", lambda: True)
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path))
    # So that monkeypatch restores it.
    monkeypatch.setenv("CUDA_CACHE_PATH", "/elsewhere")
    assert cuda.keep_compiled_kernels() == "/elsewhere"
    monkeypatch.delenv("CUDA_CACHE_PATH")
    folder = tmp_path / "whisper_spark" / "cuda"
    assert cuda.keep_compiled_kernels() == str(folder)
    assert os.environ["CUDA_CACHE_PATH"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_driver_nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_CACHE_PATH", raising=False)
    monkeypatch.setenv("WHISPER_SPARK_CACHE", str(tmp_path))
    monkeypatch.setattr(cuda, "_has_driver", lambda: False)
    assert cuda.keep_compiled_kernels() is None
    assert "CUDA_CACHE_PATH" not in os.environ
    assert list(tmp_path.iterdir()) == []
