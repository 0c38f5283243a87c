"""Rows of the encoder's output: selected on the GPU, or on the host where that cannot be done."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from whisper_spark.decoding import encoder_output, gpu_memory
from whisper_spark.decoding.encoder_output import Encoded, EncodedRow, gathered
from whisper_spark.decoding.gpu_memory import Gpu, GpuMemoryError


@dataclass
class PretendedDriver:
    """``libcuda.so.1`` with the host's memory as that of the GPU: there is none in these tests.

    :param room: bytes that can be allocated.
    """

    room: int = 2**20
    held: dict[int, Any] = field(default_factory=dict)
    contexts: int = 0

    def __getattr__(self, name: str) -> Any:
        if name not in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"):
            raise AttributeError(name)
        return lambda *arguments: 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.contexts += 1
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.contexts -= 1
        return 0

    def cuMemAllocAsync(self, address: Any, size: ctypes.c_size_t, stream: Any) -> int:  # noqa: N802
        if size.value > self.room:
            return 2
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.held[address._obj.value] = memory
        return 0

    def cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        return 0

    def cuMemFreeAsync(self, address: ctypes.c_uint64, stream: Any) -> int:  # noqa: N802
        del self.held[address.value]
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 3, 5
        return 0


class OnGpu:
    """A ``ctranslate2.StorageView`` in the memory of the pretended GPU."""

    device, device_index, dtype = "cuda", 0, None

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers
        self.shape = numbers.shape
        self.__cuda_array_interface__ = numbers.__array_interface__


def numbers(seed: int, windows: int = 5) -> Any:
    return np.random.default_rng(seed).normal(size=(windows, 7, 3)).astype(np.float16)


def read(array: Any, driver: PretendedDriver) -> Any:
    face = array.__cuda_array_interface__
    memory = driver.held[face["data"][0]]
    return np.frombuffer(memory, face["typestr"], int(np.prod(face["shape"]))).reshape(face["shape"])


def test_rows_of_several_arrays_become_one_in_their_order() -> None:
    driver = PretendedDriver()
    one, other = numbers(1), numbers(2)
    found = Gpu(0, driver).gathered([(OnGpu(one), 4), (OnGpu(other), 0), (OnGpu(one), 1), (OnGpu(one), 4)])
    np.testing.assert_array_equal(read(found, driver), np.stack([one[4], other[0], one[1], one[4]]))
    assert driver.contexts == 0


def test_memory_is_given_back_with_the_array() -> None:
    driver = PretendedDriver()
    found = Gpu(0, driver).gathered([(OnGpu(numbers(1)), 0)])
    assert len(driver.held) == 1
    del found
    gc.collect()
    assert not driver.held
    assert driver.contexts == 0


def test_too_little_memory_reads_like_that_of_the_model_so_that_batches_are_halved() -> None:
    from whisper_spark.engine.pipeline import is_out_of_memory

    with pytest.raises(GpuMemoryError) as failure:
        Gpu(0, PretendedDriver(room=10)).gathered([(OnGpu(numbers(1)), 0)])
    assert is_out_of_memory(failure.value)


def test_free_and_total_memory_are_those_of_the_driver() -> None:
    gpu = Gpu(0, PretendedDriver())
    assert (gpu.free_bytes(), gpu.total_bytes()) == (3, 5)


def test_rows_on_a_gpu_stay_there(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = PretendedDriver()
    gpu = Gpu(0, driver)
    monkeypatch.setattr(gpu_memory, "gpu", lambda index: gpu)
    monkeypatch.setattr(encoder_output, "storage_view", lambda array: array)
    one, other = numbers(1), numbers(2)
    some = Encoded(OnGpu(one)).rows([3, 1])
    np.testing.assert_array_equal(read(some.on_device, driver), one[[3, 1]])
    rows = [EncodedRow(Encoded(OnGpu(other)), 2), EncodedRow(Encoded(OnGpu(one)), 0)]
    np.testing.assert_array_equal(read(gathered(rows).on_device, driver), np.stack([other[2], one[0]]))


def test_rows_on_the_host_are_selected_there() -> None:
    one, other = numbers(1), numbers(2)
    some = Encoded.of(one).rows([3, 1])
    np.testing.assert_array_equal(some.on_host, one[[3, 1]])
    rows = [EncodedRow(Encoded.of(other), 2), EncodedRow(some, 0)]
    np.testing.assert_array_equal(gathered(rows).on_host, np.stack([other[2], one[3]]))


def test_all_rows_in_their_order_are_no_copy() -> None:
    whole = Encoded.of(numbers(1))
    assert whole.rows(range(5)) is whole


def test_a_driver_without_these_functions_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert gpu_memory.gpu.__wrapped__(0) is None


def test_what_is_on_a_gpu_takes_no_memory_of_the_host() -> None:
    assert EncodedRow(Encoded(OnGpu(numbers(1))), 0).host_bytes == 0
    assert EncodedRow(Encoded.of(numbers(1)), 0).host_bytes == 7 * 3 * 2
