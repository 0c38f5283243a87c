"""Runs the Silero voice detector: the probability of speech in each 32 ms of a stream of samples."""

from __future__ import annotations

import threading
from functools import lru_cache
from importlib.resources import files as resources
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_spark.audio.channels import Samples
from whisper_spark.audio.silero_weights import load_weights
from whisper_spark.contract import SAMPLE_RATE

FRAME = 512
"""Samples per frame of the Silero VAD at 16 kHz (32 ms)."""

# Samples of the previous frame that Silero expects before each frame, and mirrored samples behind it.
_CONTEXT = 64
_MIRRORED = 64

# Silero sees four spectra of each frame, of 256 samples each.
_WINDOW, _STEP = 256, 128
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)

# Size of the state that Silero keeps from frame to frame.
_STATE = 128

# Frames of a call (2 seconds). Their arrays fit into the second-level cache of a core and are small enough
# for the allocator to keep: with 312 frames, an hour of audio causes 166,000 page faults, with 64 none.
_BATCH = 64

# Silero is not run after this many frames (two minutes) of digital silence, because gaps may last for hours.
_SILENT_FRAMES = 120 * SAMPLE_RATE // FRAME

Probabilities = npt.NDArray[np.float32]


class VoiceDetector:
    """Computes the speech probability of each frame, and keeps Silero's state from block to block."""

    def __init__(self) -> None:
        self._session = _network()
        self._forget()
        self._rest = np.zeros(0, np.float32)
        # Number of frames of digital silence directly before the next frame.
        self._silent = 0

    def _forget(self) -> None:
        self._h = np.zeros((1, 1, _STATE), np.float32)
        self._c = np.zeros((1, 1, _STATE), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    def push(self, samples: Samples) -> Probabilities:
        """The probabilities of the frames that are complete now."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:].copy()
        return self._heard(samples[:whole])

    def finish(self) -> Probabilities:
        """The probability of the last frame, if the end of the file cuts it."""
        rest, self._rest = self._rest, np.zeros(0, np.float32)
        return self._run(np.pad(rest, (0, FRAME - len(rest)))) if len(rest) else np.zeros(0, np.float32)

    def _heard(self, samples: Samples) -> Probabilities:
        """Probabilities of whole frames. Silero is not run for long digital silence."""
        if samples[-FRAME:].any():
            self._silent = 0
            return self._run(samples)
        if samples.any():
            silent = len(samples) - int(np.flatnonzero(samples)[-1]) - 1
            self._silent = silent // FRAME
            return self._run(samples)
        frames = len(samples) // FRAME
        asked = min(max(_SILENT_FRAMES - self._silent, 0), frames)
        self._silent += frames
        if asked < frames:
            probabilities = np.pad(self._run(samples[: asked * FRAME]), (0, frames - asked))
            self._forget()
            return probabilities
        return self._run(samples)

    def _run(self, samples: Samples) -> Probabilities:
        if not len(samples):
            return np.zeros(0, np.float32)
        stream = np.concatenate([self._context, samples])
        self._context = stream[-_CONTEXT:]
        frames = np.lib.stride_tricks.sliding_window_view(stream, _CONTEXT + FRAME)[::FRAME]
        found = []
        for first in range(0, len(frames), _BATCH):
            inputs = {"magnitudes": _magnitudes(frames[first : first + _BATCH]), "h": self._h, "c": self._c}
            probabilities, self._h, self._c = self._session.run(None, inputs)
            found.append(probabilities)
        return np.concatenate(found).reshape(-1)


def _magnitudes(frames: Samples) -> Samples:
    """The spectra of frames with their context: from (frames, 576) to (frames, 4 spectra x 129)."""
    count, length = frames.shape
    padded = np.empty((count, length + _MIRRORED), np.float32)
    padded[:, :length] = frames
    padded[:, length:] = frames[:, length - 2 : length - 2 - _MIRRORED : -1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW, axis=1)[:, ::_STEP]
    spectra = np.fft.rfft(windows * _HANN)
    power = np.square(spectra.real)
    power += np.square(spectra.imag)
    # NumPy 1 computes the transform in float64.
    return np.sqrt(power, dtype=np.float32).reshape(count, -1)


_lock = threading.Lock()


def _network() -> Any:
    with _lock:
        return _load_network()


@lru_cache(maxsize=1)
def _load_network() -> Any:
    """Silero v6 as ``scripts/voice_detector.py`` arranges it, with the weights of faster-whisper."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    # One thread, because files are processed in parallel.
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 4
    weights = load_weights()
    settings.add_external_initializers(
        list(weights), [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    )
    graph = (resources("whisper_spark") / "assets" / "silero_graph.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, sess_options=settings, providers=["CPUExecutionProvider"])
    # The values are buffers of NumPy, and not every version of onnxruntime is known to copy them.
    session.weights = weights
    return session
