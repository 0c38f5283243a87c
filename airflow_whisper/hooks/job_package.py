"""The code that runs on the Spark cluster, as the archive that ``spark-submit --py-files`` wants."""

from __future__ import annotations

import zipfile
from pathlib import Path

ARCHIVE_NAME = "whisper_spark.zip"

_LEFT_OUT = {".pyc", ".pyo"}
# The earliest time that a zip file can hold: equal code gives equal archives.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_archive(folder: Path) -> Path:
    """Writes :data:`ARCHIVE_NAME` into a folder and returns its path.

    It holds the ``whisper_spark`` that this process would import, data files included, and goes before any
    copy that is installed on the cluster. Python dependencies are not in it: native code cannot be loaded
    from an archive.
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
    """The script for ``spark-submit``."""
    return package_folder() / "job.py"


def package_folder() -> Path:
    """Where the ``whisper_spark`` of this process is."""
    import whisper_spark

    return Path(whisper_spark.__file__).resolve().parent
