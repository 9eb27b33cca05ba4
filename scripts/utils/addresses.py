"""E-mail addresses: one normal form for each mailbox."""

import re

from scripts.utils.errors import Misconfigured

_LONGEST_ADDRESS = 320
# White space, what no text column takes, and bytes that were no text.
_IN_NO_ADDRESS = re.compile("[\\s\0\ud800-\udfff]")


def normalize_email(address: str) -> str:
    """Return the address as the application's ``normalized_email`` columns hold it.

    Lower case; for Gmail, dots and ``+tag`` removed and googlemail.com folded into gmail.com.

    Raises:
        Misconfigured: It is not an e-mail address.
    """
    local, _, domain = address.strip().lower().rpartition("@")
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.split("+")[0].replace(".", ""), "gmail.com"
    if not local or "." not in domain or len(address) > _LONGEST_ADDRESS or _IN_NO_ADDRESS.search(local + domain):
        raise Misconfigured("that is not an e-mail address")
    return f"{local}@{domain}"
