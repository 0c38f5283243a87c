"""Retries, short contexts, suppressed tokens and language detection in one batch of windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from recordings import samples_of
from speech import Clip, prompts, speech_root

from whisper_spark import WhisperOptions
from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.windows import Chunk, ChunkMap, Window
from whisper_spark.decoding.calls import Model
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.encoder_output import Encoded
from whisper_spark.engine.transcriber import AudioFile, get_engine


@pytest.fixture(scope="module")
def decoder(model_dir: Path) -> WindowDecoder:
    # No text is sure enough, and chance is left out: every pass runs, with the same result each time.
    options = WhisperOptions(model=str(model_dir), language="en", log_prob_threshold=0.0, temperature=0)  # type: ignore[arg-type]
    return WindowDecoder(options, model_dir, Device("cpu", 0, 2, 1))


@pytest.fixture(scope="module")
def short_prompts() -> dict[str, Path]:
    """English digits and numbers, each by itself."""
    return {
        clip.path.stem: clip.path
        for clip in prompts(speech_root(), min_words=1)
        if clip.language == "en" and clip.path.parent.name == "digits"
    }


def test_a_retry_repeats_nothing_that_was_tried_with_the_same_context(
    decoder: WindowDecoder, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = min(librivox, key=lambda clip: clip.seconds)
    features = decoder.features(samples_of(short.path))
    window = Window(0, 0, ChunkMap((Chunk(0.0, 0.0, short.seconds),)), features)
    passes: list[tuple[int, int]] = []
    generate = Model.generate

    def record(self: Model, encoded: Encoded, prompts: list[list[int]], **settings: Any) -> list[Any]:
        passes.append((encoded.windows, settings["beam_size"]))
        return generate(self, encoded, prompts, **settings)

    encoded = decoder.encode([window], FULL_FRAMES)
    [first] = decoder.transcribe(encoded, [window], ["en"], {})
    unlike = dataclasses.replace(first, text="something else", tokens=(1, 2))
    monkeypatch.setattr(Model, "generate", record)
    # Nothing confirms the second window's text before the passes that it has not been through.
    decoder.retry([window, window], [unlike, unlike], [1000, FULL_FRAMES])
    assert passes[:2] == [(1, 1), (2, 5)]


@pytest.mark.parametrize("name", ["5", "12"])
def test_a_word_that_a_short_context_hears_twice_is_written_once(
    short_prompts: dict[str, Path], model_dir: Path, name: str
) -> None:
    engine = get_engine(WhisperOptions(model=str(model_dir), language="en"))
    [found] = engine.transcribe([AudioFile(f"file://{short_prompts[name]}")])
    assert (found.text or "").strip(" .") == name


@pytest.mark.parametrize("tokens", [(), None, (0, 51_864)], ids=["none", "None", "first and last"])
def test_any_tokens_of_the_model_can_be_suppressed_or_none(
    model_dir: Path, librivox: list[Clip], tokens: Any
) -> None:
    options = WhisperOptions(model=str(model_dir), language="en", suppress_tokens=tokens)
    short = min(librivox, key=lambda clip: clip.seconds)
    [found] = get_engine(options).transcribe([AudioFile(f"file://{short.path}")])
    assert "not an ill-disposed young man" in (found.text or "")


def test_detecting_languages_on_a_gpu_copies_no_encoder_output(
    decoder: WindowDecoder, librivox: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = decoder.features(samples_of(librivox[0].path))
    window = Window(0, 0, ChunkMap((Chunk(0.0, 0.0, librivox[0].seconds),)), features)
    rows = decoder.encode([window] * 3, FULL_FRAMES)
    on_cpu = decoder.languages_of_files(rows, [window] * 3, [[1]])
    monkeypatch.setattr(decoder, "device", Device("cuda", 0, 1, 1))
    monkeypatch.setattr(Encoded, "on_host", property(lambda _: pytest.fail("copied to the host")))
    [found] = decoder.languages_of_files(rows, [window] * 3, [[1]])
    assert (found.language, found.texts) == ("en", {})
    assert found.probability == pytest.approx(on_cpu[0].probability, abs=0.01)
