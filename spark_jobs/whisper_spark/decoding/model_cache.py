"""Downloads models from object stores to a cache, once per user and host.

The cache consists of folders ``models/URI/CONTENT/``, where both names are hashes: new weights at the same
URI get another folder. Cached files must belong to the user or root, because anyone who can change a model
can change the transcripts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from whisper_spark.storage.objects import ObjectStorage, StorageError, folder_uri, join_uri

log = logging.getLogger(__name__)

# Maximum size in bytes of all files but the weights. The largest tokenizer.json of a Whisper model has 2.5
# MB.
_LARGEST_TEXT = 64 * 1024 * 1024

# A copy that no process has requested for this many seconds is deleted when a newer one is downloaded.
_KEEP_SECONDS = 24 * 3600


class ModelError(RuntimeError):
    """The model cannot be found, fetched or loaded."""


@dataclass(frozen=True)
class ModelKind:
    """The files of a kind of model, as patterns of names.

    :param name: for messages.
    :param weights: the file with the weights.
    :param needed: files that every model must have; the weights are one of them.
    :param wanted: files that are read. Other files are not downloaded.
    """

    name: str
    weights: str
    needed: tuple[str, ...]
    wanted: tuple[str, ...]

    def wants(self, name: str) -> bool:
        """Whether a file is read."""
        return "/" not in name and any(fnmatch(name, pattern) for pattern in self.wanted)

    def missing(self, names: Iterable[str]) -> list[str]:
        """What is needed and not among the files."""
        found = list(names)
        return [pattern for pattern in self.needed if not any(fnmatch(name, pattern) for name in found)]


_WHISPER_FILES = ("model.bin", "config.json", "tokenizer.json")
WHISPER = ModelKind(
    "faster-whisper model",
    weights="model.bin",
    needed=_WHISPER_FILES,
    wanted=(*_WHISPER_FILES, "preprocessor_config.json", "vocabulary.*", "shared_vocabulary.*"),
)
"""A Whisper model in CTranslate2's format."""


@dataclass(frozen=True)
class _ModelFile:
    name: str
    etag: str | None
    size: int


def fetched_model(uri: str, config: Mapping[str, str] | None, kind: ModelKind = WHISPER) -> Path:
    """A local folder with a copy of a model from an object store.

    :param uri: URI of the folder of the model.
    :param config: see :class:`~whisper_spark.storage.objects.ObjectStorage`.
    :raises ModelError: when the model is missing or incomplete, cannot be downloaded, or cannot be stored.
    """
    from filelock import FileLock

    try:
        uri = folder_uri(uri)
    except ValueError as error:
        raise ModelError(f"model: {error}") from None
    storage = ObjectStorage(config)
    files = _listed(uri, storage, kind)
    identity = repr(sorted((file.name, file.etag or "", file.size) for file in files))
    versions = private_folder(private_folder(cache_folder() / "models") / _digest(uri)[:16])
    folder = versions / _digest(uri + identity)[:32]
    try:
        with FileLock(versions / ".lock"):
            if not folder.is_dir():
                _remove_old(versions)
                _fetch(uri, files, storage, folder)
            # Marks the copy as in use, see _remove_old.
            os.utime(folder)
    except (StorageError, OSError) as error:
        raise ModelError(f"cannot fetch the model at {uri}: {error}") from error
    return private_folder(folder)


def local_model(uri: str, kind: ModelKind = WHISPER) -> Path:
    """The folder of a ``file://`` URI, which is used without a copy.

    :raises ModelError: when one of its files is a link to a target outside of the folder.
    """
    try:
        folder = Path(folder_uri(uri).removeprefix("file://"))
    except ValueError as error:
        raise ModelError(f"model: {error}") from None
    root = folder.resolve()
    for file in folder.glob("*"):
        if kind.wants(file.name) and not file.resolve().is_relative_to(root):
            raise ModelError(
                f"{file} is a link that leads out of the folder of the model. Name the folder that it "
                f"leads to, or write the model as a path: {folder}"
            )
    return folder


