"""The corpora of the benchmarks, made from recorded human speech, the same on every machine.

    .venv/bin/python benchmarks/corpus.py            makes what is missing under .cache/bench-corpus, lists it

clips        80 files of 2 to 10 s in five languages: telephone prompts and sentences read for LibriVox
calls        20 files of 20 to 180 s: prompts joined with pauses; six containers, six sample rates
long         one file of an hour: English prompts with pauses
nonspeech    silence, noise, tones, signals, music: no word is said in any of them

Each folder holds the audio and ``references.jsonl``. ``NAME-quick`` is a small version of each, to try things
out. Where the same prompts lie in a call is known: positions are those of the sound inside a prompt, not of
its file, which begins and ends with silence.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from nonspeech import nonspeech_sounds  # noqa: E402
from recordings import RATE, Samples, Span, samples_of, silence, write  # noqa: E402
from speech import LANGUAGES, Clip, librivox, prompts, speech_root  # noqa: E402

CORPORA = ("clips", "calls", "long", "nonspeech")
FOLDER = ROOT / ".cache" / "bench-corpus"
VERSION = 3
"""Raise it when anything below changes what is made: folders of another version are made anew."""

CLIPS_PER_LANGUAGE = 16
CALLS = (
    # language, seconds, suffix, sample rate, codec: what telephony and recorders write
    ("en", 180, ".wav", 8_000, "pcm_mulaw"),
    ("en", 25, ".mp3", 44_100, None),
    ("es", 150, ".ogg", 48_000, "libopus"),
    ("es", 60, ".m4a", 44_100, "aac"),
    ("fr", 120, ".flac", 22_050, None),
    ("fr", 45, ".wav", 16_000, None),
    ("it", 90, ".mp3", 16_000, None),
    ("it", 75, ".opus", 48_000, "libopus"),
    ("ru", 130, ".m4a", 32_000, "aac"),
    ("ru", 25, ".ogg", 8_000, "libopus"),
)
CALL_ROUNDS = 2
"""How often each of them, every time with other prompts. All prompts last for four rounds."""

CALL_PAUSES = (0.4, 2.0)
LONG_PAUSES = (0.4, 4.4)
LONG_SECONDS = 3_600.0
NOISE_RMS = 10 ** (-60 / 20)
"""Noise under calls, -60 dB of full scale: digital silence between prompts would make the pauses too easy."""

FRAME = RATE // 50
SOUND = 0.03
"""A frame of 20 ms is sound from this share (-30 dB) of the RMS of the loudest frame of its prompt."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is said in a file. ``prompts`` are known only where the file was joined from them."""

    file: str
    language: str | None
    seconds: float
    text: str
    prompts: tuple[Span, ...] = ()


def corpus(name: str) -> Path:
    """The folder of a corpus, made on the first call.

    :param name: one of :data:`CORPORA`, with ``-quick`` behind it for the small version.
    :raises ValueError: for another name.
    :raises RuntimeError: when the recorded speech cannot be had.
    """
    base, quick = name.removesuffix("-quick"), name.endswith("-quick")
    if base not in CORPORA:
        raise ValueError(
            f"unknown corpus {name!r}: use one of {', '.join(CORPORA)}, or one of them with -quick"
        )
    target = FOLDER / f"v{VERSION}" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as building:
        folder = Path(building, name)
        folder.mkdir()
        references = list(_MAKERS[base](folder, quick))
        lines = [json.dumps(asdict(reference), ensure_ascii=False) + "\n" for reference in references]
        (folder / "references.jsonl").write_text("".join(lines), encoding="utf-8")
        folder.rename(target)
    return target


def references(folder: Path) -> list[Reference]:
    """What is said in the files of a corpus."""
    lines = (folder / "references.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Reference(**{**row, "prompts": tuple(Span(**span) for span in row["prompts"])})
        for row in map(json.loads, lines)
    ]


