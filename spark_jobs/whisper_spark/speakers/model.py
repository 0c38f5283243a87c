"""Finds and loads the model that turns speech into speaker embeddings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_spark.audio.decode import open_audio
from whisper_spark.audio.known_clip import clip_bytes
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model import ModelError, model_folder, verify_sha256
from whisper_spark.decoding.model_cache import ModelKind
from whisper_spark.speakers.fbank import BINS, kaldi_fbank

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

SPEAKER_MODEL = ModelKind("speaker model", weights="*.onnx", needed=("*.onnx",), wanted=("*.onnx",))
"""A speaker embedding model in ONNX format."""

_INPUTS = (
    f"Two inputs are understood: waveforms (batch, samples) at 16 kHz, and Kaldi filter banks "
    f"(batch, frames, {BINS}), each of any length"
)


# Waveforms that are embedded at once. The arrays of a large model and of its filter banks take about 10 MB
# for each, and a window of many short sounds has hundreds. A GPU needs larger batches than a CPU.
_BATCH, _GPU_BATCH = 8, 32

# Samples of each of the sounds that check a model.
_CHECKED = SAMPLE_RATE * 3 // 2


class SpeakerModel:
    """Computes speaker embeddings, on the GPU if onnxruntime can use it. Thread-safe.

    The input is told by its shape: waveforms (batch, samples) at 16 kHz, or Kaldi filter banks
    (batch, frames, 80). Filter banks are computed as WeSpeaker does, or as 3D-Speaker does for its models.

    ``provider`` is that of onnxruntime, and ``likeness`` is the similarity of two stretches of speech of one
    speaker, as measured with a known clip.

    :param path: an ``.onnx`` file.
    :param device: the device of the Whisper model; embeddings use the same GPU.
    :raises ModelError: when it cannot be loaded, has another input, or computes no embeddings.
    """

    def __init__(self, path: Path, device: Device) -> None:
        self._path = path
        self._session = _session(path, device)
        # onnxruntime falls back to the CPU when a library of CUDA is missing.
        self.provider = str(self._session.get_providers()[0])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _is_understood(inputs[0].shape):
            shapes = ", ".join(f"{i.name} {i.shape} of {i.type}" for i in inputs)
            raise ModelError(f"{path} takes {shapes}. {_INPUTS}")
        self._input, self._output = inputs[0].name, outputs[0].name
        self._fbank = len(inputs[0].shape) == 3
        on_gpu = self.provider == "CUDAExecutionProvider"
        self._batch = 1 if inputs[0].shape[0] == 1 else _GPU_BATCH if on_gpu else _BATCH
        self._like_3d_speaker = self._is_of_3d_speaker()
        # A GPU computes one batch at a time.
        self._turn = threading.Lock() if on_gpu else nullcontext()
        self.likeness = self._likeness()

    def embed(self, waveforms: Floats) -> Floats:
        """Embeddings of length 1, of shape (batch, dimensions).

        :param waveforms: float32 of shape (batch, samples) at 16 kHz.
        :raises Exception: when onnxruntime fails.
        """
        batches = (waveforms[i : i + self._batch] for i in range(0, len(waveforms), self._batch))
        embeddings = np.concatenate(
            [self._run(self._features(batch) if self._fbank else batch) for batch in batches]
        )
        # Silence may give a vector of zeros.
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)

    def _features(self, waveforms: Floats) -> Floats:
        if self._like_3d_speaker:
            return kaldi_fbank(waveforms, "povey")
        return kaldi_fbank(waveforms * np.float32(1 << 15), "hamming")

    def _run(self, inputs: Floats) -> Floats:
        with self._turn:
            (found,) = self._session.run([self._output], {self._input: inputs})
        return np.asarray(found, np.float32).reshape(len(inputs), -1)

    def _is_of_3d_speaker(self) -> bool:
        """3D-Speaker's script names the input "feature"; sherpa-onnx adds metadata to its exports."""
        metadata = self._session.get_modelmeta().custom_metadata_map
        if metadata.get("sample_rate", str(SAMPLE_RATE)) != str(SAMPLE_RATE):
            raise ModelError(f"{self._path} wants audio at {metadata['sample_rate']} Hz, not {SAMPLE_RATE}")
        return bool(self._input == "feature" or metadata.get("normalize_samples") == "1")

    def _likeness(self) -> float:
        """Embed both halves of a known clip, and noise, so that a wrong model fails before the first file."""
        clip = _clip()
        halves = [np.resize(half, _CHECKED) for half in np.array_split(clip, 2)]
        noise = np.random.default_rng(0).standard_normal(_CHECKED) / 10
        try:
            found = self.embed(np.stack([*halves, noise]).astype(np.float32))
            alone = self.embed(clip[None, : _CHECKED // 2])
        except Exception as error:
            raise ModelError(f"{self._path} computes no speaker embeddings: {error}. {_INPUTS}") from error
        likeness = float(found[0] @ found[1])
        if found.shape[1] != alone.shape[1] or not np.isfinite(found).all():
            raise ModelError(
                f"{self._path} computes no speaker embeddings: its output {self._output} is not one vector "
                "of fixed length for each input"
            )
        if float(found[0] @ found[2]) >= likeness:
            raise ModelError(
                f"{self._path} computes no speaker embeddings: noise is as similar to a voice as the "
                "voice is to itself"
            )
        return likeness


def load_speaker_model(
    options: WhisperOptions, device: Device, storage: Mapping[str, str] | None = None
) -> SpeakerModel:
    """Find, check and load the model that ``options.speaker_model`` names.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model is missing or does not fit.
    """
    model = SpeakerModel(find_speaker_model(options, storage), device)
    log.info("%s tells speakers apart, with onnxruntime's %s", options.speaker_model, model.provider)
    return model


def find_speaker_model(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Path:
    """The ``.onnx`` file of the model. It is found and cached as Whisper models are.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when it is missing, not the only one, or does not match ``speaker_model_sha256``.
    """
    name = options.speaker_model or ""

    def from_hub() -> str:
        from huggingface_hub import snapshot_download

        return str(
            snapshot_download(
                name,
                revision=options.speaker_model_revision,
                allow_patterns=list(SPEAKER_MODEL.wanted),
                # The hub's patterns match files in subfolders as well, which are not looked at.
                ignore_patterns=["*/*"],
            )
        )

    folder = model_folder(name, SPEAKER_MODEL, from_hub, storage)
    files = sorted(path for path in folder.glob("*.onnx") if path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files)
        found = f"holds {len(files)} of them: {names}" if files else "holds none"
        raise ModelError(f"speaker_model {name} must hold one .onnx file, and {folder} {found}")
    if options.speaker_model_sha256:
        verify_sha256(files[0], options.speaker_model_sha256, "speaker_model_sha256")
    return files[0]


def _clip() -> Floats:
    """The clip that checks models, 2.5 s of speech."""
    return np.concatenate([samples for samples, _ in open_audio(BytesIO(clip_bytes())).blocks()])


def _is_understood(shape: list[Any]) -> bool:
    if len(shape) not in (2, 3) or isinstance(shape[1], int):
        return False
    return len(shape) == 2 or shape[2] == BINS or not isinstance(shape[2], int)


def _session(path: Path, device: Device) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    # One thread, because files are read in parallel.
    settings.inter_op_num_threads = 1
    settings.intra_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 4
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index}))
    try:
        return onnxruntime.InferenceSession(str(path), sess_options=settings, providers=providers)
    except Exception as error:
        # onnxruntime's exceptions have no common public base.
        raise ModelError(f"cannot load the speaker model {path}: {error}") from error
