"""How wide text is on a screen, and where a line may end, in any script."""

from __future__ import annotations

import unicodedata

# Scripts without spaces between words: a line may end between two tokens of Whisper. Hangul is not among
# them, because Korean has spaces.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # radicals, CJK punctuation, kana, bopomofo
    (0x3190, 0x9FFF),  # kana extensions, Han
    (0xF900, 0xFAFF),  # Han
    (0xFE30, 0xFE4F),  # CJK punctuation
    (0xFF00, 0xFFEF),  # full-width and half-width forms
    (0x1B000, 0x1B16F),  # kana
    (0x20000, 0x3FFFF),  # Han
)

# Characters that no line begins with: closing punctuation (JIS X 4051, GB/T 15834), small kana, and Thai and
# Lao vowels and marks that belong to the consonant before them but have a width of their own.
_NO_LINE_BEGINS_WITH = frozenset(
    ".,:;?!)]}»›”’…%‰°。、，．：；？！）］｝〕〉》」』】〙〗〟’”·・ー–—～〜‐゠々〻ヽヾゝゞ"
    "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹㇺㇻㇼㇽㇾㇿ｡､･ｰﾞﾟ｣"
    "\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eaf\u0eb0\u0eb2\u0eb3\u0ec6\u0f0b\u0f0d\u104a\u104b\u17d4\u17d5\u17d6"
)
# Characters that no line ends with: opening punctuation, Thai and Lao vowels written before their consonant,
# and the joiners that stack the next consonant of Khmer and Myanmar, or make one emoji of two.
_NO_LINE_ENDS_WITH = frozenset(
    "([{«‹“‘¿¡（［｛〔〈《「『【〘〖〝“‘｢$£¥€#＃"
    "\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4\u17d2\u1039\u200d"
)


def width(text: str) -> int:
    """The width in columns: 2 for East Asian wide characters, 0 for combining marks, 1 for others."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def characters(text: str) -> int:
    """The number of characters that a reader sees: combining marks and spaces at the ends do not count."""
    return sum(unicodedata.category(c) not in ("Mn", "Me", "Cf") for c in text.strip())


def may_break(before: str, after: str) -> bool:
    """Whether a line may end between two tokens, of which neither is empty.

    In scripts with spaces it may where a space is; in scripts without, between any two tokens that do not
    share a character and that punctuation does not hold together.
    """
    last, first = before.rstrip()[-1:], after.lstrip()[:1]
    if first in _NO_LINE_BEGINS_WITH or last in _NO_LINE_ENDS_WITH or _is_mark(first):
        return False
    if before[-1:].isspace() or after[:1].isspace():
        return True
    return is_spaceless(last) or is_spaceless(first)


def is_spaceless(character: str) -> bool:
    """Whether a character belongs to a script that has no spaces between words."""
    code = ord(character) if character else 0
    return code >= 0x0E00 and any(low <= code <= high for low, high in _SPACELESS)


def _is_mark(character: str) -> bool:
    return bool(character) and unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")


def pieces(text: str) -> list[str]:
    """Split a text without word times where lines may end: after spaces, and in scripts without spaces.

    The pieces keep their spaces and together are the text. Where a script has no spaces and words are
    unknown, each character is a piece, with its combining marks.
    """
    found: list[str] = []
    for character in text:
        joined = found and not (character.isspace() and not found[-1].isspace())
        if joined and (found[-1].isspace() or not may_break(found[-1], character)):
            found[-1] += character
        else:
            found.append(character)
    return [piece for piece in found if piece.strip()]
