"""Who reads the files: threads of this process, or processes of their own."""

from __future__ import annotations

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.device import Device, available_cores

MOST_READERS = 16
"""Files that are read at the same time, whatever ``prefetch_files`` says."""

_LEAST_CORES = 6
# Fewer cores, each of which reads at about 290 times real time, are kept busy by threads as well.


def reader_processes(options: WhisperOptions, device: Device) -> int:
    """How many processes are to read files, at most ``prefetch_files``; 0: threads do.

    A process takes some 100 MB and a second to start, which only a GPU is worth.
    """
    if options.prefetch_processes is not None:
        return min(options.prefetch_processes, options.prefetch_files)
    cores = available_cores()
    if device.kind != "cuda" or cores < _LEAST_CORES:
        return 0
    return min(cores, options.prefetch_files, MOST_READERS)
