"""The real engine, which notes each time that it loads a model. Tests send this file to the executors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from whisper_spark.contract import WhisperOptions
from whisper_spark.engine import transcriber

LOADS_SUFFIX = ".loads"
"""Suffix of a log beside the folder of the model. It has a line with the process id for each loading."""


def get_engine(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Any:
    class Noting(transcriber.Engine):
        def __init__(self, *arguments: Any) -> None:
            with Path(options.model + LOADS_SUFFIX).open("a") as log:
                log.write(f"{os.getpid()}\n")
            super().__init__(*arguments)

    with mock.patch.object(transcriber, "Engine", Noting):
        return transcriber.get_engine(options, storage)
