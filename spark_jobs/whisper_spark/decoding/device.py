"""Where the model runs: which GPU this process may use, or how many cores."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_spark.contract.options import WhisperOptions

log = logging.getLogger(__name__)


class UnusableDeviceError(RuntimeError):
    """The device loads the model but does not produce usable transcripts."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs.

    :param kind: ``"cuda"`` or ``"cpu"``.
    :param index: number of the GPU on this host; 0 on a CPU.
    :param workers: decoders that share one copy of the weights.
    :param threads: threads of each decoder.
    """

    kind: str
    index: int
    workers: int
    threads: int

    @property
    def name(self) -> str:
        """For logs and messages."""
        return (
            f"GPU {self.index}" if self.kind == "cuda" else f"CPU ({self.workers} x {self.threads} threads)"
        )


def choose_device(options: WhisperOptions) -> Device:
    """The GPU that Spark gave this task, or any GPU, or the CPU, as ``options.device`` asks.

    :raises UnusableDeviceError: when a GPU is asked for and none can be used.
    """
    if options.device != "cpu":
        gpus = _usable_gpus()
        if gpus:
            return Device("cuda", _assigned_gpu(gpus), options.num_workers or 1, options.cpu_threads or 1)
        if options.device == "cuda":
            raise UnusableDeviceError(
                "device='cuda', but CTranslate2 sees no GPU here: check the driver (nvidia-smi), that "
                "libcublas.so.12 can be loaded (pip install nvidia-cublas-cu12), and that Spark gives "
                "executors a GPU (spark.executor.resource.gpu.amount). Or set device='auto'"
            )
    workers = options.num_workers or max(1, available_cores() // (options.cpu_threads or 1))
    return Device("cpu", 0, workers, options.cpu_threads or 1)


def _usable_gpus() -> int:
    _preload_cublas()
    import ctranslate2

    try:
        return int(ctranslate2.get_cuda_device_count())
    except RuntimeError as error:  # a driver too old for this CUDA runtime, for instance
        log.warning("CTranslate2 cannot use the GPU: %s", error)
        return 0


def _preload_cublas() -> None:
    """Make libcublas.so.12 known when it came as a Python package: CTranslate2 opens it by name only.

    On hosts with CUDA 13 this package is the only libcublas.so.12 there is.
    """
    import ctypes
    import importlib.util

    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("libcublasLt.so.12", "libcublas.so.12"):
            library = Path(folder) / "cublas" / "lib" / name
            if library.exists():
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _assigned_gpu(gpus: int) -> int:
    context = _task_context()
    if context is None:
        return 0
    addresses = context.resources().get("gpu")
    if addresses is not None and addresses.addresses:
        return _visible_index(str(addresses.addresses[0]), gpus)
    return int(context.partitionId()) % gpus  # Spark does not manage the GPUs: spread over those there are


def _visible_index(address: str, gpus: int) -> int:
    """CUDA's number for the GPU that Spark calls ``address``: it counts only those that this process sees."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if address in visible:
        return visible.index(address)
    if gpus == 1:  # in a container that was given just this one
        return 0
    if address.isdigit() and int(address) < gpus:
        return int(address)
    raise UnusableDeviceError(
        f"Spark gave this task the GPU {address!r}, but this process sees {gpus} GPUs, numbered from 0: let "
        "the discovery script (spark.executor.resource.gpu.discoveryScript) print those numbers"
    )


def available_cores() -> int:
    """Cores that Spark gave this task, or those of the machine that this process may use."""
    context = _task_context()
    if context is not None:
        return int(context.cpus())
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _task_context() -> Any:
    if "pyspark" not in sys.modules:  # never import Spark just to learn that it is not there
        return None
    from pyspark import TaskContext

    return TaskContext.get()
