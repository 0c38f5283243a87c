"""Who says what: words with the right speaker, diarization error rate, number of speakers, and what it costs.

    .venv/bin/python benchmarks/speakers.py              writes its tables into RESULTS.md
    .venv/bin/python benchmarks/speakers.py --dry        only prints them
    .venv/bin/python benchmarks/speakers.py --seed dev   other conversations of the same voices

Conversations are those of ``conversations.py``, the embedding model is the one of the tests. A word has the
right speaker when the name that it has is, in the best assignment of names to voices, that of whoever speaks
in the middle of the word. The rows of the first table take one part after the other as given, so that each
shows what one part loses.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from conversations import Turn, conversations
from environments import environment
from note import table, write_block

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]

from assemble_model import assemble  # noqa: E402
from assemble_speaker_model import assemble as assemble_speaker_model  # noqa: E402

from whisper_spark import Segment, Transcript, WhisperOptions, Word  # noqa: E402
from whisper_spark.audio.features import LogMel  # noqa: E402
from whisper_spark.audio.files import AudioFile  # noqa: E402
from whisper_spark.audio.reader import FileReader, opened_from  # noqa: E402
from whisper_spark.audio.windows import Window  # noqa: E402
from whisper_spark.decoding.device import Device  # noqa: E402
from whisper_spark.engine.transcriber import Engine  # noqa: E402
from whisper_spark.speakers import voices as voices_module  # noqa: E402
from whisper_spark.speakers.assignment import with_speakers  # noqa: E402
from whisper_spark.speakers.diarization import ChannelSpeakers, speakers_of  # noqa: E402
from whisper_spark.speakers.model import SpeakerModel, load_speaker_model  # noqa: E402
from whisper_spark.speakers.speech import Speech  # noqa: E402
from whisper_spark.storage.objects import ObjectStorage  # noqa: E402

Floats = npt.NDArray[np.float32]
Named = Sequence[tuple[Word, str]]


@dataclass(frozen=True)
class Call:
    """A conversation, its words, and the embeddings of its speech."""

    turns: list[Turn]
    transcript: Transcript
    speech: Speech

    @property
    def words(self) -> list[Word]:
        return [word for segment in self.transcript.segments for word in segment.words or ()]

    @property
    def segments(self) -> list[Segment]:
        """The segments without speakers, as they were before."""
        return [
            replace(segment, words=tuple(replace(word, speaker=None) for word in segment.words or ()))
            for segment in self.transcript.segments
        ]

    @property
    def voices(self) -> list[str]:
        return sorted({turn.voice for turn in self.turns})

    @property
    def voices_of_words(self) -> set[str]:
        """The voices of which a word is in the transcript."""
        return {self.speaking((word.start + word.end) / 2) for word in self.words}

    def speaking(self, moment: float) -> str:
        """Whoever speaks at a moment, or speaks next to it."""
        return min(self.turns, key=lambda turn: max(turn.start - moment, moment - turn.end)).voice

    def voices_of(self, starts: Floats, ends: Floats) -> list[str]:
        return [self.speaking((start + end) / 2) for start, end in zip(starts, ends, strict=True)]


def seconds_used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def speech_of(path: Path, options: WhisperOptions, model: SpeakerModel) -> tuple[Speech, float]:
    """Embeddings of a file's speech, and the processor seconds of computing and clustering them."""
    reader = FileReader(options, LogMel(80), opened_from(ObjectStorage()))
    windows = [part for part in reader.read(AudioFile(f"file://{path}")) if isinstance(part, Window)]
    kept: list[Speech] = []

    def keep(speech: Speech, *arguments: object) -> ChannelSpeakers:
        kept.append(speech)
        return speakers_of(speech, *arguments)  # type: ignore[arg-type]

    before, voices_module.speakers_of = voices_module.speakers_of, keep  # type: ignore[assignment]
    try:
        started = seconds_used()
        voices = voices_module.Voices(model, options)
        for window in windows:
            voices.heard(window)
        voices.told_apart()
        return kept[0], seconds_used() - started
    finally:
        voices_module.speakers_of = before


# --- from speech to words, with parts given -----------------------------------------------------------


def everything(call: Call, model: SpeakerModel) -> Named:
    return [(word, word.speaker or "") for word in call.words]


def number_given(call: Call, model: SpeakerModel) -> Named:
    count = len(call.voices)
    return assigned(call, speakers_of(call.speech, model.likeness, count, count))


