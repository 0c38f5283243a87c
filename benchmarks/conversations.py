"""Conversations of two to four recorded speakers, the same on every machine.

    .venv/bin/python benchmarks/conversations.py        makes what is missing under .cache/conversations,
    lists it

Each voice reads telephone prompts, but for LibriVox, which reads sentences. Two speakers have one language in
common; no language has three voices. Turns take 1 to 15 seconds, and all speakers are equally loud, so that
loudness does not tell who speaks. The voices of Debian's packages are those of real people:

    asterisk-core-sounds-*      Carlo (it), June (fr), Allison (es, en), Irina (ru): CC BY-SA 3.0
    asterisk-prompt-it-menardi  Paola Dal Zot (it): CC BY-SA 3.0
    asterisk-prompt-fr-armelle  Armelle Desjardins (fr): BSD
    asterisk-prompt-es-co       a woman from Bogotá (es): GPL 2
    pocketsphinx-testdata       LibriVox (en): public domain
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from corpus import NOISE_RMS, trimmed  # noqa: E402
from recordings import RATE, Samples, silence, write  # noqa: E402
from speech import SOUNDS, librivox, speech_root, unpack_packages  # noqa: E402

FOLDER = ROOT / ".cache" / "conversations"
VERSION = 1
"""Raise it when anything below changes what is made: folders of another version are made anew."""

PACKAGES = ("asterisk-prompt-it-menardi-wav", "asterisk-prompt-fr-armelle", "asterisk-prompt-es-co")

# Folder and suffix of each voice.
VOICES = {
    "carlo": ("it_IT_m_Carlo", ".wav"),
    "paola": ("it_IT_f_Menardi", ".wav"),
    "june": ("fr_CA_f_June", ".wav"),
    "armelle": ("fr", ".gsm"),
    "allison": ("es_MX_f_Allison", ".wav"),
    "bogotá": ("es", ".gsm"),
    "allison-en": ("en_US_f_Allison", ".wav"),
    "librivox": ("", ".wav"),
    "irina": ("ru_RU_f_IvrvoiceRU", ".wav"),
}
CALLS = (
    ("carlo", "paola"),
    ("june", "armelle"),
    ("allison", "bogotá"),
    ("allison-en", "librivox"),
    ("carlo", "paola", "june"),
    ("june", "armelle", "allison-en"),
    ("bogotá", "irina", "librivox"),
    ("carlo", "paola", "june", "armelle"),
    ("allison", "bogotá", "irina", "carlo"),
    ("irina", "armelle", "paola", "librivox"),
)
SECONDS = (75, 120)
"""Length of each call in the first and in the second round."""

TURN_S = (1.0, 15.0)
PAUSE_IN_TURN_S = (0.1, 0.6)
PAUSE_BETWEEN_S = (0.05, 0.8)
LOUDNESS = 0.05
CLIP_S = (0.8, 12.0)
_NO_SPEECH = ("tone", "beep", "monkeys", "silence", "somethingwrong")


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt in a conversation: start and end of its sound in seconds, and who says it."""

    start: float
    end: float
    voice: str


def conversations(seed: str = "test") -> dict[Path, list[Turn]]:
    """The files of all conversations, made on the first call, and who speaks when.

    :param seed: ``"test"`` for those of the benchmark, anything else for other draws of the same voices.
    """
    target = FOLDER / f"v{VERSION}-{seed}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as building:
            folder = Path(building, "folder")
            folder.mkdir()
            _make(folder, seed)
            folder.rename(target)
    turns = json.loads((target / "turns.json").read_text(encoding="utf-8"))
    return {target / name: [Turn(**turn) for turn in found] for name, found in turns.items()}


def _make(folder: Path, seed: str) -> None:
    turns = {}
    for turn, seconds in enumerate(SECONDS):
        for number, voices in enumerate(CALLS):
            name = f"{number:02}-{turn}-{len(voices)}-speakers.wav"
            samples, spoken = _conversation(voices, seconds, f"{seed}-{name}")
            write(folder / name, samples)
            turns[name] = [asdict(prompt) for prompt in spoken]
    (folder / "turns.json").write_text(json.dumps(turns, ensure_ascii=False), encoding="utf-8")


def _conversation(voices: Sequence[str], seconds: float, seed: str) -> tuple[Samples, list[Turn]]:
    chance = random.Random(seed)
    clips = {voice: _endless(_clips(voice), chance) for voice in voices}
    # Everybody has a turn before anybody has a second one.
    waiting = chance.sample(voices, len(voices))
    pieces, spoken, position, speaker = [silence(0.5)], [], RATE // 2, ""
    while position < seconds * RATE:
        speaker = waiting.pop() if waiting else chance.choice([v for v in voices if v != speaker])
        begin, wanted = position, chance.uniform(*TURN_S) * RATE
        while True:
            clip = next(clips[speaker])
            if position > begin and position + len(clip) - begin > TURN_S[1] * RATE:
                break
            spoken.append(Turn(position / RATE, (position + len(clip)) / RATE, speaker))
            pause = silence(chance.uniform(*PAUSE_IN_TURN_S))
            pieces += [clip, pause]
            position += len(clip) + len(pause)
            if position - begin >= wanted:
                break
        pause = silence(max(chance.uniform(*PAUSE_BETWEEN_S) - PAUSE_IN_TURN_S[0], 0))
        pieces.append(pause)
        position += len(pause)
    samples = np.concatenate(pieces)
    noise = np.random.default_rng(sum(seed.encode())).standard_normal(len(samples), dtype=np.float32)
    return samples + NOISE_RMS * noise, spoken


def _endless(clips: Sequence[Samples], chance: random.Random) -> Iterator[Samples]:
    while True:
        yield from chance.sample(clips, len(clips))


@cache
def _clips(voice: str) -> list[Samples]:
    clips = []
    for path in _files(voice):
        samples = _decoded(path)
        if not samples.any():
            continue
        samples = trimmed(samples)
        if CLIP_S[0] * RATE <= len(samples) <= CLIP_S[1] * RATE:
            clips.append(samples * np.float32(LOUDNESS / np.sqrt(np.mean(samples**2))))
    return clips


def _files(voice: str) -> list[Path]:
    if voice == "librivox":
        return [clip.path for clip in librivox(speech_root())]
    name, suffix = VOICES[voice]
    folder = next(
        root / SOUNDS / name for root in (speech_root(), _more_voices()) if (root / SOUNDS / name).is_dir()
    )
    return sorted(
        p
        for p in folder.rglob(f"*{suffix}")
        if not any(word in str(p.relative_to(folder)) for word in _NO_SPEECH)
    )


def _more_voices() -> Path:
    target = FOLDER.parent / "voices"
    return target if target.is_dir() else unpack_packages(PACKAGES, target)


def _decoded(path: Path) -> Samples:
    with av.open(str(path), format="gsm" if path.suffix == ".gsm" else None) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        frames = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        frames += resampler.resample(None)
    return np.concatenate([silence(0.0), *(frame.to_ndarray().reshape(-1) for frame in frames)])


def main() -> None:
    for path, spoken in conversations().items():
        seconds = {
            voice: sum(t.end - t.start for t in spoken if t.voice == voice)
            for voice in sorted({t.voice for t in spoken})
        }
        print(path.name, ", ".join(f"{voice} {length:.0f} s" for voice, length in seconds.items()))


if __name__ == "__main__":
    main()
