"""TLS for PostgreSQL and Redis: the server's certificate is checked, unless the URL says otherwise.

libpq's own default accepts an unencrypted connection where the server offers no other, and checks no name in a
certificate (PostgreSQL documentation, "SSL Mode Descriptions"). Here a server on any other machine must show a valid
certificate for its host name.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

import certifi
from psycopg.conninfo import conninfo_to_dict

NO_TLS = "no-tls"
"""What a Redis URL says after a ``#`` where it is meant to go unencrypted to another machine."""

_VERIFIED = ("verify-ca", "verify-full")

# libpq and PgBouncer have no SQLSTATE for these, only English text.
_PROBLEMS = {
    "certificate verify failed": (
        "its certificate is expired, or from no authority that is trusted here: for an authority of your own add"
        " sslrootcert=FILE to the URL"
    ),
    "does not match host name": "its certificate is for another host name: name the host as the certificate does",
    "does not support SSL": (
        "it offers no encryption: turn it on there, or add sslmode=disable to the URL if the network between is yours"
    ),
    "SSL required": "it lets nobody in without encryption: take sslmode=disable out of the URL",
    "root certificate file": "the URL's sslrootcert is no file of certificates",
}


def libpq_options(url: str) -> dict[str, str]:
    """Return the parameters that a PostgreSQL URL needs for a verified connection; they beat the shell's PGSSL….

    The URL's own ``sslmode`` and ``sslrootcert`` stand. ``sslrootcert=system`` means the authorities that are trusted
    here: the libpq of psycopg's wheels looks for them in a folder that no system has.
    """
    parts = conninfo_to_dict(url)
    root = parts.get("sslrootcert")
    mode = parts.get("sslmode") or ("verify-full" if root == "system" or not _all_local(parts) else None)
    if mode is None:
        return {}
    if mode in _VERIFIED and root in (None, "system"):
        return {"sslmode": str(mode), "sslrootcert": trusted_authorities()}
    return {"sslmode": str(mode)}


def redis_options(url: str) -> dict[str, str]:
    """Return the parameters that a Redis URL needs; ``rediss://`` is verified unless the URL itself says otherwise."""
    parts = urlsplit(url)
    if parts.scheme != "rediss" or "ssl_ca_certs" in parse_qs(parts.query):
        return {}
    return {"ssl_ca_certs": trusted_authorities()}


def redis_problem(url: str) -> str | None:
    """Return what is wrong with a Redis URL that sends a password and the locks unencrypted to another machine.

    None where it is right: TLS, this machine, a host name without a dot (which only the platform's private network
    resolves; Render's own URL is one and cannot be added to), or a URL that ends with ``#no-tls`` on purpose. Clients
    ignore what follows the ``#``.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    in_private_network = "." not in host and ":" not in host
    if parts.scheme == "rediss" or is_local(host) or in_private_network or parts.fragment == NO_TLS:
        return None
    return (
        "goes to another machine without encryption: use rediss://, or end the URL with #no-tls if the network between"
        " is yours"
    )


def trusted_authorities() -> str:
    """Return the file of the authorities that this machine trusts: SSL_CERT_FILE, the system's, else certifi's."""
    return ssl.get_default_verify_paths().cafile or certifi.where()


def problem(text: str) -> str | None:
    """Return what a driver's message about TLS means; None if it is about something else."""
    return next((meaning for phrase, meaning in _PROBLEMS.items() if phrase in text), None)


def is_certificate_refused(error: BaseException | None) -> bool:
    """Tell whether a certificate was refused somewhere down the causes of a Python error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_local(host: str) -> bool:
    """Tell whether a host is this machine: loopback, or the folder or name of a Unix socket."""
    if host == "localhost" or host.startswith(("/", "@")):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _all_local(parts: Mapping[str, object]) -> bool:
    # Where hostaddr is given too, libpq connects there, and the name is what the certificate must be for.
    hosts = [host for name in ("host", "hostaddr") for host in str(parts.get(name) or "localhost").split(",")]
    return all(is_local(host) for host in hosts)