def voices_given(call: Call, model: SpeakerModel) -> Named:
    """Detected speech, compared with the true mean of each voice."""
    speech = call.speech
    labels = call.voices_of(speech.starts, speech.ends)
    means = [
        speech.embeddings[[label == voice for label in labels]].mean(axis=0, dtype=np.float32)
        for voice in call.voices
    ]
    found = speakers_of(speech, model.likeness, None, 1)
    directions = np.array(means) / np.linalg.norm(means, axis=1, keepdims=True)
    typical = model.likeness
    evidence = speech.embeddings.astype(np.float32) @ directions.T / ((1 - typical) / 4)
    return assigned(call, ChannelSpeakers(found.starts, found.ends, evidence.astype(np.float32), True))


def turns_given(call: Call, model: SpeakerModel) -> Named:
    """True turns, each compared with the mean of each voice in the other turns."""
    turns = [list(group) for _, group in itertools.groupby(call.turns, key=lambda turn: turn.voice)]
    means, owners = [], []
    for prompts in turns:
        inside = (call.speech.starts >= prompts[0].start - 0.2) & (call.speech.ends <= prompts[-1].end + 0.2)
        means.append(call.speech.embeddings[inside].sum(axis=0, dtype=np.float32) if inside.any() else None)
        owners.append(prompts[0].voice)
    names = []
    for number, mean in enumerate(means):
        others = {
            voice: sum(m for n, m in enumerate(means) if m is not None and owners[n] == voice and n != number)
            for voice in call.voices
        }
        known = {
            voice: other / np.linalg.norm(other)
            for voice, other in others.items()
            if isinstance(other, np.ndarray)
        }
        # A voice with a single turn cannot be compared with itself.
        right = owners[number] not in known or mean is None
        names.append(owners[number] if right else max(known, key=lambda voice: float(mean @ known[voice])))
    places = [(prompts[0].start, prompts[-1].end) for prompts in turns]

    def turn_of(word: Word) -> int:
        middle = (word.start + word.end) / 2
        return min(range(len(places)), key=lambda n: max(places[n][0] - middle, middle - places[n][1]))

    return [(word, names[turn_of(word)]) for word in call.words]


def windows_alone(call: Call, model: SpeakerModel) -> Named:
    """The baseline: k-means with the true number of speakers, each word as the stretch around its middle."""
    vectors = call.speech.embeddings.astype(np.float32)
    labels = k_means(vectors, len(call.voices))
    middles = (call.speech.starts + call.speech.ends) / 2
    return [
        (word, str(labels[int(np.abs(middles - (word.start + word.end) / 2).argmin())]))
        for word in call.words
    ]


def one_speaker(call: Call, model: SpeakerModel) -> Named:
    return [(word, "") for word in call.words]


def k_means(vectors: Floats, count: int) -> npt.NDArray[np.int64]:
    """The best of ten starts (k-means++ and Lloyd)."""
    chance, best = np.random.default_rng(0), (np.inf, np.zeros(len(vectors), np.int64))
    for _ in range(10):
        centres = vectors[chance.integers(len(vectors))][None]
        while len(centres) < count:
            distance = ((vectors[:, None] - centres) ** 2).sum(axis=2).min(axis=1)
            centres = np.concatenate(
                [centres, vectors[chance.choice(len(vectors), p=distance / distance.sum())][None]]
            )
        for _ in range(30):
            distances = ((vectors[:, None] - centres) ** 2).sum(axis=2)
            labels = distances.argmin(axis=1)
            centres = np.array(
                [
                    vectors[labels == n].mean(axis=0) if (labels == n).any() else centres[n]
                    for n in range(count)
                ]
            )
        best = min(best, (float(distances.min(axis=1).sum()), labels), key=lambda pair: pair[0])
    return best[1]


def assigned(call: Call, found: ChannelSpeakers) -> Named:
    spoken = with_speakers(call.segments, {0: found})
    return [(word, word.speaker or "") for segment in spoken.segments for word in segment.words or ()]


# --- scores -------------------------------------------------------------------------------------------


