"""The state of files and windows while the engine processes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.windows import Window
from whisper_spark.decoding.encoder_output import EncodedRow
from whisper_spark.decoding.previous_text import PreviousText
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.speakers.diarization import ChannelSpeakers


@dataclass(slots=True, eq=False)
class FileWork:
    """The state of a file that is in progress.

    :param flags: quality flags for audio that is not in the windows.
    :param texts: texts of finished windows, in no particular order.
    :param issued: number of windows that were queued for the device.
    :param returned: how many of these are finished.
    :param read: whether the file has been read to its end.
    :param waiting_for_language: windows that wait until the first ones have determined the language.
    :param waiting_for_text: windows to refine that wait for the text before them.
    :param previous: the first texts of the windows, by channel.
    :param speakers: the speakers of each channel; ``None`` when they were not told apart.
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
    speakers: dict[int, ChannelSpeakers] | None = None

    @property
    def complete(self) -> bool:
        """Whether the file has been read and all its windows are finished."""
        return self.read and self.returned == self.issued


class Step(enum.Enum):
    """The next decoding step of a window."""

    FIRST = "its first decoding"
    REFINE = "beam search: greedy decoding was not sure of it"
    RETRY = "decoding again: its text failed the quality gate"


Key = tuple[Step, int, int]
"""Windows share a batch only when these are equal: step, frames of context, tokens of previous text."""


@dataclass(frozen=True, slots=True, eq=False)
class QueuedWindow:
    """A window in the queue for the device.

    :param context: length of the encoder's input, in frames; for ``RETRY``, that of the step before.
    :param text: result of the steps before.
    :param encoded: for ``REFINE``: output of the encoder.
    :param before: for ``REFINE``: tokens of the text before the window.
    """

    work: FileWork
    window: Window
    context: int
    step: Step = Step.FIRST
    text: WindowText | None = None
    encoded: EncodedRow | None = None
    before: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Memory of the host that it occupies, in bytes."""
        return self.window.features.nbytes + (0 if self.encoded is None else self.encoded.host_bytes)

    @property
    def key(self) -> Key:
        """The key that all windows of a batch share."""
        frames = FULL_FRAMES if self.step is Step.RETRY else self.context
        return self.step, frames, len(self.before)
