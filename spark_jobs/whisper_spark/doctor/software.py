"""Checks of the software on a host: Python and its packages, FFmpeg, ONNX Runtime."""

from __future__ import annotations

import platform
import sys

from whisper_spark.doctor.checks import Check, ok
from whisper_spark.engine.packages import PACKAGES, Package, install_command, is_wanted

_LEAST_PYTHON = (3, 11)

# The FFmpeg decoders of the formats that recordings usually have.
_DECODERS = ("aac", "flac", "mp3float", "opus", "pcm_alaw", "pcm_mulaw", "pcm_s16le", "vorbis")


def check_python() -> Check:
    """The interpreter: its version and its path."""
    found = f"{platform.python_version()}, {sys.executable} on {platform.platform(terse=True)}"
    if sys.version_info < _LEAST_PYTHON:
        fix = "use Python 3.11 or newer: spark.pyspark.python names the interpreter of the executors"
        return Check("Python", "failed", found, fix)
    return ok("Python", found)


def check_packages(with_spark: bool) -> Check:
    """The packages and their versions.

    :param with_spark: whether pyspark and pandas are needed, too.
    """
    wanted = [p for p in PACKAGES if with_spark or p.name not in ("pyspark", "pandas")]
    missing = [package for package in wanted if package.version is None]
    if missing:
        found = "missing: " + ", ".join(package.name for package in missing)
        return Check("packages", "failed", found, install_command(missing))
    other = [package for package in wanted if not is_wanted(package.version or "", package.wanted)]
    if other:
        found = ", ".join(f"{p.name} {p.version}, tested {p.wanted}" for p in other)
        return Check("packages", "warning", found, install_command(other))
    return ok("packages", ", ".join(map(_with_version, wanted)))


def _with_version(package: Package) -> str:
    return f"{package.name} {package.version}"


def check_ffmpeg() -> Check:
    """PyAV and the FFmpeg in it."""
    import av

    libraries = ", ".join(
        f"{name} {'.'.join(map(str, version))}"
        for name, version in sorted(av.library_versions.items())
        if name in ("libavcodec", "libavformat")
    )
    found = f"PyAV {av.__version__}, {libraries}"
    missing = [name for name in _DECODERS if name not in av.codecs_available]
    if missing:
        fix = "install the wheel of av from PyPI, whose FFmpeg has all of them"
        return Check("FFmpeg", "warning", f"{found}; no decoder for {', '.join(missing)}", fix)
    return ok("FFmpeg", found)


def check_onnxruntime() -> Check:
    """ONNX Runtime, which runs the voice detector on a CPU."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    found = f"{onnxruntime.__version__}, providers: {', '.join(providers)}"
    if "CPUExecutionProvider" not in providers:
        fix = "install onnxruntime from PyPI: the voice detector runs on the CPU"
        return Check("ONNX Runtime", "failed", found, fix)
    return ok("ONNX Runtime", found)
