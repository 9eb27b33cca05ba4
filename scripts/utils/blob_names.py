"""One canonical name of a blob, whatever spelling a row holds.

Vercel Blob knows a blob by its store and its pathname. A row may hold that pathname, or a delivery URL with another
spelling of scheme, host, port or percent-encoding, with a query or a fragment. ``ops.blob_parts`` is the same function
in SQL (migration 0022), and a property-based test holds the two against each other.
A value that is no name of a blob is never guessed at: it is not sent to the store, and it protects every blob that it
may mean.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from hashlib import sha256

_ASCII_BLANKS = "".join(map(chr, (*range(1, 33), 127)))
_RANGES = ((0x80, 0xA0), (0x1680, 0x1680), (0x2000, 0x200F), (0x2028, 0x202F), (0x205F, 0x2064))
_BLANKS = _ASCII_BLANKS + "".join(chr(c) for first, last in _RANGES for c in range(first, last + 1)) + "\u3000\ufeff"

_HOST = r"([a-z0-9-]+)\.(?:public|private)\.blob\.vercel-storage\.com"
_WITHOUT_SCHEME = re.compile(rf"(?://)?{_HOST}(?:[./:?#]|\Z)", re.ASCII | re.IGNORECASE)
_STORE = re.compile(_HOST, re.ASCII | re.IGNORECASE)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)([^?#]*)", re.ASCII)
_PLAIN_AUTHORITY = {"https": re.compile(r"[^:@]*(:(443)?)?"), "http": re.compile(r"[^:@]*(:(80)?)?")}
_PORT = re.compile(r"\.?(:[^:]*)?\Z", re.ASCII)
_OCTET = re.compile(rb"%([0-9A-Fa-f]{2})")
_AMBIGUOUS = re.compile(r"[?#\\%]", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = " \"'`<>(){}\\[\\]|,;?#&=*:!~_\u201c\u201d\u2018\u2019\u00ab\u00bb"
_MARK = re.compile(f"[{_MARKS}]")
_SLASH_OR_MARK = re.compile(f"[/{_MARKS}]")
_PLAIN = re.compile(r"[A-Za-z0-9._/ -]*")
_CARRIES = re.compile(  # an apostrophe inside a word is no quotation mark
    "[\"`<>{}|\u201c\u201d\u2018\u00ab\u00bb\\[\\]]|^ *[(*!~_]|(^|[^A-Za-z0-9])'"
    "|[?#&=,;].*/|:/.*:/|[^A-Za-z0-9+.-].*:/",
    re.DOTALL,
)
_BLANK_SLASH = re.compile(f"[{re.escape(_BLANKS)}]*/[{re.escape(_BLANKS)}]*")
_NO_SEGMENT = re.compile(r"/\.{0,2}/", re.ASCII)


# Why the store must not be asked to delete what a value names.
TROUBLES = ("foreign_store", "bad_name", "outside_prefix")


@dataclass(frozen=True)
class BlobName:
    """A row's value, read as the name of a blob."""

    store: str | None
    """Of a delivery URL, in small letters; empty: a pathname, so the store at hand; None: a host that is no store's."""
    pathname: str | None
    """As the store writes it; None: the value is no name that the store would take."""
    certain: bool
    """Whether the value can mean this one blob alone."""
    key: bytes
    """Equal for all values that may mean one blob, however they are spelled."""

    def trouble(self, store: str, prefix: str) -> str | None:
        """Return why the store must not be asked to delete this, as a code; None: it may be.

        Args:
            store: The id of the store at hand, in small letters; empty: it is not known, and every store will do.
            prefix: What the pathnames of the policy's blobs start with.
        """
        if self.store is None or (store and self.store not in ("", store)):
            return "foreign_store"
        if self.pathname is None:
            return "bad_name"
        # The store may take keto-meal-plan-../x for x.
        if not self.pathname.startswith(prefix) or _NO_SEGMENT.search(f"/{self.pathname}/"):
            return "outside_prefix"
        return None


