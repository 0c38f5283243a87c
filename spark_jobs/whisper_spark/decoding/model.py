"""Find the model, fetch it once per host, choose the device, and prove that both work."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whisper_spark.contract.options import KNOWN_MODELS, WhisperOptions
from whisper_spark.decoding.device import Device
from whisper_spark.storage.objects import ObjectStorage, StorageError, join_uri

log = logging.getLogger(__name__)

_NEEDED = ("model.bin", "config.json", "tokenizer.json")


class ModelError(RuntimeError):
    """The model cannot be found, fetched or loaded."""


def find_model(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Path:
    """Folder that holds the model: as given, or fetched once for this host.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model is not there, incomplete, or not the one ``model_sha256`` names.
    """
    if "://" in options.model:
        folder = _fetched_model(options.model, storage)
    elif options.model in KNOWN_MODELS or not options.model.startswith(("/", ".", "~")):
        folder = _hub_model(options)
    else:
        folder = Path(options.model).expanduser()
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
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
    except Exception as error:  # the hub client raises a dozen kinds, some of them private
        raise ModelError(
            f"cannot get model {options.model!r} from the hub ({type(error).__name__}: {error}). Executors "
            "without internet need a folder or an object-store URI as model"
        ) from error


def cache_folder() -> Path:
    """Where fetched models live: ``WHISPER_SPARK_CACHE``, else the user's cache, else a temporary folder."""
    candidates = [
        os.environ.get("WHISPER_SPARK_CACHE"),
        os.environ.get("XDG_CACHE_HOME"),
        str(Path("~/.cache").expanduser()),
        tempfile.gettempdir(),
    ]
    for candidate in candidates:
        if candidate:
            folder = Path(candidate) / "whisper_spark"
            with contextlib.suppress(OSError):  # YARN containers often have a HOME that does not exist
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return folder
    raise ModelError("no folder to keep models in: set WHISPER_SPARK_CACHE to one that can be written")


def _fetched_model(uri: str, config: Mapping[str, str] | None) -> Path:
    storage = ObjectStorage(config)
    try:
        objects = [row for batch in storage.list(uri.rstrip("/") + "/") for row in batch.to_pylist()]
    except StorageError as error:
        raise ModelError(f"cannot list the model at {uri}: {error}") from error
    if not objects:
        raise ModelError(f"there is no model at {uri}: the folder is empty or does not exist")
    # What the store holds names the copy: new weights under the same URI are fetched anew.
    identity = repr(sorted((o["audio_uri"], o["audio_etag"], o["audio_bytes"]) for o in objects))
    folder = cache_folder() / "models" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _fetch(uri, objects, storage, folder)
    return folder


def _fetch(uri: str, objects: list[dict[str, Any]], storage: ObjectStorage, folder: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder.parent))
    try:
        for item in objects:
            name = item["audio_uri"][len(uri.rstrip("/")) + 1 :]
            target = partial / name
            if not name or ".." in Path(name).parts:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download(join_uri(uri, name), target)
            if target.stat().st_size != item["audio_bytes"]:
                raise ModelError(f"{name} of {uri} arrived incomplete; try again")
        partial.rename(folder)
    except StorageError as error:
        raise ModelError(f"cannot fetch the model at {uri}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


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

    Call it only in the process that uses it: a model does not survive a fork.

    :raises ModelError: when CTranslate2 cannot load it.
    """
    # MKL would keep what every thread has ever needed: 130 MB of 900 with whisper-base on two cores.
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
    import ctranslate2

    compute_type = options.compute_type
    if compute_type == "auto":
        compute_type = "float16" if device.kind == "cuda" else "int8"
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
        raise ModelError(f"cannot load {folder} on {device.name} as {compute_type}: {error}") from error
