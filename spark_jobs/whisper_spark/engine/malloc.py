"""glibc's allocator, told to keep what it has got while a model runs on the CPU.

For every layer CTranslate2 asks for the attention scores of a window and gives them back: 46 MB for 23
seconds in whisper-base. From 32 MiB on glibc maps them anew each time, and the kernel fills them with
zeros page by page. Kept, they cost nothing; and because threads share one heap instead of leaving holes in
their own, the process needs less memory, too. ``benchmarks/RESULTS.md`` has figures.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1

_own_process = False


def own_process() -> None:
    """This process does nothing but transcribe: its allocator may be changed for good."""
    global _own_process
    _own_process = True


def keep_freed_memory() -> None:
    """From now on freed memory stays with this process, until :func:`release_freed_memory`.

    Does nothing in processes that do other work, too, nor where the C library is not glibc.
    """
    libc = _glibc() if _own_process else None
    if libc is not None:
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        libc.mallopt(_MMAP_MAX, 0)  # older versions refuse a threshold of more than 32 MiB
        libc.mallopt(_ARENA_MAX, 1)  # other heaps than the first cannot hold more than 64 MiB


def release_freed_memory() -> None:
    """Give the kernel what is free now. Does nothing where the C library is not glibc."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