def right_words(call: Call, named: Named) -> tuple[int, int]:
    """Words with the right speaker in the best assignment of names to voices, and all words."""
    truth = [call.speaking((word.start + word.end) / 2) for word, _ in named]
    names, found = sorted({name for _, name in named}), [name for _, name in named]
    counts = np.array(
        [
            [sum(t == v and f == n for t, f in zip(truth, found, strict=True)) for v in call.voices]
            for n in names
        ]
    )
    if len(names) > len(call.voices):
        counts = counts.T
    columns = range(counts.shape[1])
    return max(
        sum(counts[row, column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(columns, counts.shape[0])
    ), len(named)


def runs_of(named: Named) -> list[tuple[float, float, str]]:
    """Start, end and speaker of words that follow each other without a pause of half a second."""
    runs: list[tuple[float, float, str]] = []
    for word, name in named:
        if runs and runs[-1][2] == name and word.start - runs[-1][1] < 0.5:
            runs[-1] = (runs[-1][0], word.end, name)
        else:
            runs.append((word.start, word.end, name))
    return runs


def error_rates(calls: Mapping[str, Call], found: Mapping[str, Named]) -> dict[str, float]:
    turns = {
        name: [[(t.start, t.end, t.voice) for t in call.turns], runs_of(found[name])]
        for name, call in calls.items()
    }
    command = [environment("pyannote_metrics"), str(Path(__file__).with_name("der.py"))]
    done = subprocess.run(command, input=json.dumps(turns), capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


WAYS: dict[str, Callable[[Call, SpeakerModel], Named]] = {
    "everything, as in a transcript": everything,
    "number of speakers given": number_given,
    "voices given": voices_given,
    "turns and voices given": turns_given,
    "baseline: each stretch alone, k-means, number given": windows_alone,
    "baseline: one speaker": one_speaker,
}


RATES = ("DER", "missed", "false alarm", "confusion")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", default="test")
    parser.add_argument("--dry", action="store_true", help="write nothing into RESULTS.md")
    arguments = parser.parse_args()
    files = conversations(arguments.seed)
    options = WhisperOptions(
        model=str(assemble()),
        multilingual=True,
        diarize=True,
        speaker_model=str(assemble_speaker_model()),
        device="cpu",
    )
    model = load_speaker_model(options, Device("cpu", 0, 1, 1))
    plain = Engine(options)
    started = seconds_used()
    transcripts = {
        t.audio_uri.rsplit("/", 1)[1]: t for t in plain.transcribe(AudioFile(f"file://{p}") for p in files)
    }
    whole = seconds_used() - started
    calls, own = {}, 0.0
    for path, turns in files.items():
        speech, used = speech_of(path, options, model)
        own += used
        calls[path.name] = Call(turns, transcripts[path.name], speech)
    lines = report(calls, model, whole, own)
    print(*lines, sep="\n")
    if not arguments.dry:
        write_block("speakers", lines)


def report(calls: Mapping[str, Call], model: SpeakerModel, whole: float, own: float) -> list[str]:
    rows = []
    for what, way in WAYS.items():
        found = {name: way(call, model) for name, call in calls.items()}
        scores = [right_words(calls[name], named) for name, named in found.items()]
        right, words = sum(score[0] for score in scores), sum(score[1] for score in scores)
        rates = error_rates(calls, found)
        rows.append([what, f"{right / words:.1%}", *(f"{rates[name]:.1%}" for name in RATES)])
    for name, call in calls.items():
        right, words = right_words(call, everything(call, model))
        found_speakers = f"{len(call.voices)} speakers, {call.transcript.speakers} found"
        print(f"{name}: {found_speakers}, {right / words:.1%} of words", *call.transcript.quality_flags)
    wrong = [call for call in calls.values() if call.transcript.speakers != len(call.voices)]
    # Voices of which no word is in the transcript cannot be counted in it.
    unheard = sum(call.transcript.speakers == len(call.voices_of_words) for call in wrong)
    flagged = [c for c in calls.values() if "uncertain_speakers" in c.transcript.quality_flags]
    both = sum(call in wrong for call in flagged)
    minutes = sum(call.transcript.duration_s or 0 for call in calls.values()) / 60
    other = whole - own
    return [
        f"{len(calls)} conversations, {minutes:.0f} minutes, {datetime.now(UTC):%Y-%m-%d}. The number of",
        f"speakers is right in {len(calls) - len(wrong)} of them. In {unheard} more it is the number of the",
        "voices of whom the transcript has a word.",
        f"The flag `uncertain_speakers` is set in {both} of the {len(wrong)}",
        f"that are wrong, and in {len(flagged) - both} of those that are right.",
        f"Processor seconds for a minute of audio: {own / minutes:.2f} for speakers,",
        f"{other / minutes:.2f} for everything else with whisper-base int8 ({own / other:.0%}).",
        "",
        *table(["what is given", "words with the right speaker", *RATES], rows),
    ]


if __name__ == "__main__":
    main()
