"""The versions of the software that makes the transcripts."""

from __future__ import annotations

from importlib import metadata


def engine_version() -> str:
    """Versions of whisper_spark, faster-whisper and CTranslate2, for the column ``engine_version``."""
    from whisper_spark import __version__

    parts = [f"whisper_spark {__version__}"]
    for name in ("faster-whisper", "ctranslate2"):
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{name} ?")
    return ", ".join(parts)
