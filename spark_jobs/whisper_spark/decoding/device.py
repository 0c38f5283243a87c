"""Chooses the device that runs the model: a GPU that this process may use, or cores of the CPU."""

from __future__ import annotations

import logging
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

from whisper_spark.contract.options import WhisperOptions
from whisper_spark.decoding import cuda

log = logging.getLogger(__name__)

TASK_CORES = "whisper.task.cores"
"""Local property of a Spark job: number of cores for each task."""

GPU_TASKS = "whisper.gpu.tasks"
"""Local property of a Spark job: number of tasks that share a GPU."""

# Several decoders keep a GPU busy: while one copies, splits texts into words, picks its next batch or
# launches kernels one by one, the others compute. On an H200 with 16 cores, two decoders transcribed calls
# with whisper-base at 1,551 times real time, three at 1,937 and four at 2,152. Each of them needs a core to
# launch its kernels, and the readers need some too.
_MOST_GPU_WORKERS = 4
_CORES_FOR_TWO = 4
_CORES_A_WORKER = 4

# What compute_type="auto" takes: the first of these that the device computes efficiently. Cards before Volta
# have no fast float16, and from compute capability 6.1 on (P4, P40) fast int8. bfloat16 and int8_float16 are
# never taken: float16 has more digits than the one, and is about as fast as the other.
_COMPUTE_TYPES = {
    "cuda": ("float16", "int8_float32", "float32"),
    "cpu": ("int8", "int8_float32", "float32"),
}


class UnusableDeviceError(RuntimeError):
    """The requested device is not available, or does not produce usable transcripts."""


@dataclass(frozen=True, slots=True)
class Device:
    """The device that runs the model.

    :param kind: ``"cuda"`` or ``"cpu"``.
    :param index: index of the GPU among those that this process sees; 0 for a CPU.
    :param workers: number of decoders that share one copy of the weights.
    :param threads: number of threads of each decoder.
    :param tasks: number of Spark tasks that share the GPU.
    """

    kind: str
    index: int
    workers: int
    threads: int
    tasks: int = 1

    @property
    def name(self) -> str:
        """Name for logs and messages."""
        return (
            f"GPU {self.index}" if self.kind == "cuda" else f"CPU ({self.workers} x {self.threads} threads)"
        )


def choose_device(options: WhisperOptions) -> Device:
    """The GPU that Spark assigned to this task, else any GPU, else the CPU, as ``options.device`` allows.

    :raises UnusableDeviceError: when ``device="cuda"`` and no GPU can be used, or the one that Spark assigned
        is not visible.
    """
    if options.device != "cpu":
        gpus, problem = usable_gpus()
        if gpus:
            index, tasks = _assigned_gpu(gpus), tasks_of_gpu()
            workers = options.num_workers or _gpu_workers(tasks)
            return Device("cuda", index, workers, options.cpu_threads or 1, tasks)
        if options.device == "cuda":
            raise UnusableDeviceError(
                f"device='cuda', but CTranslate2 sees no GPU on host {platform.node()} ({problem}). Check "
                "the driver (nvidia-smi), that libcublas.so.12 can be loaded (pip install "
                "nvidia-cublas-cu12), and that Spark gives executors a GPU "
                "(spark.executor.resource.gpu.amount). Or set device='auto'"
            )
    workers = options.num_workers or max(1, available_cores() // (options.cpu_threads or 1))
    return Device("cpu", 0, workers, options.cpu_threads or 1)


def _gpu_workers(tasks: int) -> int:
    """Number of decoders on a GPU that several tasks share, if its memory has room for their batches."""
    cores = available_cores()
    # The decoders of other tasks keep it busy as well.
    if tasks > 1 or cores < _CORES_FOR_TWO:
        return 1
    return max(2, min(cores // _CORES_A_WORKER, _MOST_GPU_WORKERS))


def choose_compute_type(options: WhisperOptions, device: Device) -> str:
    """CTranslate2's type of weights and computation: that of the options, or the best one of the device."""
    if options.compute_type != "auto":
        return options.compute_type
    import ctranslate2

    wanted = _COMPUTE_TYPES[device.kind]
    try:
        supported = ctranslate2.get_supported_compute_types(device.kind, device.index)
    except (RuntimeError, ValueError) as error:
        # Loading the model is going to fail for the same reason, with an explanation.
        log.debug("CTranslate2 does not tell what %s computes: %s", device.name, error)
        supported = set()
    return next((name for name in wanted if name in supported), wanted[0])


def usable_gpus() -> tuple[int, str | None]:
    """Number of GPUs that CTranslate2 can use in this process; if none, also why."""
    cuda.preload_cublas()
    cuda.keep_compiled_kernels()
    import ctranslate2

    try:
        gpus = int(ctranslate2.get_cuda_device_count())
    except RuntimeError as error:
        # For instance, the driver is too old for this CUDA runtime.
        problem = cuda.explained(error)
        log.warning("CTranslate2 cannot use the GPU: %s", problem)
        return 0, problem
    return gpus, None if gpus else cuda.why_no_gpu()


def _assigned_gpu(gpus: int) -> int:
    context = _task_context()
    if context is None:
        return 0
    addresses = context.resources().get("gpu")
    if addresses is not None and addresses.addresses:
        return _visible_index(str(addresses.addresses[0]), gpus)
    # Spark does not manage the GPUs: distribute the tasks over them.
    return int(context.partitionId()) % gpus


def _visible_index(address: str, gpus: int) -> int:
    """CUDA's index of the GPU with Spark's address. CUDA counts only the GPUs that this process sees."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if address in visible:
        return visible.index(address)
    # In a container with a single GPU, its index is 0 whatever its address on the host.
    if gpus == 1:
        return 0
    if address.isdigit() and int(address) < gpus:
        return int(address)
    raise UnusableDeviceError(
        f"Spark gave this task the GPU {address!r}, but this process sees {gpus} GPUs, numbered from 0: let "
        "the discovery script (spark.executor.resource.gpu.discoveryScript) print those numbers"
    )


def tasks_of_gpu() -> int:
    """Number of Spark tasks that share the GPU of this task."""
    context = _task_context()
    return 1 if context is None else int(context.getLocalProperty(GPU_TASKS) or 1)


def available_cores() -> int:
    """Number of cores for this Spark task; without Spark, those that this process may use.

    They are its ``spark.task.cpus``, or its part of the cores of the executor if GPUs allow fewer tasks than
    cores do.
    """
    context = _task_context()
    if context is not None:
        return max(int(context.cpus()), int(context.getLocalProperty(TASK_CORES) or 1))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _task_context() -> Any:
    # Without pyspark loaded there is no task, and importing it would be slow.
    if "pyspark" not in sys.modules:
        return None
    from pyspark import TaskContext

    return TaskContext.get()
