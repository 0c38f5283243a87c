"""Sphinx: the pages in this folder and the reference from docstrings. Run ``make docs``."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any

project = "airflow-provider-whisper"
version = release = importlib.metadata.version(project)
author = "The maintainers of airflow-provider-whisper"

# Pages are Markdown, docstrings reStructuredText as everywhere in Airflow.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"{project} {version}"

# Headings are link targets down to this level, named as on GitHub.
myst_heading_anchors = 4
# Lexers know neither the `df` of a notebook nor every dialect of SQL; that is no reason to fail.
suppress_warnings = ["misc.highlighting_failure"]

autosummary_generate = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"

_ROOT = Path(__file__).resolve().parents[1]
# Where other files of the repository can be seen. Where that is not known, they are named without a link.
_REPOSITORY = os.environ.get("PROJECT_URL", "").rstrip("/")
_FILE = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>\.\./[^)#]+)(?P<anchor>#[^)]*)?\)")


def _read_page(app: Any, page: str, source: list[str]) -> None:
    """Make README the first page, and turn links out of this folder into ones that work on the site."""
    text = source[0]
    if page == "index":
        readme = (_ROOT / "README.md").read_text(encoding="utf-8")
        # As if README were in this folder.
        readme = re.sub(r"\]\((?![a-z]+://|#)", "](../", readme).replace("](../docs/", "](")
        text = f"{readme}\n{text}"
    text = text.replace("](../README.md", "](index.md")
    source[0] = _FILE.sub(_link_to_repository, text)


def _link_to_repository(match: re.Match[str]) -> str:
    if not _REPOSITORY:
        return match["text"]
    return f"[{match['text']}]({_REPOSITORY}/blob/v{version}/{match['path'].removeprefix('../')})"


def setup(app: Any) -> None:
    """Sphinx calls this for the configuration as for an extension."""
    app.connect("source-read", _read_page)
