"""Memory of a GPU, through the CUDA driver: how much is free, and arrays that never leave it.

CTranslate2 keeps the output of its encoder on the GPU, but cannot select rows of it. The driver can copy
them from one place there to another, without a detour through the host. Both use the primary context of the
GPU, so that each can read what the other has written.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from whisper_spark.decoding.cuda import DRIVER

# CU_STREAM_NON_BLOCKING in cuda.h: do not wait for the default stream.
_NON_BLOCKING = 1

# CUDA_ERROR_OUT_OF_MEMORY in cuda.h.
_OUT_OF_MEMORY = 2


class GpuMemoryError(RuntimeError):
    """The driver cannot provide or copy memory of the GPU."""


class Gpu:
    """A GPU as the CUDA driver shows it. Thread-safe.

    :param index: among the GPUs that this process sees.
    :param driver: the driver's library.
    :raises GpuMemoryError: when it cannot be used.
    """

    def __init__(self, index: int, driver: Any) -> None:
        self._driver = driver
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._check(driver.cuInit(0))
        self._check(driver.cuDeviceGet(ctypes.byref(device), index))
        # Kept until the process ends: the model needs this context as well.
        self._check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
        self._device, self._context = device, context
        with self._current():
            self._check(driver.cuStreamCreate(ctypes.byref(stream), _NON_BLOCKING))
        self._stream = stream

    def total_bytes(self) -> int:
        """Size of its memory."""
        return self._memory()[1]

    def free_bytes(self) -> int:
        """Memory that no process uses."""
        return self._memory()[0]

    def _memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with self._current():
            self._check(self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        return free.value, total.value

    def gathered(self, rows: Sequence[tuple[Any, int]]) -> GpuArray:
        """A new array of rows of other arrays.

        :param rows: arrays with ``__cuda_array_interface__`` and the position of a row in each. All rows have
            the same shape and type, and have been computed.
        :raises GpuMemoryError: when the memory is too small.
        """
        faces = [array.__cuda_array_interface__ for array, _ in rows]
        shape, kind = tuple(faces[0]["shape"][1:]), faces[0]["typestr"]
        size = math.prod(shape) * np.dtype(kind).itemsize
        target = ctypes.c_uint64()
        with self._current():
            self._check(
                self._driver.cuMemAllocAsync(
                    ctypes.byref(target), ctypes.c_size_t(size * len(rows)), self._stream
                )
            )
            gathered = GpuArray(self, target, (len(rows), *shape), kind)
            for place, (face, (_, index)) in enumerate(zip(faces, rows, strict=True)):
                copied = self._driver.cuMemcpyDtoDAsync_v2(
                    ctypes.c_uint64(target.value + place * size),
                    ctypes.c_uint64(face["data"][0] + index * size),
                    ctypes.c_size_t(size),
                    self._stream,
                )
                self._check(copied)
            self._check(self._driver.cuStreamSynchronize(self._stream))
        return gathered

    def free(self, address: ctypes.c_uint64) -> None:
        """Give back memory of :meth:`gathered`."""
        with self._current():
            self._driver.cuMemFreeAsync(address, self._stream)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context of the GPU that of this thread."""
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, code: int) -> None:
        if code == _OUT_OF_MEMORY:
            raise GpuMemoryError("CUDA failed with error out of memory")
        if code:
            raise GpuMemoryError(f"the CUDA driver fails with error {code}")


class GpuArray:
    """An array in the memory of a GPU, which is given back with this object.

    ``ctranslate2.StorageView.from_array`` takes it without a copy.
    """

    def __init__(self, gpu: Gpu, address: ctypes.c_uint64, shape: tuple[int, ...], typestr: str) -> None:
        self._gpu = gpu
        self._address = address
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address.value, False),
            "version": 3,
        }

    def __del__(self) -> None:
        # The driver may be gone at the end of the process.
        with contextlib.suppress(Exception):
            self._gpu.free(self._address)


@cache
def gpu(index: int) -> Gpu | None:
    """A GPU of this process; ``None`` when the driver is missing, too old for this, or does not work."""
    try:
        return Gpu(index, ctypes.CDLL(DRIVER))
    except (OSError, AttributeError, GpuMemoryError):
        return None
