"""Finds the model, verifies its checksum, and loads it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whisper_spark.contract.options import WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.device import Device, choose_compute_type
from whisper_spark.decoding.model_cache import WHISPER, ModelError, ModelKind, fetched_model, local_model

__all__ = ["ModelError", "find_model", "is_folder", "load_weights", "model_folder", "verify_sha256"]

_FILE_URI = "file:/"


def find_model(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Path:
    """The folder of the model. A model in an object store or on the hub is downloaded once per user and host.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model is missing or incomplete, or does not match ``model_sha256``.
    """

    def from_hub() -> str:
        from faster_whisper.utils import download_model

        return str(download_model(options.model, revision=options.revision, cache_dir=None))

    folder = model_folder(options.model, WHISPER, from_hub, storage)
    if missing := WHISPER.missing(file.name for file in folder.glob("*") if file.is_file()):
        raise ModelError(
            f"{options.model} is no {WHISPER.name}: {', '.join(missing)} missing in {folder}. "
            "Convert one with ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json"
        )
    if options.model_sha256:
        verify_sha256(folder / WHISPER.weights, options.model_sha256, "model_sha256")
    return folder


def model_folder(
    model: str, kind: ModelKind, from_hub: Callable[[], str], storage: Mapping[str, str] | None = None
) -> Path:
    """The folder of a model: a path, a URI, or what ``from_hub`` downloads.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model cannot be fetched.
    """
    if is_folder(model):
        is_uri = model.lower().startswith(_FILE_URI)
        return _existing(local_model(model, kind) if is_uri else Path(model).expanduser())
    if "://" in model:
        return fetched_model(model, storage, kind)
    try:
        return Path(from_hub())
    except Exception as error:
        # The hub client raises many kinds of exceptions, some of which are private.
        # Those of the hub have several lines, but the log shows only the first one of ours.
        reason = " ".join(str(error).split())
        raise ModelError(
            f"cannot get model {model!r} from the hub ({type(error).__name__}: {reason}). Executors "
            "without internet need a folder or an object-store URI as model"
        ) from error


def is_folder(model: str) -> bool:
    """Whether a model is named as a folder of the host, so that nothing is fetched."""
    return model.lower().startswith((_FILE_URI, "/", ".", "~"))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {folder} on host {platform.node()}. A path as model must exist on every "
            "executor; the URI of a folder in an object store is fetched by each host"
        )
    return folder


def verify_sha256(path: Path, expected: str, option: str) -> None:
    """Check the weights.

    :param option: the option that names the expected SHA-256, for the message.
    :raises ModelError: when they are not the expected ones.
    """
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"{path.name} in {path.parent} has SHA-256 {found}, but {option} is {expected}: "
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
