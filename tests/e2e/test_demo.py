"""``make demo`` with one's own audio: what a person sees on the first run and on the second."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from speech import Clip

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, librivox: list[Clip]) -> Path:
    """A folder as people have them: audio, and something that is none."""
    audio = tmp_path_factory.mktemp("demo") / "my calls"
    audio.mkdir()
    shutil.copy(librivox[1].path, audio / "call 1.wav")
    shutil.copy(librivox[4].path, audio / "call 2.wav")
    (audio / "notes.mp3").write_text("Not audio at all.\n" * 20)
    return audio


@pytest.fixture(scope="module")
def first(folder: Path) -> str:
    return demo(folder)


@pytest.fixture(scope="module")
def second(folder: Path, first: str) -> str:
    return demo(folder)


def demo(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), str(folder)],
        env={**os.environ, "WHISPER_DEMO_DIR": str(folder.parent / "state"), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def table_of(output: str) -> list[str]:
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("file "))
    return lines[start : lines.index("", start)]


def test_demo_shows_each_file_with_language_seconds_and_text(first: str, librivox: list[Clip]) -> None:
    _, one, two, notes = table_of(first)
    assert re.match(rf"call 1\.wav +en +{librivox[1].seconds:.1f} +\S", one)
    assert re.match(rf"call 2\.wav +en +{librivox[4].seconds:.1f} +\S", two)
    assert "[not_audio]" in notes
    assert all(len(line) <= 100 for line in table_of(first))


def test_demo_shows_totals(first: str) -> None:
    assert "3 files, 1 with errors" in first
    assert re.search(r"This run transcribed 3 files in \d+ s, .*: [\d.]+ times real time", first)


def test_second_demo_has_nothing_to_do_and_shows_the_same_table(first: str, second: str) -> None:
    assert "Nothing to do" in second
    assert table_of(second) == table_of(first)


def test_printed_snippet_works_when_pasted(first: str) -> None:
    snippet = "\n".join(first.rstrip().splitlines()[-3:])
    done = subprocess.run([sys.executable], input=snippet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "young man" in done.stdout


def test_demo_says_what_is_wrong_with_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), str(tmp_path / "nowhere")],
        env={**os.environ, "WHISPER_DEMO_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nowhere is no folder" in done.stderr