def _make_clips(folder: Path, quick: bool) -> Iterator[Reference]:
    drawn: list[list[Clip]] = []
    for language in LANGUAGES:
        clips = [c for c in prompts(speech_root()) if c.language == language]
        read = [c for c in librivox(speech_root()) if c.language == language]
        # Most prompts are short: as many from 2 to 5 s as from 5 to 10 s.
        short = _shuffled([c for c in clips if 2 <= c.seconds < 5], "clips")
        longer = _shuffled([c for c in clips if 5 <= c.seconds <= 10], "clips")
        mixed = [clip for pair in zip(short, longer, strict=False) for clip in pair]
        drawn.append([*read, *mixed][: 3 if quick else CLIPS_PER_LANGUAGE])
    # One language after the other, as a bucket of many customers looks.
    for number, clip in enumerate(clip for row in zip(*drawn, strict=True) for clip in row):
        target = folder / f"clip-{number:03d}.wav"
        shutil.copyfile(clip.path, target)
        yield Reference(target.name, clip.language, clip.seconds, clip.text)


def _make_calls(folder: Path, quick: bool) -> Iterator[Reference]:
    spoken = {language: iter(_spoken(language, "calls", min_words=6)) for language in LANGUAGES}
    for number, (language, seconds, suffix, rate, codec) in enumerate(CALLS * (1 if quick else CALL_ROUNDS)):
        if quick and seconds > 45:
            continue
        samples, spans = _joined(spoken[language], seconds, CALL_PAUSES, seed=f"call-{number}")
        path = write(folder / f"call-{number:02d}{suffix}", samples, rate, codec)
        yield Reference(path.name, language, len(samples) / RATE, _text(spans), tuple(spans))


def _make_long(folder: Path, quick: bool) -> Iterator[Reference]:
    # An hour takes every prompt more than once: each time in another order.
    spoken = (clip for turn in range(9) for clip in _spoken("en", f"long-{turn}"))
    samples, spans = _joined(spoken, 300.0 if quick else LONG_SECONDS, LONG_PAUSES, seed="long")
    path = write(folder / "long.wav", samples)
    yield Reference(path.name, "en", len(samples) / RATE, _text(spans), tuple(spans))


def _make_nonspeech(folder: Path, quick: bool) -> Iterator[Reference]:
    for number, (name, samples) in enumerate(nonspeech_sounds(speech_root())):
        if not quick or number % 3 == 0:
            path = write(folder / f"{name}.wav", samples)
            yield Reference(path.name, None, len(samples) / RATE, "")


_MAKERS = {"clips": _make_clips, "calls": _make_calls, "long": _make_long, "nonspeech": _make_nonspeech}


def _spoken(language: str, seed: str, min_words: int = 3) -> list[Clip]:
    # In the order of their names neighbours say almost the same.
    own = [c for c in prompts(speech_root(), min_words) if c.language == language and c.seconds < 20]
    return _shuffled(own, seed)


def _shuffled(clips: list[Clip], seed: str) -> list[Clip]:
    return random.Random(seed).sample(clips, len(clips))


def _joined(
    clips: Iterable[Clip], seconds: float, pauses: tuple[float, float], seed: str
) -> tuple[Samples, list[Span]]:
    """Prompts with pauses of random length between them, at least ``seconds`` long, over faint noise."""
    chance = random.Random(seed)
    pieces, spans, position = [silence(chance.uniform(*pauses))], [], 0
    position = len(pieces[0])
    for clip in clips:
        sound = trimmed(samples_of(clip.path))
        pause = silence(chance.uniform(*pauses))
        start, position = position, position + len(sound)
        spans.append(Span(start / RATE, position / RATE, clip.text))
        pieces += [sound, pause]
        position += len(pause)
        if position >= seconds * RATE:
            break
    samples = np.concatenate(pieces)
    noise = np.random.default_rng(sum(seed.encode())).standard_normal(len(samples), dtype=np.float32)
    return samples + NOISE_RMS * noise, spans


def trimmed(samples: Samples) -> Samples:
    """A recording from its first to its last frame that is sound."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    rms = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(rms > SOUND * rms.max())
    return samples[loud[0] * FRAME : (loud[-1] + 1) * FRAME]


def _text(spans: Iterable[Span]) -> str:
    return " ".join(span.text for span in spans)


def main() -> None:
    for name in (*CORPORA, *(f"{name}-quick" for name in CORPORA)):
        own = references(corpus(name))
        speech = sum(span.end - span.start for reference in own for span in reference.prompts)
        share = f", {speech / sum(r.seconds for r in own):.0%} speech" if speech else ""
        print(f"{name:16} {len(own):3} files {sum(r.seconds for r in own):7.0f} s{share}")


if __name__ == "__main__":
    main()
