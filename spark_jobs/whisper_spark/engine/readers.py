"""Chooses whether files are read by threads of this process or by other processes."""

from __future__ import annotations

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.device import Device, available_cores

MOST_READERS = 16
"""Maximum number of files that are read at the same time, even with a larger ``prefetch_files``."""

# With fewer cores, threads are as fast as processes: each core reads at 400 to 600 times real time.
_LEAST_CORES = 4


def reader_processes(options: WhisperOptions, device: Device) -> int:
    """Number of processes that read files, at most ``prefetch_files``; 0 to use threads.

    A process takes about 100 MB of memory and a second to start, which only pays off with a GPU.
    """
    if options.prefetch_processes is not None:
        return min(options.prefetch_processes, options.prefetch_files)
    cores = available_cores()
    if device.kind != "cuda" or cores < _LEAST_CORES:
        return 0
    return min(cores, options.prefetch_files, MOST_READERS)
