"""Files with several tracks of audio: one is read, or all, and what is left out is flagged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Format, Samples, decoded, encode, packets_of, spans
from av.stream import Disposition
from recordings import samples_of
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader, Finished
from whisper_spark.audio.windows import Window


def tracks(path: Path, rows: Sequence[Samples], default: int, container: str = "matroska") -> bytes:
    """A file with one audio track for each row; players play the default track."""
    with av.open(str(path), "w", format=container) as file:
        streams: list[Any] = [file.add_stream("aac", rate=RATE, layout="mono") for _ in rows]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        pairs = zip(streams, rows, strict=True)
        packets = [packet for stream, row in pairs for packet in packets_of(stream, row[None], RATE)]
        for packet in sorted(packets, key=lambda packet: packet.dts or 0):
            file.mux(packet)
    return path.read_bytes()


@pytest.fixture(scope="module")
def sentence(librivox: list[Clip]) -> Samples:
    return samples_of(librivox[1].path)


def read(data: bytes, **options: Any) -> tuple[list[Window], Finished]:
    features = LogMel(80)
    reader = FileReader(WhisperOptions(**options), features, lambda _: (io.BytesIO(data), len(data)))
    parts = list(reader.read(AudioFile("a")))
    assert isinstance(parts[-1], Finished), parts[-1]
    return [part for part in parts if isinstance(part, Window)], parts[-1]


def noise(like: Samples) -> Samples:
    return np.random.default_rng(2).normal(0, 0.01, len(like)).astype(np.float32)


@pytest.mark.parametrize("default", [0, 1])
def test_track_that_players_play_is_read_and_others_are_flagged(
    default: int, sentence: Samples, tmp_path: Path
) -> None:
    late = np.concatenate([np.zeros(5 * RATE, np.float32), sentence])
    windows, finished = read(tracks(tmp_path / "a", [sentence, late], default))
    assert windows[0].map.chunks[0].start == pytest.approx([0, 5][default], abs=0.6)
    assert finished.flags == ("other_tracks",)


def test_other_track_is_read_when_nobody_speaks_in_the_first(sentence: Samples, tmp_path: Path) -> None:
    windows, finished = read(tracks(tmp_path / "a", [noise(sentence), sentence], 0))
    assert windows
    assert finished.speech_s > 2
    assert finished.flags == ()


def test_silent_other_track_is_not_flagged(sentence: Samples, tmp_path: Path) -> None:
    windows, finished = read(tracks(tmp_path / "a", [sentence, np.zeros_like(sentence)], 0))
    assert windows
    assert finished.flags == ()


def test_split_reads_the_channels_of_all_tracks(sentence: Samples, tmp_path: Path) -> None:
    data = tracks(tmp_path / "a", [sentence, sentence, sentence], 1)
    windows, finished = read(data, channels="split")
    assert {window.channel for window in windows} == {0, 1, 2}
    assert finished.channels == 3
    assert finished.flags == ()


def test_joined_transport_streams_with_other_ids_are_decoded_to_the_end(sentence: Samples) -> None:
    form = next(form for form in FORMATS if form.name == "ts-aac")
    pause = np.zeros(2 * RATE, np.float32)
    sound = np.concatenate([sentence[:RATE], pause])
    moved_id = {"mpegts_start_pid": "0x300", "mpegts_pmt_start_pid": "0x1200"}
    data = encode(form, np.tile(sound, 3)[None])
    data += encode(Format("ts", "mpegts", "mp2", 44_100, moved_id), np.tile(sound, 3)[None])
    channels, _ = decoded(data)
    assert len(spans(channels[0])) == 6
