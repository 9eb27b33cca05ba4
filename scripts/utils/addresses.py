"""E-mail addresses: parsed once, where they come in, and one rule for which two spellings are one mailbox.

The rule is :func:`normal_form`. ``ops.normal_address`` is the same rule in SQL, and a property-based test holds the two
against each other: what Python says of a request and what PostgreSQL says of a row must agree, or one mailbox's request
erases another. So only the ASCII letters A to Z are folded. What another letter folds to depends on the server's
LC_CTYPE and on its Unicode version: the Kelvin sign is a ``k`` for one server and a letter of its own for the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import email_validator
from email_validator import EmailNotValidError, validate_email

from scripts.utils.errors import Misconfigured

# A mailbox at a reserved name (.local, .test) receives no mail from outside, but stands in a table as any other.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

_BLANKS = " \t\n\r\f\v"
_SMALL = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_GMAIL = re.compile(r'([^"@]+)@(?:gmail|googlemail)\.com')
_ATOM = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+"
_NEEDLESS_QUOTES = re.compile(rf'"({_ATOM}(?:\.{_ATOM})*)"(@(?!(?:gmail|googlemail)\.com\Z)[^@]*)')
_LONGEST_ADDRESS = 320


class NoAddress(Misconfigured):
    """That is not an e-mail address, or nobody can say which mailbox it is; the text is not repeated."""

    stop_reason = "no_address"

    def __init__(self, why: str = "") -> None:
        super().__init__("that is not an e-mail address" + (f": {why}" if why else ""))


@dataclass(frozen=True)
class Address:
    """One mailbox, named by one person."""

    raw: str = field(repr=False)
    """As it was written, without blanks around it: where mail is sent to."""
    normalized: str = field(repr=False)
    """As :func:`normal_form` writes it: what rows, holds and requests are compared by."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read one addr-spec (RFC 5321, 5322), such as ``anna@example.com``; nothing else is an address.

        Raises:
            NoAddress: It is none, it is a list or a link or has a name or a comment, or it can be read in two ways.
        """
        raw = text.strip(_BLANKS)
        if not raw or len(raw) > _LONGEST_ADDRESS:
            raise NoAddress
        local, _, domain = raw.rpartition("@")
        _require_one_reading(local, domain)
        try:
            found = validate_email(raw, check_deliverability=False, allow_quoted_local=True)
        except (EmailNotValidError, UnicodeError):
            # The library's message quotes what it refuses.
            raise NoAddress from None
        if found.local_part not in (local, local.strip('"')):
            raise NoAddress("it is not in Unicode's normal form NFC, so two servers may compare it differently")
        normalized = normal_form(raw)
        if normalized.startswith("@"):
            raise NoAddress
        return cls(raw, normalized)


def _require_one_reading(local: str, domain: str) -> None:
    """Refuse what parses, but could be another mailbox for another reader.

    Raises:
        NoAddress: Says why.
    """
    if not domain.isascii() or any(label.lower().startswith("xn--") for label in domain.split(".")):
        raise NoAddress("its domain is an internationalised one, which has two spellings that no table compares")
    if "." not in domain or domain.rpartition(".")[2].isdigit():
        raise NoAddress
    if "\\" in local:
        raise NoAddress("its backslash makes two spellings of one mailbox")
    if "=?" in local:
        raise NoAddress("it reads as an encoded word of a mail header, which stands for another text")
    if '"' in local and domain.lower() in ("gmail.com", "googlemail.com"):
        raise NoAddress("Gmail has no quoted names")
    small = folded(local)
    if small.lower() != small:
        raise NoAddress("whether its capital letters beyond A to Z are the same as small ones is not defined: write it"
                        " as the application holds it")  # fmt: skip


def folded(text: str) -> str:
    """Return a text with its letters A to Z small, and every other one as it is."""
    return text.translate(_SMALL)


def normal_form(text: str) -> str:
    """Return what an address is compared by; defined for every text, because a column may hold any.

    No blanks around it, A to Z small, no needless quotes; for Gmail no dots and no ``+tag``, and googlemail.com is
    gmail.com. Nothing else is folded.
    """
    small = folded(text.strip(_BLANKS))
    if found := _GMAIL.fullmatch(small):
        return found[1].split("+")[0].replace(".", "") + "@gmail.com"
    if found := _NEEDLESS_QUOTES.fullmatch(small):
        return found[1] + found[2]
    return small
