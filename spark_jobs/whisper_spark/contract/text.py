"""Makes untrusted text (file names, transcripts, error messages) safe to display."""

from __future__ import annotations

import re

# Characters that are invisible, or that affect the terminal, the log or the page instead of being displayed:
# - control characters; some of them, such as U+0085, also end a line for str.splitlines;
# - marks that change the direction of text: "gpj.exe" can pass for "exe.jpg"; and line separators;
# - characters without width, tags and byte order marks;
# - lone surrogates, which cannot be encoded.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(value: object, *, limit: int | None = None, keep: str = "") -> str:
    """A value as one line of text with invisible characters escaped: ``\\u001b`` for an escape character.

    :param limit: maximum length, in characters of ``value``. A longer text is cut and ends with ``…``.
    :param keep: characters that are not escaped, for example ``"\\n"`` where line breaks are harmless.
    """
    shown = str(value)
    if limit is not None and len(shown) > limit:
        shown = shown[:limit] + "…"
    return _INVISIBLE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), shown)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