def cache_folder() -> Path:
    """The folder of the cache: in ``WHISPER_SPARK_CACHE``, else the user's cache, else a temporary folder.

    :raises ModelError: when each of them is not writable, or belongs to another user.
    """
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    candidates = [
        (os.environ.get("WHISPER_SPARK_CACHE"), ""),
        (os.environ.get("XDG_CACHE_HOME"), ""),
        (str(Path("~/.cache").expanduser()), ""),
        (tempfile.gettempdir(), user),
    ]
    reasons = []
    for parent, suffix in candidates:
        if parent:
            try:
                folder = private_folder(Path(parent) / f"whisper_spark{suffix}")
            except (OSError, ModelError) as error:
                # Not fatal: YARN containers, for example, often have a HOME that does not exist.
                reasons.append(str(error))
                continue
            if os.access(folder, os.W_OK):
                if reasons:
                    log.warning("Keeping models in %s: %s.", folder, "; ".join(reasons))
                return folder
            reasons.append(f"{folder} cannot be written")
    raise ModelError(
        f"no folder to keep models in ({'; '.join(reasons)}): set WHISPER_SPARK_CACHE to one of your own"
    )


def private_folder(folder: Path) -> Path:
    """Create a folder if it does not exist, and check that only this user and root can write into it.

    :raises ModelError: when it belongs to another user, is a link, or is writable by others.
    :raises OSError: when it cannot be created.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    # On Windows the folders of a user are private.
    if not hasattr(os, "getuid"):
        return folder
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()):
        raise ModelError(f"{folder} is a link or belongs to another user, who could have put a model into it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelError(
            f"others can write into {folder}, and could have put a model into it: remove it, or make it "
            "private (chmod 700) when you know what it holds"
        )
    return folder


def _listed(uri: str, storage: ObjectStorage, kind: ModelKind) -> list[_ModelFile]:
    """The files of a model in an object store, after a check of their names and sizes."""
    try:
        rows = [row for batch in storage.list(uri) for row in batch.to_pylist()]
    except StorageError as error:
        raise ModelError(
            f"cannot list the model at {uri}: {error}. In a DAG, its connection is model_conn_id"
        ) from error
    files = [_ModelFile(r["audio_uri"][len(uri) :], r["audio_etag"], r["audio_bytes"]) for r in rows]
    files = [file for file in files if kind.wants(file.name)]
    if not files:
        raise ModelError(f"there is no model at {uri}: the folder is empty or does not exist")
    if missing := kind.missing(file.name for file in files if file.size):
        raise ModelError(f"{uri} is no {kind.name}: {', '.join(missing)} missing or empty")
    for file in files:
        if not fnmatch(file.name, kind.weights) and file.size > _LARGEST_TEXT:
            raise ModelError(f"{uri} is no {kind.name}: {file.name} has {file.size:,} bytes")
    return files


def _fetch(uri: str, files: Sequence[_ModelFile], storage: ObjectStorage, folder: Path) -> None:
    size, free = sum(file.size for file in files), shutil.disk_usage(folder.parent).free
    if size > free:
        raise ModelError(
            f"the model at {uri} has {size / 1e9:,.1f} GB, {folder.parent} has room for {free / 1e9:,.1f} "
            "GB: set WHISPER_SPARK_CACHE to a folder on a larger disk"
        )
    partial = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder.parent))
    try:
        for file in files:
            storage.download(join_uri(uri, file.name), partial / file.name, etag=file.etag)
            if (partial / file.name).stat().st_size != file.size:
                raise ModelError(f"{file.name} of {uri} was replaced or arrived incomplete; try again")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_old(versions: Path) -> None:
    """Delete old copies that are not in use, and partial downloads of killed processes. Requires the lock."""
    before = time.time() - _KEEP_SECONDS
    for folder in versions.iterdir():
        if folder.is_dir() and (folder.name.startswith("fetch-") or folder.stat().st_mtime < before):
            log.info("Removing the copy %s of a model that was replaced.", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
