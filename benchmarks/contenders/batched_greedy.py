"""The same as ``batched``, decoding greedily: as fast as faster-whisper goes on this machine."""

from __future__ import annotations

from collections.abc import Iterator

from batched import transcribe as transcribe_with
from common import Spoken, Task, main


def transcribe(task: Task) -> Iterator[Spoken]:
    yield from transcribe_with(task, beam=1)


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2")