def blob_name(value: str) -> BlobName:
    """Read a row's value, or an entry of the store's listing, as the name of a blob."""
    if _SURROGATE.search(value):  # only JSON can say so: neither PostgreSQL nor the store could be asked for it
        return BlobName("", None, certain=False, key=b"")
    text = value.strip(_BLANKS)
    odd = text != value
    if _WITHOUT_SCHEME.match(text):
        text, odd = "https://" + text.removeprefix("//"), True
    url = _URL.match(text)
    store: str | None
    pathname: str | None
    if url is None:
        odd = odd or "://" in text
        store = None if "://" in text else ""
        path, pathname = text, text
        certain = _AMBIGUOUS.search(text) is None
    else:
        scheme, authority, path = url[1].lower(), url[2], url[3]
        plain = _PLAIN_AUTHORITY.get(scheme)
        odd = odd or plain is None or plain.fullmatch(authority) is None or "\\" in path
        ours = _STORE.fullmatch(_PORT.sub("", authority.rpartition("@")[2], count=1))
        store = ours[1].lower() if ours else None
        certain = ours is not None
        pathname = _decoded(path)
        odd = odd or pathname is None or b"%" in _OCTET.sub(b"", path.encode())
    pathname = None if odd or pathname is None else pathname.removeprefix("/")
    if not pathname or _CONTROL.search(pathname):
        pathname = None
    certain = certain and pathname is not None and _NO_SEGMENT.search(f"/{pathname}/") is None
    return BlobName(store, pathname, certain, _key(pathname or path))


def meanings(value: str) -> tuple[bytes, ...]:
    """Return the keys of all blobs that a value may mean, its own first; ``ops.blob_meanings`` is the same in SQL.

    More than one: the value is no certain name, and keeps all of them.
    """
    name = blob_name(value)
    if not doubt(value):
        return (name.key,)
    text = _text(value)
    ends = [*(found.start() for found in _MARK.finditer(text)), len(text)]
    starts = [0, *(found.end() for found in _SLASH_OR_MARK.finditer(text))]
    found = {
        sha256(text[start:end].strip("/").encode()).digest()
        for start in starts
        for end in ends[bisect_left(ends, start) :][:16]
        if end > start
    }
    return (name.key, *found)


def doubt(value: str) -> str | None:
    """Return why a value may mean other blobs than the one of its key; None: it may not.

    ``text``: a name may stand somewhere in it. ``host``: it is a URL of a host that is no store's.
    """
    name = blob_name(value)
    if _SURROGATE.search(value) or _PLAIN.fullmatch(value) or (name.store and name.certain):
        return None
    if _CARRIES.search(_text(value)):
        return "text"
    return "host" if name.store is None else None


def _text(value: str) -> str:
    text = value
    while (decoded := _decoded(text)) not in (None, text):
        text = str(decoded)
    text = _BLANK_SLASH.sub("/", text.replace("\\", "/"))
    return re.sub(r"[\x01-\x20\x7f]", " ", re.sub(r"(/\.?)+/", "/", text))


def _decoded(text: str) -> str | None:
    """Return a text with its percent-encoded octets decoded once; None: the result would be no text."""
    octets = _OCTET.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode())
    try:
        return None if b"\0" in octets else octets.decode()
    except UnicodeDecodeError:
        return None


def _key(path: str) -> bytes:
    while (decoded := _decoded(path)) not in (None, path):
        path = str(decoded)
    path = _CONTROL.sub("", re.split("[?#]", path, maxsplit=1)[0].replace("\\", "/"))
    kept: list[str] = []
    for segment in (part.strip(_BLANKS) for part in path.split("/")):
        if segment == "..":
            kept = kept[:-1]
        elif segment not in ("", "."):
            kept.append(segment)
    return sha256("/".join(kept).encode()).digest()
