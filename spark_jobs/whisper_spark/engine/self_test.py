"""The self-test: checks with a known clip, before the first file, whether the device computes correctly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from difflib import SequenceMatcher
from io import BytesIO

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.known_clip import clip_bytes
from whisper_spark.audio.reader import FileReader
from whisper_spark.audio.windows import Window
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine.pipeline import Pipeline, is_out_of_memory

log = logging.getLogger(__name__)

_CLIP_WORDS = frozenset({"not", "ill", "disposed", "young", "man"})

# Least share of equal characters in two texts of the same window. Rounding differs a little between batches
# of different sizes and may change a word; rows that were computed incorrectly have nothing in common.
_LEAST_ALIKE = 0.6


def self_test(decoder: WindowDecoder, options: WhisperOptions) -> None:
    """Decode a known clip, because CTranslate2 returns empty text without an error with some drivers.

    CTranslate2 issue 1978 and WhisperLiveKit pull request 384 describe such hosts. A GPU also decodes the
    clip as a full batch. A CPU does not: this would take seconds, and no CPU is known to compute large
    batches incorrectly.

    :raises UnusableDeviceError: when the device does not transcribe the clip.
    """
    clip = AudioFile("self-test", language="en")
    data = clip_bytes()
    # Default options, since those of the user may reject the clip. Only the voice detector is used if the
    # user enables it: if it is broken, every file would become an error.
    plain = WhisperOptions(model=options.model, vad=options.vad)
    reader = FileReader(plain, decoder.features, lambda _: (BytesIO(data), len(data)))
    works = list(Pipeline([clip], decoder, plain, [reader]))
    text = " ".join(text.text for work in works for text in work.texts)
    problem = None
    if works and works[0].error:
        problem = f"it failed: {works[0].error.message}"
    elif not text.strip():
        problem = "it gave no text at all"
    elif decoder.device.kind == "cuda" and not is_heard(text):
        problem = f"it heard {text[:100]!r}"
    if problem:
        raise UnusableDeviceError(
            f"the self-test of {options.model} on {decoder.device.name} failed: {_advised(problem)}"
        )
    if decoder.device.kind == "cuda":
        check_full_batch(decoder, next(part for part in reader.read(clip) if isinstance(part, Window)))


def _advised(problem: str) -> str:
    if cuda.fix_of(problem):
        return cuda.explained(problem)
    return (
        f"{problem}. On a GPU this means a driver older than CTranslate2 needs (570 for H100), or memory "
        "that another process holds"
    )


def check_full_batch(decoder: WindowDecoder, window: Window) -> None:
    """Decode the same window in all rows of the largest batch that the engine uses.

    Above some batch size CTranslate2 may compute rows incorrectly without an error.

    :raises UnusableDeviceError: when a row gives another text than the window alone.
    """
    size = decoder.batch_size
    [alone] = _texts(decoder, [window])
    # With an unreliable text, or when sampling, the texts of the rows may differ without an error.
    if not alone.reliable or alone.temperature > 0:
        return
    where = f"the self-test of {decoder.options.model} on {decoder.device.name} with batch_size={size}"
    try:
        texts = [row.text for row in _texts(decoder, [window] * size)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise UnusableDeviceError(f"{where} failed: {cuda.explained(error)}") from error
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


def is_heard(text: str) -> bool:
    """Whether a text is a transcript of the known clip."""
    words = {word.strip(".,!?").lower() for word in text.split()}
    # A model that was fine-tuned for another script may write the clip in that script.
    return len(words & _CLIP_WORDS) >= 2 or not text.isascii()
