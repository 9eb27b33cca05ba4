"""Why a connection to PostgreSQL could not be had, told apart so that each cause reads differently.

libpq has no SQLSTATE for a failed connect, only English text, of the server or of the pooler (PgBouncer 1.18 to 1.25).
A server that speaks another language (``lc_messages``) is told by what is left: it answered, and let nobody in.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from scripts.utils import tls
from scripts.utils.errors import DatabaseRefused, DatabaseUnavailable, OpsError


@dataclass(frozen=True)
class Cause:
    """One cause: how the driver's text names it, and what an operator has to know.

    Attributes:
        code: Stable word for the log.
        phrases: Parts of the text, in lower case; one is enough.
        message: What it is, and what to do.
        refused: Whether another attempt is no use: DATABASE_URL or the role is wrong.
    """

    code: str
    phrases: tuple[str, ...]
    message: str
    refused: bool = False


_REFUSES = "PostgreSQL refuses the login: "

# The order matters: a pooler puts the server's text after its own, and "role … does not exist" holds less than
# "database … does not exist".
CAUSES = (
    Cause(
        "too_many_connections",  # 53300
        ("too many clients", "too many connections", "connection slots are reserved", "no more connections allowed"),
        "PostgreSQL has no connection left (53300): lower DB_POOL_SIZE and DB_MAX_OVERFLOW, end sessions that nobody"
        " needs (pg_stat_activity), or raise max_connections, the role's limit or the pooler's; then run again",
    ),
    Cause(
        "starting_up",  # 57P03
        ("is starting up", "is shutting down", "in recovery mode", "not yet accepting", "not accepting commands"),
        "PostgreSQL is starting or stopping (57P03): run again when it is up; if it stays so, look at its log",
    ),
    Cause(
        "database_missing",  # 3D000
        ("no such database",),
        f"{_REFUSES}the database in DATABASE_URL does not exist (3D000): check its name",
        refused=True,
    ),
    Cause(
        "password",  # 28P01
        (
            "password authentication failed",
            "no password supplied",
            "sasl authentication failed",
            "authentication failed",
        ),
        f"{_REFUSES}user or password is wrong (28P01): check user and password in DATABASE_URL, and that the role has a"
        " password (ALTER ROLE … PASSWORD)",
        refused=True,
    ),
    Cause(
        "role",  # 28000
        ("no such user", "not permitted to log in", 'role "', "pg_hba.conf"),
        f"{_REFUSES}the role in DATABASE_URL does not exist or may not log in from here (28000): check the user,"
        " that it has LOGIN, and pg_hba.conf for this host, user, database and sslmode",
        refused=True,
    ),
    Cause(
        "no_connect_right",  # 42501, 55000
        ("permission denied for database", "not currently accepting connections"),
        f"{_REFUSES}the role may not connect to the database: GRANT CONNECT ON DATABASE … TO lifecycle_jobs, and see"
        " that the database allows connections",
        refused=True,
    ),
    Cause(
        "host_unknown",
        ("could not translate host name", "failed to resolve host", "name or service not known", "getaddrinfo"),
        "the host in DATABASE_URL has no address: check its spelling, and that this machine's name service answers",
    ),
    Cause(
        "refused",
        ("connection refused",),
        "nothing listens at host and port of DATABASE_URL (connection refused): check host, port and network, and that"
        " PostgreSQL runs",
    ),
    Cause(
        "timeout",
        ("timeout expired", "timed out"),
        "PostgreSQL does not answer at the host of DATABASE_URL (time-out): check host, port and network: a firewall"
        " drops packets without a word",
    ),
    Cause(
        "unreachable",
        ("no route to host", "network is unreachable", "host is unreachable"),
        "no route leads to the host of DATABASE_URL: check host, port and network",
    ),
    Cause(
        "pooler_without_server",
        ("pgbouncer cannot connect", "server_login_retry", "query_wait_timeout", "server login"),
        "the pooler answers, but does not reach PostgreSQL: look at the pooler's log, then run again",
    ),
    Cause(
        "connection_closed",
        ("closed the connection unexpectedly", "connection reset", "broken pipe", "connection not open"),
        "PostgreSQL, or a proxy before it, closed the connection at once: check that the port is PostgreSQL's, and look"
        " at its log",
    ),
)
UNKNOWN = Cause(
    "unknown",
    (),
    "PostgreSQL does not answer at the host of DATABASE_URL as expected: check host, port and network, and its log",
)


def cause_of(error: BaseException) -> Cause:
    """Return why a connect failed."""
    text = str(error).lower()
    if unsafe := tls.problem(str(error)):
        return Cause("tls", (), f"the server in DATABASE_URL is not to be trusted: {unsafe}", refused=True)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return next(cause for cause in CAUSES if cause.code == "timeout")
    if 'database "' in text and "does not exist" in text:
        return next(cause for cause in CAUSES if cause.code == "database_missing")
    return next((cause for cause in CAUSES if any(phrase in text for phrase in cause.phrases)), UNKNOWN)


def explained_connect(error: BaseException) -> OpsError:
    """Return what an operator has to know of a connect that failed."""
    cause = cause_of(error)
    return (DatabaseRefused if cause.refused else DatabaseUnavailable)(cause.message)
