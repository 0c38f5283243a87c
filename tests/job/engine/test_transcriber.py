"""The engine on recorded voices: what was said, when, in which file - and nothing else."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest
from recordings import RATE, call, samples_of, silence, write
from servers import S3Server
from speech import LANGUAGES, Clip
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from whisper_spark import Transcript, WhisperOptions, transcribe_files
from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.windows import Window
from whisper_spark.decoding import decoder
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.decoding.quality_gate import is_unsure
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine.transcriber import AudioFile, Engine, get_engine
from whisper_spark.storage.objects import ObjectStorage

PER_LANGUAGE = 12


@pytest.fixture(scope="module")
def options(model_dir: Path) -> WhisperOptions:
    return WhisperOptions(model=str(model_dir))


@pytest.fixture(scope="module")
def clips(speech: list[Clip]) -> list[Clip]:
    """Prompts of all languages that stand for them: long enough to tell one language from another."""
    chosen = []
    for language in LANGUAGES:
        spoken = [c for c in speech if c.language == language and c.seconds > 3 and "(" not in c.text]
        chosen += random.Random(11).sample(spoken, PER_LANGUAGE)
    return chosen


@pytest.fixture(scope="module")
def transcripts(clips: list[Clip], options: WhisperOptions) -> dict[str, Transcript]:
    found = transcribe_files([clip.path for clip in clips], options)
    return {transcript.audio_uri.removeprefix("file://"): transcript for transcript in found}


def word_error_rate(pairs: Iterable[tuple[str, str | None]], language: str) -> float:
    normalise = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    references, texts = zip(*((normalise(a), normalise(b or "")) for a, b in pairs), strict=True)
    return float(jiwer.process_words(list(references), list(texts)).wer)


# What whisper-base reaches on these prompts, and a few words of slack.
WORST = {"en": 0.08, "es": 0.40, "fr": 0.30, "it": 0.35, "ru": 0.30}


@pytest.mark.parametrize("language", LANGUAGES)
def test_word_error_rate_of_recorded_prompts(
    clips: list[Clip], transcripts: dict[str, Transcript], language: str
) -> None:
    spoken = [clip for clip in clips if clip.language == language]
    rate = word_error_rate([(c.text, transcripts[str(c.path)].text) for c in spoken], language)
    assert rate <= WORST[language], f"word error rate {rate:.1%}"


def test_every_file_has_exactly_one_transcript(clips: list[Clip], transcripts: dict[str, Transcript]) -> None:
    assert set(transcripts) == {str(clip.path) for clip in clips}
    assert {t.status for t in transcripts.values()} == {"ok"}


def test_languages_are_told_apart(clips: list[Clip], transcripts: dict[str, Transcript]) -> None:
    right = [transcripts[str(clip.path)].language == clip.language for clip in clips]
    assert sum(right) >= 0.85 * len(right)


def test_a_row_carries_what_the_table_promises(clips: list[Clip], transcripts: dict[str, Transcript]) -> None:
    for clip in clips:
        found = transcripts[str(clip.path)]
        assert found.duration_s == pytest.approx(clip.seconds, abs=0.1)
        assert 0 < (found.speech_s or 0) <= (found.duration_s or 0)
        assert found.audio_bytes == clip.path.stat().st_size
        assert found.channels == 1
        assert found.engine_version.startswith("whisper_spark ")
        assert [s.id for s in found.segments] == list(range(len(found.segments)))
        times = [t for s in found.segments for w in s.words or () for t in (w.start, w.end)]
        assert times == sorted(times)
        assert all(0 <= t <= (found.duration_s or 0) for t in times)


def test_the_order_of_files_changes_no_text(
    clips: list[Clip], transcripts: dict[str, Transcript], options: WhisperOptions
) -> None:
    shuffled = random.Random(5).sample(clips, len(clips))[:30]
    again = transcribe_files([clip.path for clip in shuffled], options)
    different = [
        t.audio_uri for t in again if t.text != transcripts[t.audio_uri.removeprefix("file://")].text
    ]
    assert len(different) <= 1, different


def sureness(transcript: Transcript) -> float:
    return float(np.mean([segment.avg_logprob for segment in transcript.segments]))


def test_text_before_a_window_makes_it_surer_and_does_not_depend_on_the_order_of_decoding(
    speech: list[Clip], options: WhisperOptions, tmp_path: Path
) -> None:
    chosen = [c for c in speech if c.language == "es" and 3 < c.seconds < 8]
    samples, _ = call((c.path, c.text) for c in random.Random(5).sample(chosen, 12))
    path = write(tmp_path / "call.wav", samples)
    # Short windows, all of them unsure: each is decoded again with the text before it.
    short = dataclasses.replace(options, language="es", chunk_length=5.0, greedy_log_prob_threshold=0.0)
    [with_it] = transcribe_files([path], short)
    [without] = transcribe_files([path], dataclasses.replace(short, condition_on_previous_text=False))
    assert sureness(with_it) > sureness(without)
    found = transcribe_files([path] * 3, dataclasses.replace(short, batch_size=1))
    assert {t.text for t in found} == {with_it.text}


def test_only_the_first_window_of_a_file_is_taken_for_one_without_text_before_it(
    librivox: list[Clip], options: WhisperOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, bool] = {}

    def record(text: WindowText, options: WhisperOptions, *, alone: bool) -> bool:
        seen[text.number] = alone
        return is_unsure(text, options, alone=alone)

    engine = get_engine(dataclasses.replace(options, chunk_length=5.0, num_workers=1))
    monkeypatch.setattr(decoder, "is_unsure", record)
    longest = max(librivox, key=lambda clip: clip.seconds)
    list(engine.transcribe([AudioFile(f"file://{longest.path}")]))
    assert len(seen) > 1
    assert seen == {number: number == 0 for number in range(len(seen))}


def test_the_end_of_a_recording_is_heard(speech: list[Clip], options: WhisperOptions) -> None:
    # With a short context, beam search ends this one after its first sentence: short texts are likelier.
    [clip] = [
        c for c in speech if c.language == "es" and c.text.startswith("Hasta luego. Gracias por probar")
    ]
    [found] = transcribe_files([clip.path], options)
    assert found.segments[-1].end > clip.seconds - 1.0
    assert "abierto" in (found.text or "")
    assert "missed_speech" not in found.quality_flags


def test_a_window_full_of_words_is_heard_to_its_end(
    speech: list[Clip], options: WhisperOptions, tmp_path: Path
) -> None:
    # CTranslate2 allows half as many tokens as it is told. Half of 224 is less than half a minute of Russian.
    chosen = [c for c in speech if c.language == "ru" and 4 < c.seconds < 4.8]
    densest = sorted(chosen, key=lambda c: len(c.text) / c.seconds)[-6:]
    samples, spans = call(((c.path, c.text) for c in densest), pause=0.1)
    path = write(tmp_path / "dense.wav", samples)
    [found] = transcribe_files([path], dataclasses.replace(options, language="ru", chunk_length=30.0))
    assert found.segments[-1].end > spans[-1].end - 1.0
    assert not found.quality_flags


@pytest.mark.parametrize("every_time", [False, True])
def test_words_that_decoding_leaves_out_are_looked_for_and_else_reported(
    librivox: list[Clip], options: WhisperOptions, monkeypatch: pytest.MonkeyPatch, every_time: bool
) -> None:
    engine = get_engine(dataclasses.replace(options, language="en"))
    longest = AudioFile(f"file://{max(librivox, key=lambda clip: clip.seconds).path}")
    [whole] = engine.transcribe([longest])
    original = WindowDecoder._hypotheses
    tries = 0

    def stop_half_way(self: WindowDecoder, *args: Any, **settings: Any) -> list[Any]:
        nonlocal tries
        tries += 1
        results = original(self, *args, **settings)
        if tries > 1 and not every_time:
            return results
        tokens = [result.sequences_ids[0] for result in results]
        return [
            SimpleNamespace(sequences_ids=[ids[: len(ids) // 2]], scores=r.scores, no_speech_prob=0.0)
            for ids, r in zip(tokens, results, strict=True)
        ]

    monkeypatch.setattr(WindowDecoder, "_hypotheses", stop_half_way)
    [found] = engine.transcribe([longest])
    assert tries > 1
    assert (found.text == whole.text) is not every_time
    assert ("missed_speech" in found.quality_flags) is every_time


def test_every_decoder_works_to_the_end(librivox: list[Clip], options: WhisperOptions) -> None:
    # Two of them waited for the same window: who gets nothing must wait for the next.
    first_is_done = threading.Event()

    def files() -> Iterator[AudioFile]:
        yield AudioFile(f"file://{librivox[0].path}")
        first_is_done.wait(timeout=60)
        yield AudioFile(f"file://{librivox[1].path}")

    found = get_engine(dataclasses.replace(options, num_workers=2)).transcribe(files())
    next(found)
    decoders = [t for t in threading.enumerate() if t.name.startswith("whisper-decode")]
    first_is_done.set()
    assert [t.status for t in found] == ["ok"]
    assert len(decoders) == 2


def test_bad_files_between_good_ones_harm_only_their_own_rows(
    librivox: list[Clip], options: WhisperOptions, tmp_path: Path
) -> None:
    good = [clip.path for clip in librivox]
    (tmp_path / "page.mp3").write_text("<html><body>Not found</body></html>")
    (tmp_path / "empty.wav").touch()
    files = [tmp_path / "page.mp3", good[0], tmp_path / "empty.wav", good[1], tmp_path / "gone.wav"]
    found = {Path(t.audio_uri).name: t for t in transcribe_files(files, options)}
    assert {name: t.error_code for name, t in found.items() if t.status == "error"} == {
        "page.mp3": "not_audio",
        "empty.wav": "empty",
        "gone.wav": "not_found",
    }
    for clip in librivox[:2]:
        assert word_error_rate([(clip.text, found[clip.path.name].text)], "en") <= 0.25


def test_the_same_file_twice_gives_two_transcripts(librivox: list[Clip], options: WhisperOptions) -> None:
    texts = [t.text for t in transcribe_files([librivox[1].path] * 2, options)]
    assert len(texts) == 2
    assert texts[0] == texts[1] != ""


def test_a_call_in_two_channels_keeps_the_speakers_apart(
    speech: list[Clip], options: WhisperOptions, tmp_path: Path
) -> None:
    english = [c for c in speech if c.language == "en" and c.seconds > 3][:4]
    left, right = samples_of(english[0].path), samples_of(english[1].path)
    length = len(left) + len(right) + RATE
    channels = np.zeros((2, length), np.float32)
    channels[0, : len(left)] = left
    channels[1, -len(right) :] = right
    file = write(tmp_path / "call.wav", channels)
    split = dataclasses.replace(options, channels="split")
    [apart] = transcribe_files([file], split)
    assert apart.channels == 2
    said = {c: " ".join(s.text for s in apart.segments if s.channel == c) for c in (0, 1)}
    assert word_error_rate([(english[0].text, said[0]), (english[1].text, said[1])], "en") <= 0.25
    [mixed] = transcribe_files([file], options)
    assert {s.channel for s in mixed.segments} == {None}
    assert word_error_rate([(f"{english[0].text} {english[1].text}", mixed.text)], "en") <= 0.25


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg", ".m4a", ".flac"])
def test_any_container_gives_the_same_words(
    librivox: list[Clip], options: WhisperOptions, tmp_path: Path, suffix: str
) -> None:
    rate = 48_000 if suffix == ".ogg" else 22_050  # Opus knows only a few rates
    file = write(tmp_path / f"clip{suffix}", samples_of(librivox[3].path), rate=rate)
    [found] = transcribe_files([file], options)
    assert found.error_message is None
    assert word_error_rate([(librivox[3].text, found.text)], "en") <= 0.2


def test_words_lie_where_they_were_spoken(
    speech: list[Clip], options: WhisperOptions, tmp_path: Path
) -> None:
    english = [c for c in speech if c.language == "en" and 3 < c.seconds < 9 and "(" not in c.text][:12]
    samples, spans = call([(c.path, c.text) for c in english], pause=2.0)
    [found] = transcribe_files([write(tmp_path / "call.wav", samples)], options)
    words = [w for s in found.segments for w in s.words or ()]
    near = []
    for span in spans:
        inside = [w for w in words if w.end > span.start - 1 and w.start < span.end + 1]
        near += [abs(inside[0].start - span.start) <= 0.4, abs(inside[-1].end - span.end) <= 0.4]
    assert sum(near) >= 0.9 * len(near), f"{sum(near)} of {len(near)}"
    assert max(s.end - s.start for s in found.segments) <= 7.5


@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_where_nothing_is_said_nothing_is_written(options: WhisperOptions, tmp_path: Path, kind: str) -> None:
    time = np.arange(20 * RATE) / RATE
    sounds = {
        "silence": silence(20),
        "noise": np.random.default_rng(1).normal(0, 0.1, 20 * RATE).astype(np.float32),
        "tone": (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32),
    }
    [found] = transcribe_files([write(tmp_path / f"{kind}.wav", sounds[kind])], options)
    assert (found.status, found.text, found.segments) == ("ok", "", ())
    assert found.quality_flags == ("no_speech",)


def test_without_word_timestamps_segments_have_times_but_no_words(
    librivox: list[Clip], options: WhisperOptions
) -> None:
    plain = dataclasses.replace(options, word_timestamps=False)
    [found] = transcribe_files([librivox[0].path], plain)
    assert [s.words for s in found.segments] == [None]
    assert 0 <= found.segments[0].start < found.segments[0].end <= (found.duration_s or 0)


def test_a_given_language_is_not_detected(librivox: list[Clip], options: WhisperOptions) -> None:
    [found] = transcribe_files([librivox[0].path], dataclasses.replace(options, language="en"))
    assert (found.language, found.language_probability) == ("en", None)


def test_hotwords_decide_how_a_name_is_spelled(librivox: list[Clip], options: WhisperOptions) -> None:
    hinted = dataclasses.replace(options, language="en", hotwords="Jon Dashwoode")
    [found] = transcribe_files([librivox[0].path], hinted)
    assert "Dashwoode" in (found.text or "")


def test_a_file_longer_than_allowed_is_an_error(librivox: list[Clip], options: WhisperOptions) -> None:
    [found] = transcribe_files([librivox[0].path], dataclasses.replace(options, max_duration_s=2.0))
    assert (found.status, found.error_code) == ("error", "too_long")


def test_the_model_is_loaded_once(options: WhisperOptions) -> None:
    assert get_engine(options) is get_engine(dataclasses.replace(options))


def test_abandoning_a_run_leaves_no_threads(clips: list[Clip], options: WhisperOptions) -> None:
    import threading

    before = threading.active_count()
    running = transcribe_files([clip.path for clip in clips], options)
    next(running)
    running.close()
    assert threading.active_count() <= before


def test_a_device_that_returns_empty_text_is_refused(
    options: WhisperOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in for an H100 with an old driver, which CTranslate2 answers with empty text and no error.
    def mute(self: WindowDecoder, *arguments: object) -> list:
        texts = original(self, *arguments)
        return [dataclasses.replace(text, text="", tokens=(), words=()) for text in texts]

    original = WindowDecoder.transcribe
    monkeypatch.setattr(WindowDecoder, "transcribe", mute)
    with pytest.raises(UnusableDeviceError, match="no text at all"):
        Engine(options)


def test_a_gpu_that_is_asked_for_but_not_there_is_refused(options: WhisperOptions) -> None:
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnusableDeviceError, match="sees no GPU"):
        Engine(dataclasses.replace(options, device="cuda"))


def test_a_window_that_breaks_the_decoder_fails_only_its_file(
    librivox: list[Clip], options: WhisperOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only a GPU runs out of memory for real; here the decoder says so for every batch with the longest clip.
    engine = get_engine(options)
    longest = max(librivox, key=lambda clip: clip.seconds)
    original = WindowDecoder.encode

    def encode(self: WindowDecoder, windows: list[Window], frames: int) -> object:
        if any(window.map.seconds > longest.seconds - 1 for window in windows):
            raise RuntimeError("CUDA failed with error out of memory")
        return original(self, windows, frames)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    files = [AudioFile(f"file://{clip.path}") for clip in librivox]
    found = {t.audio_uri: t for t in engine.transcribe(files)}
    failed = {uri: t.error_code for uri, t in found.items() if t.status == "error"}
    assert failed == {f"file://{longest.path}": "out_of_memory"}


def test_a_device_that_runs_out_of_memory_gets_smaller_batches_from_then_on(
    librivox: list[Clip], options: WhisperOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here the decoder says so for every batch with more than 30 s of context.
    batched = dataclasses.replace(options, batch_size=4, num_workers=1, language="en", word_timestamps=False)
    engine = get_engine(batched)
    files = [AudioFile(f"file://{clip.path}") for clip in librivox] * 3
    expected = {t.audio_uri: t.text for t in engine.transcribe(files)}
    original = WindowDecoder.encode
    failed: list[tuple[int, int]] = []

    def encode(self: WindowDecoder, windows: list[Window], frames: int) -> object:
        if len(windows) * frames > FULL_FRAMES:
            failed.append((len(windows), frames))
            raise RuntimeError("CUDA failed with error out of memory")
        return original(self, windows, frames)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    found = list(engine.transcribe(files))
    assert {t.audio_uri: t.text for t in found} == expected
    assert len(found) == len(files)
    # The first batch was halved until it fitted, and no full batch was tried after it.
    (size, frames), *parts = failed
    halves = [size // 2, size - size // 2]
    assert parts == [(half, frames) for half in halves if half * frames > FULL_FRAMES]


def test_objects_that_vanish_change_or_are_forbidden_after_listing_are_errors_of_their_own(
    librivox: list[Clip], options: WhisperOptions, s3: S3Server
) -> None:
    bucket = s3.bucket("calls")
    storage = ObjectStorage(s3.config)
    names = ("kept.wav", "replaced.wav", "deleted.wav")
    for name in names:
        storage.write_bytes(f"s3://{bucket}/{name}", librivox[1].path.read_bytes())
    listed = [storage.info(f"s3://{bucket}/{name}") for name in names]
    files = [AudioFile(info.uri, info.etag, info.size) for info in listed]
    storage.write_bytes(listed[1].uri, librivox[4].path.read_bytes())
    storage.delete([listed[2].uri])
    engine = get_engine(options)
    codes = {t.audio_uri.rpartition("/")[2]: t.error_code for t in engine.transcribe(files, storage)}
    assert codes == {"kept.wav": None, "replaced.wav": "changed_during_read", "deleted.wav": "not_found"}
    stranger = ObjectStorage({**s3.config, "aws_secret_access_key": "not the one"})
    [refused] = engine.transcribe(files[:1], stranger)
    assert (refused.status, refused.error_code) == ("error", "forbidden")
