"""Building the distribution: example DAGs in the wheel, and what the package index shows.

The index shows links of the project, and README with links that lead out of the archive. The address of the
repository is not written down here, because forks and mirrors have others. A release is built with
``PROJECT_URL=https://github.com/OWNER/NAME``, see CONTRIBUTING.md. Without it, README stays as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

# Where GitHub, and servers with its layout, show a file and serve an image.
_FILE, _IMAGE = "{url}/blob/v{version}/{path}", "{url}/raw/v{version}/{path}"
_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?P<path>[^)\s:#][^)\s:]*)\)")


class ExampleDags(BuildHookInterface):
    """Put the example DAGs and their recordings into the wheel, where ``airflow_whisper.examples`` looks."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files. An editable installation reads them in the source tree."""
        if version != "editable":
            build_data["force_include"] |= {
                "dags": "airflow_whisper/example_dags",
                "demo/audio": "airflow_whisper/example_dags/audio",
            }


class ProjectMetadata(MetadataHookInterface):
    """Fill in ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the two fields to the project's metadata."""
        url = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if url:
            version = _version(self.root)
            text = absolute_links(text, url, version)
            metadata["urls"] = {
                "Homepage": url,
                # Airflow shows this one with the provider.
                "Documentation": f"{url}/tree/v{version}/docs",
                "Changelog": _FILE.format(url=url, version=version, path="CHANGELOG.md"),
                "Source": url,
                "Issues": f"{url}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute_links(text: str, url: str, version: str) -> str:
    """Return Markdown whose relative links and images are absolute, at the tag of a release."""

    def absolute(match: re.Match[str]) -> str:
        place = _IMAGE if match["image"] else _FILE
        target = place.format(url=url, version=version, path=match["path"])
        return f"{match['image']}{match['text']}({target})"

    return _LINK.sub(absolute, text)


def _version(root: str) -> str:
    source = Path(root, "spark_jobs", "whisper_spark", "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if found is None:
        raise ValueError("spark_jobs/whisper_spark/__init__.py has no __version__")
    return found[1]
