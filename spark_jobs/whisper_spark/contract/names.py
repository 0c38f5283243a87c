"""Accepted names of languages, models and compute types."""

from __future__ import annotations

import re

_LANGUAGE_NAMES = {
    "af": "afrikaans", "am": "amharic", "ar": "arabic", "as": "assamese", "az": "azerbaijani",
    "ba": "bashkir", "be": "belarusian", "bg": "bulgarian", "bn": "bengali", "bo": "tibetan",
    "br": "breton", "bs": "bosnian", "ca": "catalan", "cs": "czech", "cy": "welsh",
    "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fo": "faroese",
    "fr": "french", "gl": "galician", "gu": "gujarati", "ha": "hausa", "haw": "hawaiian",
    "he": "hebrew", "hi": "hindi", "hr": "croatian", "ht": "haitian creole", "hu": "hungarian",
    "hy": "armenian", "id": "indonesian", "is": "icelandic", "it": "italian", "ja": "japanese",
    "jw": "javanese", "ka": "georgian", "kk": "kazakh", "km": "khmer", "kn": "kannada",
    "ko": "korean", "la": "latin", "lb": "luxembourgish", "ln": "lingala", "lo": "lao",
    "lt": "lithuanian", "lv": "latvian", "mg": "malagasy", "mi": "maori", "mk": "macedonian",
    "ml": "malayalam", "mn": "mongolian", "mr": "marathi", "ms": "malay", "mt": "maltese",
    "my": "myanmar", "ne": "nepali", "nl": "dutch", "nn": "nynorsk", "no": "norwegian",
    "oc": "occitan", "pa": "punjabi", "pl": "polish", "ps": "pashto", "pt": "portuguese",
    "ro": "romanian", "ru": "russian", "sa": "sanskrit", "sd": "sindhi", "si": "sinhala",
    "sk": "slovak", "sl": "slovenian", "sn": "shona", "so": "somali", "sq": "albanian",
    "sr": "serbian", "su": "sundanese", "sv": "swedish", "sw": "swahili", "ta": "tamil",
    "te": "telugu", "tg": "tajik", "th": "thai", "tk": "turkmen", "tl": "tagalog",
    "tr": "turkish", "tt": "tatar", "uk": "ukrainian", "ur": "urdu", "uz": "uzbek",
    "vi": "vietnamese", "yi": "yiddish", "yo": "yoruba", "yue": "cantonese", "zh": "chinese",
}  # fmt: skip

LANGUAGES: frozenset[str] = frozenset(_LANGUAGE_NAMES)
"""Whisper's language codes (openai/whisper, ``whisper/tokenizer.py``)."""

# Other names and codes of these languages: those of openai/whisper, and ISO 639 codes that differ from
# Whisper's.
_ALIASES = {
    "burmese": "my", "castilian": "es", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "mandarin": "zh", "moldavian": "ro", "moldovan": "ro", "panjabi": "pa", "pushto": "ps",
    "sinhalese": "si", "valencian": "ca",
    "cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "ji": "yi", "jv": "jw", "nb": "no",
}  # fmt: skip

KNOWN_MODELS: frozenset[str] = frozenset(
    "tiny tiny.en base base.en small small.en medium medium.en large-v1 large-v2 large-v3 large "
    "large-v3-turbo turbo distil-small.en distil-medium.en distil-large-v2 distil-large-v3 "
    "distil-large-v3.5".split()
)
"""Names that faster-whisper resolves to a repository on the model hub (``faster_whisper.utils``)."""

COMPUTE_TYPES: frozenset[str] = frozenset(
    "auto default int8 int8_float32 int8_float16 int8_bfloat16 int16 float16 bfloat16 float32".split()
)
"""CTranslate2's weight types, and ``auto``: float16 on a GPU, int8 on a CPU."""


def language_code(name: str) -> str | None:
    """Whisper's code for a language name or another spelling of the code; ``None`` for an unknown language.

    ``"English"``, ``"EN"``, ``"en-US"`` and ``"en_GB.UTF-8"`` mean ``"en"``.
    """
    word = name.strip().casefold()
    codes = {spoken: code for code, spoken in _LANGUAGE_NAMES.items()} | _ALIASES
    for candidate in (word, re.split(r"[-_.@]", word)[0]):
        if candidate in LANGUAGES:
            return candidate
        if candidate in codes:
            return codes[candidate]
    return None
