"""Package the code that runs on the Spark cluster for ``spark-submit --py-files``."""

from __future__ import annotations

import zipfile
from pathlib import Path

ARCHIVE_NAME = "whisper_spark.zip"

_LEFT_OUT = {".pyc", ".pyo"}
# The earliest time that a zip file can store. With a fixed time, equal code produces equal archives.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_archive(folder: Path) -> Path:
    """Write :data:`ARCHIVE_NAME` into a folder and return its path.

    The archive holds the ``whisper_spark`` that this process would import, including data files, and takes
    precedence over a copy installed on the cluster. It does not contain Python dependencies, because native
    code cannot be loaded from an archive.
    """
    package = package_folder()
    path = folder / ARCHIVE_NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*")):
            if not file.is_file() or file.suffix in _LEFT_OUT:
                continue
            info = zipfile.ZipInfo(file.relative_to(package.parent).as_posix(), _TIME)
            info.external_attr = 0o644 << 16
            archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path


def job_script() -> Path:
    """Path of the script for ``spark-submit``."""
    return package_folder() / "job.py"


def package_folder() -> Path:
    """Folder of the ``whisper_spark`` that this process imports."""
    import whisper_spark

    return Path(whisper_spark.__file__).resolve().parent
