"""Words that somebody typed: shown as they are, never obeyed, and kept only where they name nobody.

A terminal takes some characters for commands: it moves its cursor, sets the clipboard, makes a link of a text (OSC 8).
Others turn the direction of a line round or cannot be seen at all. A reason, a name or a key from the database must not
decide what an operator gets to see.
"""

from __future__ import annotations

import argparse
import re
import unicodedata

from scripts.utils.redaction import redact

# Controls (C0, DEL, C1), line and paragraph separators, directions, what has no width, tags, halves of surrogate pairs.
# Not U+200C and U+200D: scripts and emoji need them, and they change nothing else.
_COMMANDS = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
_COMMAND = re.compile(f"[{_COMMANDS}]")
_BUT_LINES = re.compile(rf"(?!\n)[{_COMMANDS}]")


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return a text with every character that a terminal would obey written out, such as ``\x1b`` or ``\u202e``.

    Args:
        text: What somebody wrote.
        lines: Let a line's end be one. Without it a text cannot pretend to be several lines.
    """
    return (_BUT_LINES if lines else _COMMAND).sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def names_somebody(text: str) -> bool:
    """Whether a text holds what may be an e-mail address, with whatever sign for "at" (full width, ``%40``)."""
    plain = unicodedata.normalize("NFKC", text)
    return "@" in plain or "[e-mail]" in redact(plain)


def impersonal(text: str) -> str:
    """Return a reason that is given on the command line.

    Raises:
        argparse.ArgumentTypeError: It names somebody; the message does not repeat it.
    """
    if names_somebody(text):
        raise argparse.ArgumentTypeError("must not hold an e-mail address: name the case, not the person")
    return text
