"""Decodes files in any container that FFmpeg knows to blocks of 16 kHz float32 samples, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import BinaryIO

from whisper_spark.audio.channels import Samples
from whisper_spark.audio.container import AudioError, Bytes, check_transfer, open_container
from whisper_spark.audio.demuxer import Demuxer
from whisper_spark.audio.headers import is_encrypted
from whisper_spark.audio.joined import first_container, next_container
from whisper_spark.audio.length import declared_length
from whisper_spark.audio.tracks import Block, Ignore, Mix, Outlet, Split, Track

__all__ = ["AudioError", "Block", "DecodedAudio", "Samples", "open_audio"]

# A file without a single decodable sample counts as corrupt, not as empty, if it is larger than this, which
# is more than headers and tags usually take.
_HEADERS_BYTES = 64 * 1024


class DecodedAudio:
    """An open audio file.

    :ivar declared_s: length that the container declares, in seconds; ``None`` when it declares none.
    """

    def __init__(
        self, file: Bytes, demuxer: Demuxer, split: bool, max_duration_s: float, track: int | None
    ) -> None:
        self._file = file
        self._first = demuxer
        self._split = split
        self._max_duration_s = max_duration_s
        self._damaged = False
        self._main = demuxer.default if track is None else track
        self._numbers = count()
        self._tracks: list[Track] = []
        for channels in demuxer.channels:
            self._add_track(channels)
        self._length = declared_length(demuxer.file, demuxer.container, demuxer.streams[self._main])
        self.declared_s = self._length.seconds
        if self._length.plausible and (self.declared_s or 0) > max_duration_s:
            raise AudioError(
                "too_long", f"{self.declared_s:.0f} seconds, longer than max_duration_s={max_duration_s:g}"
            )

    @property
    def channels(self) -> int:
        """Number of channels in the blocks, as far as known."""
        return sum(track.channels for track in self._heard())

    @property
    def decoded_s(self) -> float:
        """Length decoded so far, in seconds."""
        return max(track.seconds for track in self._heard())

    @property
    def truncated(self) -> bool:
        """Whether the audio is damaged or shorter than the file declares. Known after the last block."""
        end = self._tracks[self._main].clock_s
        damaged = self._damaged or any(track.damaged for track in self._heard())
        return self.decoded_s > 0 and (damaged or self._length.missed_by(end))

    @property
    def other_tracks(self) -> list[int]:
        """Tracks with sound that are not in the blocks, loudest first. Known after the last block."""
        outlets = [(track.outlet, number) for number, track in enumerate(self._tracks)]
        found = [(outlet.peak, n) for outlet, n in outlets if isinstance(outlet, Ignore) and outlet.audible]
        return [number for _, number in sorted(found, reverse=True)]

    @property
    def quiet_channels(self) -> list[int]:
        """Channels whose speech may be unheard in the mix, as :meth:`blocks` numbers them when it splits.

        Known after the last block. Files of several tracks have none.
        """
        mixer = self._tracks[self._main].outlet.mixer
        return mixer.quiet_channels if mixer is not None and len(self._tracks) == 1 else []

    def blocks(self) -> Iterator[Block]:
        """The decoded samples, about 10 seconds at a time; the blocks of each channel are in order.

        :raises AudioError: ``empty`` or ``corrupt`` when nothing can be decoded, ``too_long``.
        """
        for block in self._blocks():
            if self.decoded_s > self._max_duration_s:
                raise AudioError("too_long", f"longer than max_duration_s={self._max_duration_s:g} seconds")
            yield block
        if not self.decoded_s:
            if self._damaged or len(self._file) > _HEADERS_BYTES:
                raise AudioError("corrupt", "an audio stream of which nothing can be decoded")
            raise AudioError("empty", "an audio container without a single sample")

    def close(self) -> None:
        """Free FFmpeg's resources. :meth:`blocks` does so at its end."""
        self._first.container.close()

    def _blocks(self) -> Iterator[Block]:
        demuxer: Demuxer | None = self._first
        while demuxer is not None:
            try:
                yield from self._of_container(demuxer)
                following = next_container(self._file, demuxer)
                # An exact length that is reached shows that nothing is missing at the end.
                if following is None and self._length.slack is None:
                    demuxer.losses.finish(demuxer.end)
                self._damaged = self._damaged or self._is_damaged(demuxer)
            finally:
                demuxer.container.close()
            demuxer = following
        for track in self._tracks:
            yield from track.finish()

    def _of_container(self, demuxer: Demuxer) -> Iterator[Block]:
        tracks = self._tracks_for(demuxer)
        zero, at = demuxer.zero, max(track.seconds for track in self._tracks)
        if demuxer.same_clock:
            zero, at = self._first.zero, 0.0
        for track, stream in zip(tracks, demuxer.streams, strict=True):
            track.start(stream, zero, at, demuxer.format)
        for number, frame in demuxer.frames():
            track = tracks[number]
            before = track.gaps_s
            yield from track.push(frame)
            if track.gaps_s != before:
                demuxer.losses.explain(track.gaps_s - before)

    def _is_damaged(self, demuxer: Demuxer) -> bool:
        heard = self._heard()
        return demuxer.damaged([n for n, track in enumerate(self._tracks_for(demuxer)) if track in heard])

    def _tracks_for(self, demuxer: Demuxer) -> list[Track]:
        """The track of each stream of a container. Its default stream continues the default track so far."""
        while len(self._tracks) < len(demuxer.streams):
            self._add_track(1)
        streams = _first_of(len(demuxer.streams), demuxer.default)
        tracks = _first_of(len(self._tracks), self._first.default)
        places = dict(zip(streams, tracks, strict=False))
        return [self._tracks[places[number]] for number in range(len(demuxer.streams))]

    def _heard(self) -> list[Track]:
        return self._tracks if self._split else [self._tracks[self._main]]

    def _add_track(self, channels: int) -> None:
        outlet: Outlet
        if self._split:
            outlet = Split(self._numbers, max(channels, 1))
        else:
            outlet = Mix() if len(self._tracks) == self._main else Ignore()
        self._tracks.append(Track(outlet, channels, self._max_duration_s))


def open_audio(
    stream: BinaryIO,
    *,
    split: bool = False,
    max_duration_s: float = float("inf"),
    track: int | None = None,
) -> DecodedAudio:
    """Open a seekable binary stream as audio.

    :param split: keep the channels of all tracks apart instead of mixing those of one track.
    :param max_duration_s: refuse longer files, in seconds.
    :param track: index of the track to mix; ``None``: the default track, which players play.
    :raises AudioError: ``empty`` for zero bytes, ``not_audio``, ``no_audio_stream``, ``corrupt`` or
        ``too_long``.
    """
    file = Bytes(stream, 0, stream.seek(0, os.SEEK_END))
    if not len(file):
        raise AudioError("empty", "zero bytes")
    check_transfer(file)
    part, options = first_container(file)
    container = open_container(part, options)
    try:
        if (
            container.format.name.startswith("mov")
            and len(container.streams.audio) == 1
            and is_encrypted(part)
        ):
            raise AudioError("corrupt", "its sound is encrypted: decrypt it, or export it without protection")
        return DecodedAudio(file, Demuxer(part, container), split, max_duration_s, track)
    except BaseException:
        container.close()
        raise


def _first_of(count: int, first: int) -> list[int]:
    """The numbers below ``count``, with ``first`` at the front."""
    return [first, *(number for number in range(count) if number != first)]
