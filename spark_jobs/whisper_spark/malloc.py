"""Configures glibc's allocator to keep freed memory in processes that need it again soon.

For every layer CTranslate2 allocates and frees the attention scores of a window: 46 MB for 23 seconds in
whisper-base. From 32 MiB on, glibc maps such a block from the kernel each time, and the kernel zeroes its
pages. Keeping freed memory avoids this. A single heap for all threads also has fewer unused gaps than one
heap per thread, so the process needs less memory. ``benchmarks/RESULTS.md`` has figures. A reader of files
allocates and frees blocks of samples in the same way.
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
    """Declare that this process only transcribes, so that its allocator may be reconfigured permanently."""
    global _own_process
    _own_process = True


def keep_freed_memory() -> None:
    """Keep freed memory in this process until :func:`release_freed_memory` is called.

    Does nothing unless :func:`own_process` was called, and without glibc.
    """
    libc = _glibc() if _own_process else None
    if libc is not None:
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        # Disable mmap instead of raising its threshold, which older versions limit to 32 MiB.
        libc.mallopt(_MMAP_MAX, 0)
        # Only the first heap, because the others are limited to 64 MiB.
        libc.mallopt(_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Return freed memory to the kernel. Does nothing without glibc."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
