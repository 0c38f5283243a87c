"""What CTranslate2 needs from CUDA on a host: driver, libraries, a cache of compiled kernels.

All messages about CUDA are made here, so that the job and the doctor give the same advice for a failure.
Importing this module needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import mmap
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

CACHE_VARIABLE = "CUDA_CACHE_PATH"
"""Environment variable with the folder in which CUDA keeps the kernels that it has compiled."""

DRIVER = "libcuda.so.1"
"""Library of the NVIDIA driver."""

# Versions of the driver API as cuDriverGetVersion() returns them: 1000 * major + 10 * minor.
# CTranslate2's wheels are built with CUDA 12, which runs on every driver that supports CUDA 12.0.
_LEAST_DRIVER = 12000
# They have no machine code for cards from compute capability 9.0 on: the driver compiles their PTX 8.7, which
# drivers know from CUDA 12.8 on.
_LEAST_DRIVER_TO_COMPILE = 12080
_COMPILED_FROM = (9, 0)
_DRIVER_NAMES = {_LEAST_DRIVER: "525", _LEAST_DRIVER_TO_COMPILE: "570"}

_INSTALL_CUBLAS = (
    "pip install nvidia-cublas-cu12 on every executor, or put the folder of libcublas.so.12 into "
    "LD_LIBRARY_PATH of the executors"
)
_INSTALL_CUDNN = (
    "pip install nvidia-cudnn-cu12 on every executor, or install ctranslate2 4.8, which does without cuDNN"
)
_UPDATE_DRIVER = (
    "install NVIDIA driver 525 or newer on the host, 570 or newer for H100 and later cards; a container uses "
    "the driver of its host"
)
_GIVE_MEMORY = (
    "find the processes that hold the GPU's memory with nvidia-smi, give each GPU to one Spark task "
    "(spark.task.resource.gpu.amount=1), or set a smaller batch_size"
)
SHOW_GPU = (
    "install the NVIDIA driver on the host, give a container the GPU (docker run --gpus all; on Kubernetes "
    "the resource nvidia.com/gpu), leave it visible in CUDA_VISIBLE_DEVICES, and check with nvidia-smi"
)
"""What to do when no GPU is visible."""

# Parts of messages of CTranslate2 and CUDA, and what to do.
_FIXES = (
    ("libcublas", _INSTALL_CUBLAS),
    ("libcudnn", _INSTALL_CUDNN),
    ("driver version is insufficient", _UPDATE_DRIVER),
    ("unsupported toolchain", _UPDATE_DRIVER),
    ("no kernel image is available", _UPDATE_DRIVER),
    ("no cuda-capable device", SHOW_GPU),
    ("out of memory", _GIVE_MEMORY),
    ("system not yet initialized", "start nvidia-fabricmanager on the host, in the version of the driver"),
    ("not compiled with cuda", "install ctranslate2 from PyPI on x86-64 Linux: other builds have no CUDA"),
    ("do not support efficient", "set compute_type='auto', or one that this device has"),
    ("uncorrectable ecc", "take this GPU out of service: its memory is damaged (nvidia-smi -q -d ECC)"),
    ("fallen off the bus", "reset or replace this GPU (dmesg names the Xid error)"),
)


def fix_of(message: str) -> str | None:
    """What to do about an error of CTranslate2 or CUDA; ``None`` for an unknown one."""
    lower = message.lower()
    return next((fix for part, fix in _FIXES if part in lower), None)


def explained(error: object) -> str:
    """The message of an error, followed by what to do about it if that is known."""
    message = str(error)
    fix = fix_of(message)
    return f"{message}: {fix}" if fix and fix not in message else message


# --- the driver --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the driver shows to this process.

    :param capability: compute capability, such as ``(9, 0)``.
    :param memory_bytes: size of its memory.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver of this host.

    :param version: newest CUDA version that it supports, as ``1000 * major + 10 * minor``.
    """

    version: int
    gpus: tuple[Gpu, ...]

    @property
    def cuda(self) -> str:
        """The newest CUDA version that it supports, such as ``12.8``."""
        return _dotted(self.version)


class NoDriverError(RuntimeError):
    """The NVIDIA driver is missing or does not work."""


