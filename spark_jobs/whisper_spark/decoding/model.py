"""Finds the model, verifies its checksum, and loads it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisper_spark.contract.options import KNOWN_MODELS, WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.device import Device, choose_compute_type
from whisper_spark.decoding.model_cache import NEEDED, ModelError, fetched_model, local_model

__all__ = ["ModelError", "find_model", "load_weights"]


def find_model(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Path:
    """The folder of the model. A model in an object store or on the hub is downloaded once per user and host.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model is missing or incomplete, or does not match ``model_sha256``.
    """
    if options.model.lower().startswith("file:/"):
        folder = local_model(options.model)
    elif "://" in options.model:
        folder = fetched_model(options.model, storage)
    elif options.model in KNOWN_MODELS or not options.model.startswith(("/", ".", "~")):
        folder = _hub_model(options)
    else:
        folder = Path(options.model).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder} on host {platform.node()}. A path as model must exist on every "
            "executor; the URI of a folder in an object store is fetched by each host"
        )
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{options.model} is no faster-whisper model: {', '.join(missing)} missing in {folder}. "
            "Convert one with ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json"
        )
    if options.model_sha256:
        _verify(folder, options.model_sha256)
    return folder


def _hub_model(options: WhisperOptions) -> Path:
    from faster_whisper.utils import download_model

    try:
        return Path(download_model(options.model, revision=options.revision, cache_dir=None))
    except Exception as error:
        # The hub client raises many kinds of exceptions, some of which are private.
        raise ModelError(
            f"cannot get model {options.model!r} from the hub ({type(error).__name__}: {error}). Executors "
            "without internet need a folder or an object-store URI as model"
        ) from error


def _verify(folder: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with (folder / "model.bin").open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ModelError(
            f"model.bin in {folder} has SHA-256 {digest.hexdigest()}, but model_sha256 is {expected}: "
            "the weights are not the ones these options name"
        )


def load_weights(folder: Path, options: WhisperOptions, device: Device) -> Any:
    """The model as a ``ctranslate2.models.Whisper``.

    Call it only in the process that uses the model, because a model does not work after a fork.

    :raises ModelError: when CTranslate2 cannot load it.
    """
    # MKL would keep the buffers of every thread: 130 of 900 MB with whisper-base on two cores.
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
    import ctranslate2

    compute_type = choose_compute_type(options, device)
    try:
        return ctranslate2.models.Whisper(
            str(folder),
            device=device.kind,
            device_index=device.index,
            compute_type=compute_type,
            inter_threads=device.workers,
            intra_threads=device.threads,
        )
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"cannot load {folder} on {device.name} as {compute_type}: {cuda.explained(error)}"
        ) from error
