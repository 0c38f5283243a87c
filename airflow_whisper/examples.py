"""The example DAGs that come with the package, and a command that copies them into a DAGs folder.

.. code-block:: bash

    python -m airflow_whisper.examples list
    python -m airflow_whisper.examples copy "$AIRFLOW_HOME/dags" transcribe_daily
"""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# In the source tree, and in an editable installation, the files lie beside the package.
_INSTALLED = (_PACKAGE / "example_dags").is_dir()

EXAMPLE_DAGS = _PACKAGE / "example_dags" if _INSTALLED else _PACKAGE.parent / "dags"
"""Folder of the example DAGs. It may serve as a DAG bundle of Airflow as it is."""

DEMO_AUDIO = EXAMPLE_DAGS / "audio" if _INSTALLED else _PACKAGE.parent / "demo" / "audio"
"""Recorded speech below ``dt=2026-11-01/``: what the example DAGs transcribe by default."""


def examples() -> dict[str, str]:
    """Names of the example DAG files without ``.py``, and the first line of what each says about itself."""
    return {path.stem: _summary(path) for path in sorted(EXAMPLE_DAGS.glob("*.py"))}


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def copy(folder: Path, names: list[str] | None = None, *, overwrite: bool = False) -> list[Path]:
    """Copy example DAGs into a folder and return their new paths.

    :param folder: created if it does not exist.
    :param names: keys of :func:`examples`; ``None`` or empty: all.
    :param overwrite: replace files that exist.
    :raises ValueError: for an unknown name.
    :raises FileExistsError: if a file exists already; nothing is copied then.
    """
    known = examples()
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"no example is called {', '.join(unknown)}; there are {', '.join(known)}")
    targets = {EXAMPLE_DAGS / f"{name}.py": folder / f"{name}.py" for name in names or known}
    present = [str(target) for target in targets.values() if target.exists()]
    if present and not overwrite:
        raise FileExistsError(f"already there: {', '.join(present)}. To replace them, add --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in targets.items():
        shutil.copyfile(source, target)
    return [*targets.values()]


def main(arguments: list[str] | None = None) -> None:
    """List or copy the examples.

    :param arguments: of the command line; ``None``: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m airflow_whisper.examples", description="Example DAGs of airflow-provider-whisper."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print each example and what it does")
    copying = commands.add_parser("copy", help="copy examples into a folder, such as your DAGs folder")
    copying.add_argument("folder", type=Path)
    copying.add_argument("names", nargs="*", help="which; default: all")
    copying.add_argument("--overwrite", action="store_true", help="replace files that exist")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        for name, summary in examples().items():
            print(f"{name:24}{summary}")
        return
    try:
        for path in copy(chosen.folder, chosen.names, overwrite=chosen.overwrite):
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
