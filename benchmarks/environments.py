"""A virtual environment and converted weights for each peer, made once under ``.cache``.

Peers pin other versions of what this project needs, and PyTorch is no part of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"

_TORCH = "torch==2.13.0"
_AV = "av==18.1.0"
_REQUIREMENTS = {
    "openai_whisper": (
        [_TORCH, _AV, "numba", "tiktoken", "more-itertools", "tqdm"],
        "openai-whisper==20250625",
    ),
    "hf_pipeline": ([_TORCH, _AV, "transformers==5.23.0"], None),
    "whispercpp": ([_AV, "pywhispercpp==1.5.1"], None),
    "pyannote_metrics": (["pyannote.metrics==4.2.0"], None),
    "s2t": ([_TORCH, "whisper-s2t-reborn==1.8.0", "ctranslate2==4.8.5"], None),
}
# The second comes without what it depends on: openai-whisper wants triton, 200 MB that only a GPU uses.

_FORMATS = {
    "openai_whisper": ("openai", "base.pt"),
    "hf_pipeline": ("hf", "hf"),
    "whispercpp": ("ggml", "base.bin"),
}


def environment(name: str) -> str:
    """The Python of a peer's environment.

    :raises RuntimeError: when something cannot be installed.
    """
    target = CACHE / "bench-envs" / name
    python, done = target / "bin" / "python", target / "installed"
    if not done.is_file():
        requirements, bare = _REQUIREMENTS[name]
        # torch is asked for by itself: together with others pip looks for a newer one.
        _run([sys.executable, "-m", "venv", "--clear", str(target)])
        for arguments in ([requirements[0]], requirements, ["--no-deps", bare] if bare else []):
            if arguments:
                _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments])
        done.touch()
    return str(python)


def weights(name: str, model: Path) -> str:
    """The weights in the format of a peer.

    :param model: folder as faster-whisper wants it.
    """
    if name not in _FORMATS:
        return str(model)
    format_, file = _FORMATS[name]
    target = CACHE / "bench-models" / file
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # The Mel filters of ggml come from faster-whisper, which only this environment has.
        python = sys.executable if format_ == "ggml" else environment(name)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, file)
            _run([python, str(Path(__file__).with_name("convert.py")), format_, str(model), str(made)])
            made.rename(target)
    return str(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
