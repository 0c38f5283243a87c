"""Temporary folders for credentials, deleted at the latest when the same user needs the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "whisper-submit-"
"""Start of the folders' names, in the temporary folder of the machine."""

_LOCK = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read. Deletes those that killed processes of this user have left.

    A process that is killed with SIGKILL cleans up nothing. Its lock ends with it all the same, and shows
    the next process that the folder is nobody's, also when the two run in different containers.
    """
    sweep()
    # Under another name until it is locked: what bears the prefix and is not locked is deleted.
    new = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}"))
    with (new / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(new.with_name(new.name.removeprefix("new-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Delete folders of this user whose process has ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # In use, or somebody else was faster.
            continue
