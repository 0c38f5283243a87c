"""Recorded human speech with its reference text, for the demo, the tests and the benchmarks.

    python scripts/speech.py                    lists the recordings, and downloads them first if necessary

There are two collections, both from Debian packages. Unless the packages are already installed, the script
downloads and unpacks them into ``.cache/speech``, which needs no root permissions.

- telephone prompts in five languages, 8 kHz, CC BY-SA 3.0 (``asterisk-core-sounds-*``);
- five sentences read for LibriVox, 16 kHz, public domain (``pocketsphinx-testdata``).
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("en", "es", "fr", "it", "ru")
CACHE = Path(__file__).resolve().parents[1] / ".cache"
PACKAGES = (
    *(f"asterisk-core-sounds-{language}" for language in LANGUAGES),
    *(f"asterisk-core-sounds-{language}-wav" for language in LANGUAGES),
    "pocketsphinx-testdata",
)
SOUNDS = "usr/share/asterisk/sounds"
TEXTS = "usr/share/doc/asterisk-core-sounds-{0}/core-sounds-{0}.txt.gz"
LIBRIVOX = "usr/share/pocketsphinx/test/data/librivox"


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording with its reference text. ``seconds`` is its duration."""

    path: Path
    text: str
    language: str
    seconds: float


def speech_root() -> Path:
    """Return the folder that contains the packages' files: ``/`` if they are installed.

    :raises RuntimeError: if they are not installed and cannot be downloaded.
    """
    for root in (Path("/"), CACHE / "speech"):
        if _complete(root):
            return root
    return _fetch(CACHE / "speech")


def prompts(root: Path, min_words: int = 3) -> list[Clip]:
    """Telephone prompts of all languages without duplicate texts, ordered by language and name."""
    clips: list[Clip] = []
    for language in LANGUAGES:
        seen: set[str] = set()
        folder = _sounds(root, language) or root
        lines = gzip.decompress((root / TEXTS.format(language)).read_bytes()).decode("utf-8-sig").splitlines()
        for line in sorted(lines):
            name, _, text = line.partition(":")
            path = folder / f"{name.strip()}.wav"
            text = text.strip()
            # Brackets of any kind describe a sound or comment on the text.
            if line.startswith(";") or re.search(r"[\[(<]", text) or not path.is_file():
                continue
            if len(text.split()) >= min_words and text.casefold() not in seen:
                seen.add(text.casefold())
                clips.append(Clip(path, text, language, _seconds(path)))
    return clips


def librivox(root: Path) -> list[Clip]:
    """Five sentences from chapter 1 of Sense and Sensibility, in lower case and without punctuation."""
    clips = []
    for line in (root / LIBRIVOX / "transcription").read_text().splitlines():
        match = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip())
        if match:
            path = root / LIBRIVOX / f"{match[2]}.wav"
            clips.append(Clip(path, match[1], "en", _seconds(path)))
    return clips


def _complete(root: Path) -> bool:
    # Slim images omit /usr/share/doc, and with it the texts, even if the packages are installed.
    files = [TEXTS.format(language) for language in LANGUAGES] + [f"{LIBRIVOX}/transcription"]
    return all((root / f).is_file() for f in files) and all(_sounds(root, lang) for lang in LANGUAGES)


def _sounds(root: Path, language: str) -> Path | None:
    """The folder of one voice, for example ``en_US_f_Allison``. Installation adds a symbolic link ``en``."""
    return next(iter(sorted((root / SOUNDS).glob(f"{language}_*_*"))), None)


def _fetch(target: Path) -> Path:
    def check(unpacked: Path) -> None:
        if not _complete(unpacked):
            raise RuntimeError(
                f"the Debian packages {', '.join(PACKAGES)} lack files that are expected in them"
            )

    return unpack_packages(PACKAGES, target, check)


def unpack_packages(
    packages: Sequence[str], target: Path, check: Callable[[Path], None] = lambda _: None
) -> Path:
    """Download Debian packages and unpack them into a folder, which is created atomically.

    :param check: called with the unpacked folder; raises an exception if something is wrong with it.
    :raises RuntimeError: if they cannot be downloaded.
    """
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise RuntimeError(f"{tool} is missing: the recorded sound comes from Debian packages")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        _download(packages, Path(folder))
        unpacked = Path(folder, "unpacked")
        unpacked.mkdir()
        for package in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
        check(unpacked)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    return target


def _download(packages: Sequence[str], folder: Path) -> None:
    # If the machine has no package lists, use separate ones, because updating the system's needs root.
    lists, archives = folder / "lists", folder / "archives"
    for path in (lists / "partial", archives / "partial"):
        path.mkdir(parents=True)
    own = [
        "-o",
        f"Dir::State::lists={lists}",
        "-o",
        f"Dir::Cache={archives}",
        "-o",
        "APT::Sandbox::User=root",
    ]
    download = ["apt-get", "-q", "download", *packages]
    if _runs(download, folder):
        return
    if not _runs(["apt-get", "-q", *own, "update"], folder):
        raise RuntimeError("apt-get update failed: are Debian's package servers reachable?")
    if not _runs([download[0], *own, *download[1:]], folder):
        raise RuntimeError(f"apt-get download failed. Try it by hand: apt-get download {' '.join(packages)}")


def _runs(command: list[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    (CACHE / "speech.log").open("a").write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    return done.returncode == 0


def _seconds(path: Path) -> float:
    with wave.open(str(path), "rb") as recording:
        return recording.getnframes() / recording.getframerate()


def main() -> None:
    try:
        root = speech_root()
    except RuntimeError as error:
        sys.exit(f"speech: {error}")
    clips = prompts(root)
    for language in LANGUAGES:
        own = [c for c in clips if c.language == language]
        print(f"{language}: {len(own)} prompts, {sum(c.seconds for c in own) / 60:.1f} minutes")
    print(f"LibriVox: {len(librivox(root))} sentences. All under {root}")


if __name__ == "__main__":
    main()
