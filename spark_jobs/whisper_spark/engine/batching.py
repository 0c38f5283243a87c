"""Groups windows into batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.engine.work import Key, QueuedWindow, Step

# A window that has waited this long is decoded next even if its batch is not full, because its file cannot
# finish without it. On two cores about half a minute of work waits at any time: with a shorter limit, the
# oldest windows would always be next, in half-full batches.
_LONGEST_WAIT_SECONDS = 60.0

_ORDER = {step: place for place, step in enumerate(Step)}


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Windows that must be in the same batch, and the time since which they wait."""

    windows: Sequence[QueuedWindow]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Key:
        return self.windows[0].key

    @property
    def frames(self) -> int:
        return len(self.windows) * self.key[1]


class Batches:
    """The windows that wait for the device. Chooses the next batch. Not thread-safe.

    :param room: maximum size of a batch, in frames of context.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        # Oldest first.
        self._ready: list[_Group] = []

    def __bool__(self) -> bool:
        return bool(self._ready)

    def shrink(self, frames: int) -> None:
        """Limit batches to this many frames of context from now on, but at least to one window."""
        self._room = min(self._room, max(frames, FULL_FRAMES))

    def add(self, windows: Sequence[QueuedWindow]) -> None:
        """Add windows that must be in the same batch."""
        self._ready.append(_Group(windows))

    def best(self) -> tuple[Key | None, bool]:
        """The key of the next batch, and whether to decode it now.

        It is the key with the most frames waiting, and ready when these fill a batch. Of several full batches
        the one of the latest step goes first: it finishes files, and makes room for windows that are read.
        The key of a window that has waited too long goes before all others and is always ready.
        """
        if self._ready and time.monotonic() - self._ready[0].since > _LONGEST_WAIT_SECONDS:
            return self._ready[0].key, True
        frames: dict[Key, int] = {}
        for group in self._ready:
            frames[group.key] = frames.get(group.key, 0) + group.frames
        if not frames:
            return None, False
        full = [key for key in frames if frames[key] + key[1] > self._room]
        if full:
            return max(full, key=lambda key: (_ORDER[key[0]], frames[key])), True
        return max(frames, key=frames.__getitem__), False

    def take(self, key: Key, shares: int = 1) -> list[QueuedWindow]:
        """Take a batch: as many windows with this key as fit, at least one group.

        :param shares: take at most this fraction (1 / ``shares``) of all waiting frames.
        """
        batch: list[QueuedWindow] = []
        left: list[_Group] = []
        waiting = sum(group.frames for group in self._ready)
        # Rounded up to whole windows.
        share = -(-waiting // (shares * key[1])) * key[1]
        room = min(self._room, share)
        for group in self._ready:
            fits = not batch or len(batch) * key[1] + group.frames <= room
            if fits and group.key == key:
                batch.extend(group.windows)
            else:
                left.append(group)
        self._ready = left
        return batch
