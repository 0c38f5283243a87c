"""Whether a device computes what it is asked to: found out with a known clip, before the first file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import SequenceMatcher
from importlib.resources import files as resources
from io import BytesIO

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader
from whisper_spark.audio.windows import Window
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine.pipeline import Pipeline, is_out_of_memory

log = logging.getLogger(__name__)

# LibriVox recording of "Sense and Sensibility" (public domain), 2.5 seconds.
_CLIP = "he_was_not_an_ill_disposed_young_man.flac"
_CLIP_WORDS = frozenset({"not", "ill", "disposed", "young", "man"})

# Of their characters, so many are equal in texts of the same window. Arithmetic differs a little between
# batches of different size, and may change a word; rows that were computed wrong have nothing in common.
_LEAST_ALIKE = 0.6


def self_test(decoder: WindowDecoder, options: WhisperOptions) -> None:
    """Decode a known clip: some drivers make CTranslate2 return empty text without any error.

    CTranslate2 issue 1978 and WhisperLiveKit pull request 384 describe such hosts. A GPU decodes it as a full
    batch, too. On a CPU that would take seconds, and nobody has seen one compute large batches wrong.

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
    if decoder.device.kind == "cuda":
        check_full_batch(decoder, next(part for part in reader.read(clip) if isinstance(part, Window)))


def check_full_batch(decoder: WindowDecoder, window: Window) -> None:
    """Decode a window in all rows of a batch of the largest shape that the engine uses.

    Beyond some size CTranslate2 may compute rows wrong, and says nothing.

    :raises UnusableDeviceError: when rows say something else than the window by itself.
    """
    size = decoder.batch_size
    [alone] = _texts(decoder, [window])
    # A model that is not sure of what it hears, or draws words by chance, may well say something else.
    if not alone.reliable or alone.temperature > 0:
        return
    where = f"the self-test of {decoder.options.model} on {decoder.device.name} with batch_size={size}"
    try:
        texts = [row.text for row in _texts(decoder, [window] * size)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise UnusableDeviceError(f"{where} failed: {error}") from error
        log.warning("%s ran out of memory: full batches will be decoded in parts", where)
        return
    wrong = [text for text in texts if not _alike(text, alone.text)]
    if wrong:
        raise UnusableDeviceError(
            f"{where} failed: {len(wrong)} rows of a full batch came out wrong, such as {wrong[0][:100]!r} "
            f"instead of {alone.text[:100]!r}. This GPU and driver compute large batches wrong: set "
            f"batch_size={max(1, size // 2)}, or less if that fails, too"
        )


def _texts(decoder: WindowDecoder, windows: Sequence[Window]) -> list[WindowText]:
    encoded = decoder.encode(windows, FULL_FRAMES)
    return decoder.transcribe(encoded, windows, ["en"] * len(windows), {})


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= _LEAST_ALIKE


def _heard(text: str) -> bool:
    words = {word.strip(".,!?").lower() for word in text.split()}
    # A model tuned to another script is no fault.
    return len(words & _CLIP_WORDS) >= 2 or not text.isascii()