def read_driver() -> Driver:
    """Ask the driver for its version and its GPUs.

    :raises NoDriverError: when there is no driver, or it fails.
    """
    try:
        library = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise NoDriverError(f"no NVIDIA driver was found: {error}") from None
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    code = library.cuInit(0)
    if code:
        raise NoDriverError(f"the NVIDIA driver fails with {_error_name(library, code)}")
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(version.value, tuple(_gpu(library, index) for index in range(count.value)))


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h.
    major, minor = (_attribute(library, index, attribute) for attribute in (75, 76))
    name, size = ctypes.create_string_buffer(100), ctypes.c_size_t()
    library.cuDeviceGetName(name, len(name), index)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), index)
    return Gpu(name.value.decode(errors="replace"), (major, minor), size.value)


def _attribute(library: ctypes.CDLL, index: int, attribute: int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
    return value.value


def _error_name(library: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"


def _has_driver() -> bool:
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


def driver_problem(driver: Driver) -> str | None:
    """Why CTranslate2 cannot compute with this driver, and what to do; ``None`` when it can."""
    new = [gpu for gpu in driver.gpus if gpu.capability >= _COMPILED_FROM]
    needed = _LEAST_DRIVER_TO_COMPILE if new else _LEAST_DRIVER
    if driver.version >= needed:
        return None
    card = f" on {new[0].name}" if new else ""
    return (
        f"the driver is too old: it supports CUDA {driver.cuda}, and CTranslate2 needs {_dotted(needed)}"
        f"{card}. Install NVIDIA driver {_DRIVER_NAMES[needed]} or newer on the host"
    )


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def why_no_gpu() -> str:
    """Why no GPU can be used here, for messages. Call it only when CTranslate2 sees none."""
    try:
        driver = read_driver()
    except NoDriverError as error:
        return str(error)
    if not driver.gpus:
        return "the driver shows no GPU to this process"
    return driver_problem(driver) or "the driver works, but CTranslate2 may have been built without CUDA"


# --- libraries ---------------------------------------------------------------------------------------


@cache
def needed_libraries() -> tuple[str, ...]:
    """CUDA libraries that the installed CTranslate2 opens by name, such as ``libcublas.so.12``.

    Read from its binary, because other builds need other versions, and some need cuDNN. Without the driver's
    library, which :func:`read_driver` checks.
    """
    found = {name for binary in _binaries() for name in _library_names(binary)}
    return tuple(sorted(found)) or ("libcublas.so.12",)


def _binaries() -> list[Path]:
    spec = importlib.util.find_spec("ctranslate2")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    return [*package.glob("*.so"), *package.parent.glob("ctranslate2.libs/libctranslate2*")]


def _library_names(binary: Path) -> set[str]:
    with binary.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {name.decode() for name in re.findall(rb"libcu(?:blas|dnn)\w*\.so\.\d+", content)}


def library_problem(name: str) -> str | None:
    """Why a library cannot be loaded, and what to do; ``None`` when it can."""
    preload_cublas()
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return explained(f"{name} cannot be loaded ({error})")
    return None


def preload_cublas() -> None:
    """Load libcublas.so.12 from the package ``nvidia-cublas-cu12``: CTranslate2 opens it by name only.

    On hosts with CUDA 13, this package is the only source of libcublas.so.12.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in ("libcublasLt.so.12", "libcublas.so.12"):
            library = Path(folder) / "cublas" / "lib" / name
            if library.exists():
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


# --- the cache of compiled kernels -------------------------------------------------------------------


def keep_compiled_kernels() -> str | None:
    """Let CUDA keep compiled kernels beside the models, unless ``CUDA_CACHE_PATH`` names another folder.

    Compiling them for a card that CTranslate2 has no machine code for takes 13 to 16 s (H100). CUDA's default
    folder is below ``HOME``, which YARN containers and images often lack. Call it before CUDA is initialised.

    :return: the folder; ``None`` without a driver, or when CUDA's default is used.
    """
    if not _has_driver():
        return None
    from whisper_spark.decoding.model_cache import ModelError, cache_folder, private_folder

    if os.environ.get(CACHE_VARIABLE):
        return os.environ[CACHE_VARIABLE]
    try:
        # Private, because anyone who can write into it could change what the GPU computes.
        folder = str(private_folder(cache_folder() / "cuda"))
    except (ModelError, OSError) as error:
        log.warning("CUDA compiles its kernels again in each process: %s", error)
        return None
    os.environ[CACHE_VARIABLE] = folder
    return folder
