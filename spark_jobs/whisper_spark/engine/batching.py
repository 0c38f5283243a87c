"""Files and their windows on their way through the pipeline, and the batches that windows form."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from whisper_spark.audio.features import FULL_FRAMES, Features
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.decoding.decoder import WindowTask
from whisper_spark.decoding.previous_text import PreviousText
from whisper_spark.decoding.quality_gate import WindowText


@dataclass(slots=True, eq=False)
class FileWork:
    """Everything known about a file while it is under way."""

    file: AudioFile
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float = 0.0
    channels: int | None = None
    truncated: bool = False
    error: FileError | None = None
    size: int | None = None
    texts: list[tuple[int, int, WindowText]] = field(default_factory=list)  # channel, number in it, text
    issued: int = 0  # windows handed to the device
    returned: int = 0
    read: bool = False  # its thread is through with it
    held: list[Job] = field(default_factory=list)  # until the head has voted on the language
    unsure: list[Job] = field(default_factory=list)  # until the text before them is known
    previous: dict[int, PreviousText] = field(default_factory=dict)  # by channel

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self.read and self.returned == self.issued


class Step(enum.Enum):
    """How often a window has been decoded, and what that gave."""

    FIRST = "not yet"
    UNSURE = "greedy decoding was not sure of it"
    SUSPECT = "its text failed the quality gate"


Key = tuple[Step, int, int]
"""Windows share a batch only when these are equal: step, frames of context, tokens of previous text."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A window on its way.

    :param number: counts the windows of a channel.
    :param text: what the steps before gave.
    :param encoded: for unsure windows: what the encoder gave, of shape (1, positions, width).
    :param before: for unsure windows: tokens of the text before it.
    """

    work: FileWork
    channel: int
    number: int
    task: WindowTask
    step: Step = Step.FIRST
    text: WindowText | None = None
    encoded: Features | None = None
    before: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that it occupies."""
        return self.task.features.nbytes + (0 if self.encoded is None else self.encoded.nbytes)

    @property
    def end(self) -> float:
        """Where it ends in its file, in seconds."""
        last = self.task.map.chunks[-1]
        return last.start + last.length

    @property
    def key(self) -> Key:
        """What windows of one batch have in common."""
        frames = FULL_FRAMES if self.step is Step.SUSPECT else self.task.context
        return self.step, frames, len(self.before)


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Windows that must share a batch, and since when they wait for it."""

    jobs: Sequence[Job]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Key:
        return self.jobs[0].key

    @property
    def frames(self) -> int:
        return len(self.jobs) * self.key[1]


class Batches:
    """Windows that wait for the device, and the choice of those that go next. Not thread-safe.

    :param room: frames of context that a batch may hold.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._ready: list[_Group] = []  # oldest first

    def __bool__(self) -> bool:
        return bool(self._ready)

    def add(self, jobs: Sequence[Job]) -> None:
        """Windows that must travel together."""
        self._ready.append(_Group(jobs))

    def best(self) -> tuple[Key | None, bool]:
        """What most windows wait for, and whether they fill a batch; or what has waited too long."""
        if self._ready and time.monotonic() - self._ready[0].since > _LONGEST_WAIT_SECONDS:
            return self._ready[0].key, True
        frames: dict[Key, int] = {}
        for group in self._ready:
            frames[group.key] = frames.get(group.key, 0) + group.frames
        if not frames:
            return None, False
        key = max(frames, key=frames.__getitem__)
        return key, frames[key] + key[1] > self._room

    def take(self, key: Key, shares: int = 1) -> list[Job]:
        """As many of these windows as fit into a batch, at least one group.

        :param shares: take no more than one of so many equal parts of all that waits.
        """
        batch: list[Job] = []
        left: list[_Group] = []
        waiting = sum(group.frames for group in self._ready)
        share = -(-waiting // (shares * key[1])) * key[1]  # whole windows
        room = min(self._room, share)
        for group in self._ready:
            fits = not batch or len(batch) * key[1] + group.frames <= room
            if fits and group.key == key:
                batch.extend(group.jobs)
            else:
                left.append(group)
        self._ready = left
        return batch


_LONGEST_WAIT_SECONDS = 60.0
# Then a window goes even if its batch is not full: its file cannot be saved before. On two cores half a
# minute of work waits at any time: with less, the oldest would go first always, in batches half full.
