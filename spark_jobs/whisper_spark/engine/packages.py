"""The Python packages that Spark executors need, and which of them an interpreter lacks."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, slots=True)
class Package:
    """A package that must be installed.

    :param name: name for pip.
    :param wanted: versions that work, such as ``>=2.2,<3``; empty: any.
    :param module: name for ``import``.
    """

    name: str
    wanted: str
    module: str

    @property
    def version(self) -> str | None:
        """The installed version; ``None`` when it is not installed, ``"?"`` when its version is unknown."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return "?" if self.is_installed else None

    @property
    def is_installed(self) -> bool:
        """Whether this interpreter can import it."""
        try:
            return importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:
            # The package that it is a part of is missing.
            return False

    @property
    def requirement(self) -> str:
        """The argument for pip, quoted for a shell."""
        return f"'{self.name}{self.wanted}'" if self.wanted else self.name


PACKAGES = (
    Package("pyspark", "==4.2.0", "pyspark"),
    Package("pandas", ">=2.2,<3", "pandas"),
    Package("pyarrow", ">=19.0.1", "pyarrow"),
    Package("obstore", ">=0.12,<0.13", "obstore"),
    Package("numpy", "", "numpy"),
    Package("faster-whisper", ">=1.2.1,<1.3", "faster_whisper"),
    Package("ctranslate2", ">=4.8,<5", "ctranslate2"),
    Package("filelock", ">=3.20.1", "filelock"),
    Package("protobuf", ">=4.25.8", "google.protobuf"),
    Package("threadpoolctl", ">=3.5", "threadpoolctl"),
    Package("av", "", "av"),
    Package("onnxruntime", "", "onnxruntime"),
)
"""What executors need; the versions are those of ``pyproject.toml``. ``av`` and ``onnxruntime`` come with
faster-whisper."""


def missing_packages(packages: Iterable[Package] = PACKAGES) -> list[Package]:
    """The packages that this interpreter cannot import."""
    return [package for package in packages if not package.is_installed]


def missing_here() -> str | None:
    """What is missing on this host, as one line with the command that installs it; ``None``: nothing."""
    missing = missing_packages()
    if not missing:
        return None
    names = ", ".join(package.name for package in missing)
    return f"{sys.executable} on host {platform.node()} lacks {names}: {install_command(missing)}"


def install_command(packages: Iterable[Package]) -> str:
    """The command that installs packages for the interpreter of this process."""
    return f"{sys.executable} -m pip install {' '.join(package.requirement for package in packages)}"


def is_wanted(version: str, wanted: str) -> bool:
    """Whether a version satisfies ``>=2.2,<3`` or ``==4.2.0``. An unknown version does.

    Not ``packaging.version``, because executors may lack that package, too.
    """
    number = _numbers(version)
    for comparison, bound in re.findall(r"(>=|<|==)([\d.]+)", wanted if number else ""):
        least = _numbers(bound)
        if comparison == ">=" and number < least:
            return False
        if comparison == "<" and number >= least:
            return False
        if comparison == "==" and number[: len(least)] != least:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()
