"""Chooses batch size, in windows of 30 seconds, and number of decoders by device, model and memory."""

from __future__ import annotations

import dataclasses
import logging

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding import gpu_memory
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model_shape import LARGE_WIDTH, ModelShape
from whisper_spark.decoding.passes import MAX_LENGTH, MAX_NEW_TOKENS, RETRY_BEAM
from whisper_spark.decoding.previous_text import LONGEST

log = logging.getLogger(__name__)

# Larger batches are not faster on an H100 with any model (benchmarks/RESULTS.md).
_GPU_BATCH = 64
_CPU_BATCH = 4

# Least size of the weights of medium and larger models, which need 250 MB per window for cross-attention.
_LARGE_BYTES = 1_000_000_000
_CPU_BATCH_OF_LARGE = 2

# Each decoder has a batch of its own. If the memory has room for fewer windows than these in each, fewer
# decoders with larger batches are better: they read the weights less often.
_LEAST_BATCH_OF_TWO = 24
_LEAST_BATCH_OF_MORE = 40

# A batch of a large model occupies the GPU longer, so that more than three decoders are no faster.
_MOST_WORKERS_OF_LARGE = 3

# Tokens of a prompt besides text: start, language, task, and so on.
_SPECIAL_TOKENS = 8

# What a process takes on a GPU besides weights and batches: CUDA's context, and the kernels of CTranslate2.
_PROCESS_BYTES = 600_000_000

# Share of the free memory to use; the rest is for fragmentation, cuBLAS and other processes on the GPU.
_USABLE = 0.8


def choose_batch_size(
    options: WhisperOptions, device: Device, shape: ModelShape, weights_bytes: int, free_bytes: int | None
) -> int:
    """Number of windows of 30 seconds in a batch: that of the options, or one for device, model and memory.

    It never exceeds the largest batch that CTranslate2 computes correctly; reducing ``options.batch_size``
    logs a warning.

    :param weights_bytes: size of ``model.bin``.
    :param free_bytes: free memory of the GPU with the model loaded; ``None``: unknown, or no GPU.
    """
    asked, most = options.batch_size, shape.most_windows(FULL_FRAMES)
    if asked is not None and asked > most:
        log.warning(
            "batch_size=%d is cut to %d: CTranslate2 computes larger batches of %s (%d heads) wrong",
            asked,
            most,
            options.model,
            shape.heads,
        )
    if asked is None and device.kind == "cuda":
        asked = _GPU_BATCH if free_bytes is None else _that_fits(options, device, shape, free_bytes)
    elif asked is None:
        asked = _CPU_BATCH_OF_LARGE if weights_bytes > _LARGE_BYTES else _CPU_BATCH
    return min(asked, most)


def with_fitting_workers(
    options: WhisperOptions, device: Device, shape: ModelShape, weights_bytes: int, total_bytes: int | None
) -> Device:
    """The device with fewer decoders, if its memory is too small for the batches of all.

    A number that the options ask for is left as it is.

    :param weights_bytes: size of ``model.bin``.
    :param total_bytes: memory of the GPU; ``None``: unknown, or no GPU.
    """
    if total_bytes is None or options.num_workers is not None:
        return device
    most = min(device.workers, _MOST_WORKERS_OF_LARGE) if shape.width >= LARGE_WIDTH else device.workers
    for workers in range(most, 1, -1):
        fewer = dataclasses.replace(device, workers=workers)
        least = options.batch_size or (_LEAST_BATCH_OF_MORE if workers > 2 else _LEAST_BATCH_OF_TWO)
        if _that_fits(options, fewer, shape, _part(fewer, weights_bytes, total_bytes)) >= least:
            return fewer
    return dataclasses.replace(device, workers=1)


def share_of_memory(device: Device, weights_bytes: int, free: int, total: int) -> int:
    """Bytes of a GPU that this process may fill with batches, when several tasks share it.

    The tasks start at about the same time, so that none of them sees what the others are going to take.

    :param free: free bytes, with the model loaded.
    :param total: bytes of the GPU.
    """
    return free if device.tasks == 1 else min(free, _part(device, weights_bytes, total))


def _part(device: Device, weights_bytes: int, total: int) -> int:
    return max(total // device.tasks - weights_bytes - _PROCESS_BYTES, 0)


def _that_fits(options: WhisperOptions, device: Device, shape: ModelShape, free_bytes: int) -> int:
    number_bytes = 4 if options.compute_type in ("float32", "int8_float32") else 2
    per_window = shape.window_bytes(tokens=_tokens_in_beams(options), number_bytes=number_bytes)
    fitting = int(free_bytes * _USABLE / max(device.workers, 1) / per_window)
    return max(1, min(_GPU_BATCH, fitting))


def _tokens_in_beams(options: WhisperOptions) -> int:
    """Maximum number of tokens in all beams of a window together, prompts included."""
    own_prompt = options.initial_prompt or options.hotwords
    prompt = MAX_LENGTH - MAX_NEW_TOKENS if own_prompt else _SPECIAL_TOKENS
    refined = options.beam_size * min(prompt + LONGEST + MAX_NEW_TOKENS, MAX_LENGTH)
    again = max(RETRY_BEAM, options.beam_size, options.best_of) * (prompt + MAX_NEW_TOKENS)
    return max(refined, again)


def total_gpu_bytes(device: Device) -> int | None:
    """Memory of the GPU, in bytes; ``None`` when it is unknown, or there is no GPU."""
    gpu = _gpu(device)
    return gpu.total_bytes() if gpu else None


def free_gpu_bytes(device: Device, weights_bytes: int = 0) -> int | None:
    """Memory of the GPU that batches may fill, in bytes; ``None`` when it is unknown, or there is no GPU.

    :param weights_bytes: size of the loaded model.
    """
    gpu = _gpu(device)
    if gpu is None:
        return None
    return share_of_memory(device, weights_bytes, gpu.free_bytes(), gpu.total_bytes())


def _gpu(device: Device) -> gpu_memory.Gpu | None:
    return gpu_memory.gpu(device.index) if device.kind == "cuda" else None
