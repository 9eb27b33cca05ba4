"""Keyed pseudonyms: the audit can recognise a person or a key by them without holding either (GDPR Art. 4(5)).

They are computed in Python and never in SQL, where the key would end up in the server's log. Destroying a key makes the
entries of its years anonymous.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from scripts.utils.errors import Misconfigured
from scripts.utils.settings import Settings


def pseudonym(settings: Settings, text: str) -> str:
    """Return the pseudonym of a text, with the id of its key in front: ``k1:…``.

    Raises:
        Misconfigured: AUDIT_PSEUDONYM_KEY is not set.
    """
    if settings.audit_pseudonym_key is None:
        raise Misconfigured("AUDIT_PSEUDONYM_KEY is not set: what has no id of its own is audited by a keyed pseudonym")
    key_id, _, key = settings.audit_pseudonym_key.get_secret_value().partition(":")
    return f"{key_id}:{hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()}"


def suppression(settings: Settings, address: str) -> str:
    """Return the pseudonym of an address for the suppression list, with the id of its key in front: ``s1:…``.

    The application computes the same to look an address up: HMAC-SHA256 of the normalized address.

    Raises:
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    key_id, key = _suppression_key(settings)
    return f"{key_id}:{hmac.new(key, address.encode(), hashlib.sha256).hexdigest()}"


def ledger_digest(settings: Settings, address: str) -> str:
    """Return what stands for an address in the erasure ledger: under the same key, but never the same value.

    Raises:
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    key_id, key = _suppression_key(settings)
    return f"{key_id}:{hmac.new(key, b'erasure ledger 1:' + address.encode(), hashlib.sha256).hexdigest()}"


def ledger_code(settings: Settings) -> Callable[[bytes], str]:
    """Return the function that authenticates a line of the erasure ledger (RFC 2104), with the id of its key in front.

    Its key is derived by HKDF (RFC 5869): pseudonyms and digests under SUPPRESSION_KEY let nobody compute a code.

    Raises:
        Misconfigured: SUPPRESSION_KEY is not set.
    """
    key_id, key = _suppression_key(settings)
    derived = HKDF(SHA256(), 32, None, b"erasure ledger authentication 1").derive(key)
    return lambda text: f"{key_id}:{hmac.new(derived, text, hashlib.sha256).hexdigest()}"


def _suppression_key(settings: Settings) -> tuple[str, bytes]:
    if settings.suppression_key is None:
        raise Misconfigured("SUPPRESSION_KEY is not set: who was erased is recognised by a keyed pseudonym alone")
    key_id, _, key = settings.suppression_key.get_secret_value().partition(":")
    return key_id, bytes.fromhex(key)


def short_digest(key: bytes, text: bytes) -> bytes:
    """Return 16 bytes that stand for a text, under a key of at most 64 bytes; thousands of them are wanted at a time.

    BLAKE2b with a key is a pseudorandom function by itself (RFC 7693, 2.9), in a third of HMAC's time.
    """
    return hashlib.blake2b(text, key=key, digest_size=16).digest()
