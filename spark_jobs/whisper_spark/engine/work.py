"""Files and their windows on their way through the engine."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from whisper_spark.audio.features import FULL_FRAMES, Features
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.windows import Window
from whisper_spark.decoding.previous_text import PreviousText
from whisper_spark.decoding.window_text import WindowText


@dataclass(slots=True, eq=False)
class FileWork:
    """Everything known about a file while it is under way.

    :param flags: what of the file is not in its windows.
    :param texts: of the windows that are through, in no order.
    :param issued: windows that were handed to the device.
    :param returned: of these, how many are through.
    :param read: its reader is through with it.
    :param waiting_for_language: windows that wait until the first ones have voted.
    :param waiting_for_text: unsure windows that wait for the text before them.
    :param previous: first texts by channel.
    """

    file: AudioFile
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float = 0.0
    channels: int | None = None
    flags: tuple[str, ...] = ()
    error: FileError | None = None
    size: int | None = None
    texts: list[WindowText] = field(default_factory=list)
    issued: int = 0
    returned: int = 0
    read: bool = False
    waiting_for_language: list[QueuedWindow] = field(default_factory=list)
    waiting_for_text: list[QueuedWindow] = field(default_factory=list)
    previous: dict[int, PreviousText] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self.read and self.returned == self.issued


class Step(enum.Enum):
    """What a window waits for."""

    FIRST = "its first decoding"
    REFINE = "beam search: greedy decoding was not sure of it"
    RETRY = "decoding again: its text failed the quality gate"


Key = tuple[Step, int, int]
"""Windows share a batch only when these are equal: step, frames of context, tokens of previous text."""


@dataclass(frozen=True, slots=True, eq=False)
class QueuedWindow:
    """A window of a file, and what it waits for.

    :param context: frames that the encoder is to see; for windows to decode again, what it has seen.
    :param text: what the steps before gave.
    :param encoded: for windows to refine: what the encoder gave, of shape (1, positions, width).
    :param before: for windows to refine: tokens of the text before it.
    """

    work: FileWork
    window: Window
    context: int
    step: Step = Step.FIRST
    text: WindowText | None = None
    encoded: Features | None = None
    before: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that it occupies."""
        return self.window.features.nbytes + (0 if self.encoded is None else self.encoded.nbytes)

    @property
    def key(self) -> Key:
        """What windows of one batch have in common."""
        frames = FULL_FRAMES if self.step is Step.RETRY else self.context
        return self.step, frames, len(self.before)
