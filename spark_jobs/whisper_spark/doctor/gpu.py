"""Checks of the GPU: driver, CUDA libraries, compute type, memory, and the cache of compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.cuda import NoDriverError
from whisper_spark.doctor.checks import Check, Status, checked, ok

_GIB = 2**30

# Less than this share of free memory means that another process uses the GPU.
_LEAST_FREE = 0.5


def gpu_checks(options: WhisperOptions) -> Iterator[Check]:
    """The checks of the GPU. Without one, a single check: it failed if ``device="cuda"`` requires a GPU."""
    if options.device == "cpu":
        yield ok("GPU", "not used: device='cpu'")
        return
    driver = checked("NVIDIA driver", lambda: check_driver(options))
    yield driver
    # Nothing else can work, or is needed, without a driver.
    if driver.status == "failed" or not _has_gpus():
        return
    yield checked("CUDA libraries", lambda: check_libraries(options))
    yield checked("GPU", lambda: check_gpus(options))
    yield checked("compute type", lambda: check_compute_type(options))
    yield checked("GPU memory", check_memory)
    yield checked("compiled kernels", check_kernel_cache)


def _severity(options: WhisperOptions) -> Status:
    """``device="auto"`` uses the CPU where the GPU does not work, so that is only a warning."""
    return "failed" if options.device == "cuda" else "warning"


def _has_gpus() -> bool:
    try:
        return bool(cuda.read_driver().gpus)
    except NoDriverError:
        return False


def check_driver(options: WhisperOptions) -> Check:
    """The NVIDIA driver: whether there is one, and whether it is new enough for the cards."""
    try:
        driver = cuda.read_driver()
    except NoDriverError as error:
        if options.device == "cuda" or _has_device_files():
            return Check("NVIDIA driver", _severity(options), str(error), cuda.SHOW_GPU)
        return ok("NVIDIA driver", "none: the CPU is used")
    gpus = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB, compute capability {gpu.capability[0]}."
        f"{gpu.capability[1]})"
        for gpu in driver.gpus
    )
    if not driver.gpus:
        return Check("NVIDIA driver", _severity(options), "it shows no GPU to this process", cuda.SHOW_GPU)
    problem = cuda.driver_problem(driver)
    if problem:
        found, _, fix = problem.partition(". ")
        return Check("NVIDIA driver", _severity(options), f"{found}; {gpus}", fix)
    return ok("NVIDIA driver", f"supports CUDA {driver.cuda}; {gpus}")


def _has_device_files() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def check_libraries(options: WhisperOptions) -> Check:
    """The libraries that CTranslate2 opens by name: libcublas, and libcudnn where its build needs it."""
    names = cuda.needed_libraries()
    problems = [problem for name in names if (problem := cuda.library_problem(name))]
    if problems:
        found, _, fix = problems[0].rpartition("): ")
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Check("CUDA libraries", _severity(options), f"{found}){others}", fix)
    without = "" if any("cudnn" in name for name in names) else "; this CTranslate2 needs no libcudnn"
    return ok("CUDA libraries", f"{', '.join(names)} can be loaded{without}")


def check_gpus(options: WhisperOptions) -> Check:
    """How many GPUs CTranslate2 can use, and which of them this task has."""
    from whisper_spark.decoding.device import choose_device, usable_gpus

    gpus, problem = usable_gpus()
    if not gpus:
        return Check("GPU", _severity(options), f"CTranslate2 sees none: {problem}", cuda.SHOW_GPU)
    return ok("GPU", f"CTranslate2 sees {gpus}; this task uses {choose_device(options).name}")


def check_compute_type(options: WhisperOptions) -> Check:
    """Whether the GPU can compute with the weight type of the options."""
    import ctranslate2

    supported = sorted(ctranslate2.get_supported_compute_types("cuda"))
    wanted = options.compute_type
    found = f"{wanted}; the GPU can do {', '.join(supported)}"
    if wanted not in ("auto", "default", *supported):
        return Check("compute type", "failed", found, "set compute_type='auto', or one that the GPU can do")
    return ok("compute type", found)


def check_memory() -> Check:
    """The free memory of the GPU of this task."""
    from whisper_spark.decoding.batch_size import free_gpu_bytes
    from whisper_spark.decoding.device import choose_device

    device = choose_device(WhisperOptions(device="cuda"))
    free, total = free_gpu_bytes(device), cuda.read_driver().gpus[device.index].memory_bytes
    if free is None:
        return ok("GPU memory", "unknown")
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free on {device.name}"
    if free < _LEAST_FREE * total:
        fix = "find the processes that hold the rest with nvidia-smi, unless tasks share the GPU on purpose"
        return Check("GPU memory", "warning", found, fix)
    return ok("GPU memory", found)


def check_kernel_cache() -> Check:
    """The folder in which CUDA keeps the kernels that it compiles for cards such as the H100."""
    folder = cuda.keep_compiled_kernels()
    if folder is None or not os.access(folder, os.W_OK):
        found = (
            f"{folder or 'the folder of CUDA'} cannot be written: new cards compile for 13 to 16 s each time"
        )
        fix = (
            f"set {cuda.CACHE_VARIABLE} of the executors to a folder that lasts and that only they can write"
        )
        return Check("compiled kernels", "warning", found, fix)
    return ok("compiled kernels", f"kept in {folder}")
