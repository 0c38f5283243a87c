"""Models from object stores: checked, fetched once for each user of a host, and kept until they are old.

A cache of ``models/URI/CONTENT/`` folders: new weights under the same URI are another copy. Only the user, or
root, may have made what is loaded from it, because a model decides what the transcripts say.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from whisper_spark.storage.objects import ObjectStorage, StorageError, folder_uri, join_uri

log = logging.getLogger(__name__)

NEEDED = ("model.bin", "config.json", "tokenizer.json")
"""Files without which nothing is a model."""

# What CTranslate2 and faster-whisper read; anything else beside them is not fetched.
_WANTED = (*NEEDED, "preprocessor_config.json", "vocabulary.*", "shared_vocabulary.*")

# Bytes. The largest tokenizer.json of a Whisper model has 2.5 MB.
_LARGEST_TEXT = 64 * 1024 * 1024

# Seconds after which a copy goes that no process has asked for, once there is a newer one.
_KEEP_SECONDS = 24 * 3600


class ModelError(RuntimeError):
    """The model cannot be found, fetched or loaded."""


@dataclass(frozen=True)
class _ModelFile:
    name: str
    etag: str | None
    size: int


def fetched_model(uri: str, config: Mapping[str, str] | None) -> Path:
    """Folder with a copy of a model that lies in an object store.

    :param uri: of the folder of the model.
    :param config: see :class:`~whisper_spark.storage.objects.ObjectStorage`.
    :raises ModelError: when there is no model, it is not complete or cannot be fetched, or has no place.
    """
    from filelock import FileLock

    try:
        uri = folder_uri(uri)
    except ValueError as error:
        raise ModelError(f"model: {error}") from None
    storage = ObjectStorage(config)
    files = _listed(uri, storage)
    identity = repr(sorted((file.name, file.etag or "", file.size) for file in files))
    versions = private_folder(private_folder(cache_folder() / "models") / _digest(uri)[:16])
    folder = versions / _digest(uri + identity)[:32]
    try:
        with FileLock(versions / ".lock"):
            if not folder.is_dir():
                _remove_old(versions)
                _fetch(uri, files, storage, folder)
            # Says that it is in use.
            os.utime(folder)
    except (StorageError, OSError) as error:
        raise ModelError(f"cannot fetch the model at {uri}: {error}") from error
    return private_folder(folder)


def local_model(uri: str) -> Path:
    """The folder that a ``file://`` URI names, used as it is.

    :raises ModelError: when one of its files is a link that leads out of it.
    """
    try:
        folder = Path(folder_uri(uri).removeprefix("file://"))
    except ValueError as error:
        raise ModelError(f"model: {error}") from None
    root = folder.resolve()
    for file in folder.glob("*"):
        if _is_wanted(file.name) and not file.resolve().is_relative_to(root):
            raise ModelError(
                f"{file} is a link that leads out of the folder of the model. Name the folder that it "
                f"leads to, or write the model as a path: {folder}"
            )
    return folder


def cache_folder() -> Path:
    """Where fetched models live: ``WHISPER_SPARK_CACHE``, else the user's cache, else a temporary folder.

    :raises ModelError: when none of them can be written, or each belongs to somebody else.
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
                # YARN containers often have a HOME that does not exist.
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
    """The folder, made if it is not there, into which nobody but this user and root can write.

    :raises ModelError: when it belongs to somebody else, is a link, or others could write into it.
    :raises OSError: when it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not hasattr(os, "getuid"):  # Windows, where a user's folders are private
        return folder
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()):
        raise ModelError(f"{folder} is a link or belongs to another user, who could have put a model into it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelError(
            f"others can write into {folder}, and could have put a model into it: remove it, or make it "
            "private (chmod 700) when you know what it holds"
        )
    return folder


def _listed(uri: str, storage: ObjectStorage) -> list[_ModelFile]:
    """What there is of a model, after a look at names and sizes."""
    try:
        rows = [row for batch in storage.list(uri) for row in batch.to_pylist()]
    except StorageError as error:
        raise ModelError(f"cannot list the model at {uri}: {error}") from error
    files = [_ModelFile(r["audio_uri"][len(uri) :], r["audio_etag"], r["audio_bytes"]) for r in rows]
    files = [file for file in files if _is_wanted(file.name)]
    if not files:
        raise ModelError(f"there is no model at {uri}: the folder is empty or does not exist")
    sizes = {file.name: file.size for file in files}
    missing = [name for name in NEEDED if not sizes.get(name)]
    if missing:
        raise ModelError(f"{uri} is no faster-whisper model: {', '.join(missing)} missing or empty")
    for name, size in sizes.items():
        if name != "model.bin" and size > _LARGEST_TEXT:
            raise ModelError(f"{uri} is no faster-whisper model: {name} has {size:,} bytes")
    return files


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _WANTED)


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
    """Removes earlier copies that nobody uses, and what a process that was killed left. Needs the lock."""
    before = time.time() - _KEEP_SECONDS
    for folder in versions.iterdir():
        if folder.is_dir() and (folder.name.startswith("fetch-") or folder.stat().st_mtime < before):
            log.info("Removing the copy %s of a model that was replaced.", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
