"""The batches that windows form."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.engine.work import Key, QueuedWindow

# Then a window goes even if its batch is not full: its file cannot be saved before. On two cores half a
# minute of work waits at any time: with less, the oldest would go first always, in batches half full.
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Windows that must share a batch, and since when they wait for it."""

    windows: Sequence[QueuedWindow]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Key:
        return self.windows[0].key

    @property
    def frames(self) -> int:
        return len(self.windows) * self.key[1]


class Batches:
    """Windows that wait for the device, and the choice of those that go next. Not thread-safe.

    :param room: frames of context that a batch may hold.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._ready: list[_Group] = []  # oldest first

    def __bool__(self) -> bool:
        return bool(self._ready)

    def shrink(self, frames: int) -> None:
        """Let batches hold no more than so many frames of context from now on, and at least one window."""
        self._room = min(self._room, max(frames, FULL_FRAMES))

    def add(self, windows: Sequence[QueuedWindow]) -> None:
        """Windows that must travel together."""
        self._ready.append(_Group(windows))

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

    def take(self, key: Key, shares: int = 1) -> list[QueuedWindow]:
        """As many of these windows as fit into a batch, at least one group.

        :param shares: take no more than one of so many equal parts of all that waits.
        """
        batch: list[QueuedWindow] = []
        left: list[_Group] = []
        waiting = sum(group.frames for group in self._ready)
        share = -(-waiting // (shares * key[1])) * key[1]  # whole windows
        room = min(self._room, share)
        for group in self._ready:
            fits = not batch or len(batch) * key[1] + group.frames <= room
            if fits and group.key == key:
                batch.extend(group.windows)
            else:
                left.append(group)
        self._ready = left
        return batch
