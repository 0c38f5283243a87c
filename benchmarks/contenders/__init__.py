"""Who takes part in the benchmarks, and what each needs to run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to transcribe.

    :param title: for the tables.
    :param prepare: makes what it needs; gives the Python to run it with and the weights.
    """

    name: str
    title: str
    prepare: Callable[[], tuple[str, str]]

    @property
    def script(self) -> str:
        """The program."""
        return str(FOLDER / f"{self.name}.py")


def _here() -> tuple[str, str]:
    from assemble_model import assemble

    return sys.executable, str(assemble())


def _peer(name: str) -> Callable[[], tuple[str, str]]:
    def prepare() -> tuple[str, str]:
        from assemble_model import assemble
        from environments import environment, weights

        return environment(name), weights(name, assemble())

    return prepare


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("method1", "article, method 1: multiprocessing pool", _here),
        Contender("method2", "article, method 2: RDD and broadcast", _here),
        Contender("method3", "article, method 3: predict_batch_udf", _here),
        Contender("batched", "faster-whisper batched, file by file", _here),
        Contender("batched_greedy", "faster-whisper batched, greedy", _here),
        Contender("openai_whisper", "openai-whisper, float32", _peer("openai_whisper")),
        Contender("hf_pipeline", "transformers pipeline, float32", _peer("hf_pipeline")),
        Contender("whispercpp", "whisper.cpp (pywhispercpp), q8_0", _peer("whispercpp")),
        Contender("s2t", "WhisperS2T (reborn), told the language", _peer("s2t")),
        Contender("ours_files", "whisper_spark: transcribe_files", _here),
        Contender("ours_spark", "whisper_spark: the job in Spark", _here),
        Contender("ours_udf", "whisper_spark: whisper_udf in Spark", _here),
    )
}
