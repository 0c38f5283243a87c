"""Checks of the places that a job reads and writes: disk, model, source and staging."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from whisper_spark.contract import WhisperOptions
from whisper_spark.doctor.checks import Check, ok

_GB = 1e9
# large-v3 in float16 takes 3.1 GB, and is downloaded before an older copy is deleted.
_LEAST_CACHE_BYTES = 8 * _GB
_LEAST_TEMPORARY_BYTES = 1 * _GB

_ACCESS = (
    "give the connection of {place} to the task, or give the executors an instance role or service account "
    "that may {do} there"
)


def check_disk(options: WhisperOptions) -> Check:
    """The private folder for models and compiled kernels, and the free space there and for other files.

    Where the model is a folder of the host, nothing is fetched, and little space is enough.
    """
    from whisper_spark.decoding.model import is_folder
    from whisper_spark.decoding.model_cache import ModelError, cache_folder

    try:
        cache = cache_folder()
    except ModelError as error:
        fix = "set WHISPER_SPARK_CACHE of the executors to a folder that only their user can write"
        return Check("disk", "failed", str(error), fix)
    temporary = Path(tempfile.gettempdir())
    free, free_temporary = shutil.disk_usage(cache).free, shutil.disk_usage(temporary).free
    found = f"models in {cache}, {free / _GB:.0f} GB free; {temporary}, {free_temporary / _GB:.0f} GB free"
    least = _LEAST_TEMPORARY_BYTES if is_folder(options.model) else _LEAST_CACHE_BYTES
    if free < least or free_temporary < _LEAST_TEMPORARY_BYTES:
        fix = "free some space, or set WHISPER_SPARK_CACHE and TMPDIR to folders on a larger disk"
        return Check("disk", "warning", found, fix)
    return ok("disk", found)


def check_model(options: WhisperOptions, storage: Mapping[str, str]) -> Check:
    """Fetch the models as the job does, and check that they are complete.

    With ``diarize`` these are the Whisper model and the speaker model.
    """
    from whisper_spark.decoding.model import ModelError, find_model
    from whisper_spark.speakers.model import find_speaker_model

    try:
        folder = find_model(options, storage or None)
        speaker_model = find_speaker_model(options, storage or None) if options.diarize else None
    except ModelError as error:
        fix = (
            "name a folder that exists on every executor, a folder in an object store, or a model of the hub"
        )
        return Check("model", "failed", str(error), fix)
    weights = (folder / "model.bin").stat().st_size
    found = f"{options.model}, {weights / _GB:.2f} GB in {folder}"
    if speaker_model is not None:
        size = speaker_model.stat().st_size
        found += f"; {options.speaker_model}, {size / _GB:.2f} GB in {speaker_model.parent}"
    return ok("model", found)


def check_source(uri: str, storage: Mapping[str, str]) -> Check:
    """Whether the audio can be listed."""
    from whisper_spark.storage.objects import ObjectStorage, StorageError

    try:
        found = ObjectStorage(storage).any_under(uri)
    except StorageError as error:
        return Check("source", "failed", str(error), _ACCESS.format(place="the source", do="list and read"))
    if not found:
        fix = "check the URI; file:// names a folder of each executor, unless it is a shared disk"
        return Check("source", "warning", f"there is nothing under {uri}", fix)
    return ok("source", f"{uri} can be listed")


def check_staging(uri: str, storage: Mapping[str, str]) -> Check:
    """Whether a small object can be written to staging, read and deleted."""
    from whisper_spark.storage.objects import ObjectStorage, StorageError, folder_uri

    target = f"{folder_uri(uri)}.check-{uuid.uuid4().hex}"
    store = ObjectStorage(storage)
    try:
        store.write_bytes(target, b"check")
        read = store.read_bytes(target)
        store.delete([target])
    except StorageError as error:
        fix = _ACCESS.format(place="staging", do="write, read and delete")
        return Check("staging", "failed", str(error), fix)
    if read != b"check":
        return Check("staging", "failed", f"{target} holds other bytes than were written", "check the store")
    return ok("staging", f"{uri} can be written, read and deleted from")
