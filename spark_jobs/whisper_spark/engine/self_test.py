"""Whether a device computes what it is asked to: found out with a known clip, before the first file."""

from __future__ import annotations

from importlib.resources import files as resources
from io import BytesIO

from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.engine.pipeline import Pipeline

# LibriVox recording of "Sense and Sensibility" (public domain), 2.5 seconds.
_CLIP = "he_was_not_an_ill_disposed_young_man.flac"
_CLIP_WORDS = frozenset({"not", "ill", "disposed", "young", "man"})


def self_test(decoder: WindowDecoder, options: WhisperOptions) -> None:
    """Decode a known clip: some drivers make CTranslate2 return empty text without any error.

    CTranslate2 issue 1978 and WhisperLiveKit pull request 384 describe such hosts.

    :raises UnusableDeviceError: when the device does not transcribe it.
    """
    clip = AudioFile("self-test", language="en")
    data = (resources("whisper_spark") / "assets" / _CLIP).read_bytes()
    # Nothing that the user's options refuse, but with the voice detector if they want one: one that is
    # broken would turn every file into an error.
    plain = WhisperOptions(model=options.model, vad=options.vad)
    reader = FileReader(plain, decoder.features, lambda _: (BytesIO(data), len(data)))
    works = list(Pipeline([clip], decoder, plain, [reader]))
    text = " ".join(text.text for work in works for text in work.texts)
    problem = None
    if works and works[0].error:
        problem = f"it failed: {works[0].error.message}"
    elif not text.strip():
        problem = "it gave no text at all"
    elif decoder.device.kind == "cuda" and not _heard(text):
        problem = f"it heard {text[:100]!r}"
    if problem:
        raise UnusableDeviceError(
            f"the self-test of {options.model} on {decoder.device.name} failed: {problem}. "
            "On a GPU this means a driver older than CTranslate2 needs (570 for H100), or memory that "
            "another process holds"
        )


def _heard(text: str) -> bool:
    words = {word.strip(".,!?").lower() for word in text.split()}
    # A model tuned to another script is no fault.
    return len(words & _CLIP_WORDS) >= 2 or not text.isascii()
