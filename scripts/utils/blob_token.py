"""The token of Vercel Blob, and the id of the store that it belongs to. Modules that need no more import only this."""

from __future__ import annotations

from scripts.utils.errors import Misconfigured
from scripts.utils.settings import Settings


def secret_of(settings: Settings) -> str:
    """Return the token.

    Raises:
        Misconfigured: There is none.
    """
    if settings.blob_read_write_token is None:
        raise Misconfigured("BLOB_READ_WRITE_TOKEN is not set: a policy with action delete_blob needs it")
    return settings.blob_read_write_token.get_secret_value()


def store_of(settings: Settings) -> str:
    """Return the id of the store that the token belongs to.

    Raises:
        Misconfigured: There is no token.
    """
    return secret_of(settings).split("_")[3]
