"""The server must show who it is: at a real PgBouncer with a certificate, at a server without, and at Redis."""

import json
import select
import socket
import ssl
import threading
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

import pytest

from backend import migrate
from scripts.utils import tls
from scripts.utils.db_utils import Database
from scripts.utils.errors import DatabaseRefused, Misconfigured
from scripts.utils.rate_limit import SharedRateLimit
from scripts.utils.redis_lock import JobLock, connect_redis
from tests.inside import run_inside
from tests.pooler import HOST, Pooler
from tests.utils.certificates import Authority

# A name that is not this machine's; hostaddr in the URL says where it is.
NAME = "db.example.test"
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cleanup" / "cleanup_magic_links.py"
LOCK = {"name": "lock:tls", "timeout": 30, "run": "0123456789abcdef"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    authority = Authority()
    authority.file = tmp_path_factory.mktemp("authority") / "root.pem"
    authority.file.write_bytes(authority.pem)
    return authority


@pytest.fixture(scope="module")
def secured(stack, authority):
    """A PgBouncer that lets nobody in without encryption, with a certificate for NAME."""
    certificate, key = authority.certificate(NAME)
    pooler = Pooler(stack, client_tls_sslmode="require", client_tls_cert_file=certificate, client_tls_key_file=key)
    yield pooler
    pooler.stop()


@pytest.fixture
def url(secured, database):
    """A function that returns the URL of the test's database at a host name, behind the secured PgBouncer."""

    def url(host=NAME, **options):
        extra = "".join(f"&{name}={value}" for name, value in options.items())
        return secured.through(database.url).replace(HOST, host) + f"?hostaddr={HOST}{extra}"

    return url


@contextmanager
def opened(url):
    database = Database(url, application_name="tls", max_size=2)
    try:
        database.open()
        yield database
    finally:
        database.close()


def encrypted(url):
    """Connect as a job does, and tell whether the line is encrypted."""
    with opened(url) as database, database.connection() as connection:
        return bool(connection.pgconn.ssl_in_use)


def refusal(url):
    with pytest.raises(DatabaseRefused) as refused, opened(url):
        pass
    assert refused.value.__suppress_context__
    return str(refused.value)


def test_the_right_certificate_passes(url, authority, monkeypatch):
    assert encrypted(url(sslrootcert=authority.file))
    # As an image's list of authorities would hold it, and by the name that Neon's and PostgreSQL's documents use.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert encrypted(url())
    assert encrypted(url(sslrootcert="system"))


def test_what_is_not_the_right_server_is_refused(url, authority):
    told = "its certificate is expired, or from no authority that is trusted here: for an authority of your own add"
    assert told in refusal(url())
    assert told in refusal(url(sslrootcert="system"))
    another = "its certificate is for another host name"
    assert another in refusal(url("db.example.com", sslrootcert=authority.file))
    # This machine is trusted, unless the URL asks who is there.
    assert another in refusal(url("localhost", sslmode="verify-full", sslrootcert=authority.file))
    assert "lets nobody in without encryption" in refusal(url(sslmode="disable"))
    assert "sslrootcert is no file" in refusal(url(sslrootcert="/nowhere/root.pem"))


def test_a_server_without_encryption_is_refused_unless_the_url_allows_it(database):
    elsewhere = f"{database.straight_url.replace(HOST, NAME)}?hostaddr={HOST}"
    assert "offers no encryption" in refusal(elsewhere)
    with pytest.raises(DatabaseRefused, match="offers no encryption"):
        migrate.status(elsewhere)
    assert not encrypted(f"{elsewhere}&sslmode=disable")
    assert not encrypted(f"{elsewhere}&sslmode=prefer")
    assert not encrypted(database.straight_url)


def test_an_expired_certificate_is_refused(stack, database, authority):
    certificate, key = authority.certificate(NAME, days=0)
    pooler = Pooler(stack, client_tls_sslmode="require", client_tls_cert_file=certificate, client_tls_key_file=key)
    try:
        url = f"{pooler.through(database.straight_url).replace(HOST, NAME)}?hostaddr={HOST}"
        assert "its certificate is expired" in refusal(f"{url}&sslrootcert={authority.file}")
        assert encrypted(f"{url}&sslmode=require"), "who says so is not verified"
    finally:
        pooler.stop()


def test_a_job_says_it_in_one_line(url, database, redis_url, capsys, monkeypatch):
    environment = {"DATABASE_URL": url(), "REDIS_URL": redis_url}
    done = run_inside(SCRIPT, [], env=environment, capsys=capsys, monkeypatch=monkeypatch)
    closing = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, closing["stop_reason"]) == (2, "database_refused")
    assert "the server in DATABASE_URL is not to be trusted" in closing["error"]
    assert "Traceback" not in done.stdout + done.stderr
    assert "database_connect_retry" not in done.stdout


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("postgresql://db.example.com/app", "verify-full"),
        ("postgresql://10.0.0.5/app", "verify-full"),
        ("postgresql://localhost,db.example.com/app", "verify-full"),
        ("postgresql://localhost/app?hostaddr=203.0.113.5", "verify-full"),
        ("postgresql://localhost/app", None),
        ("postgresql://127.8.0.1,[::1]/app", None),
        ("postgresql:///app?host=/run/postgresql", None),
        ("postgresql://db.example.com/app?sslmode=require", "require"),
        ("postgresql://localhost/app?sslmode=verify-ca", "verify-ca"),
        ("postgresql://localhost/app?sslrootcert=system", "verify-full"),
    ],
)
def test_only_this_machine_and_the_url_itself_are_excepted(url, mode, monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert tls.libpq_options(url).get("sslmode") == mode


class _Secured(ThreadingTCPServer):
    """What ends TLS in front of Valkey, whose wheel has none."""

    daemon_threads = True

    def __init__(self, context, target):
        class Handler(BaseRequestHandler):
            def handle(self):
                client = context.wrap_socket(self.request, server_side=True)
                with client, socket.create_connection(target) as server:
                    _copy(client, server)

        super().__init__((HOST, 0), Handler)

    def handle_error(self, request, client_address):
        """Those who do not trust the certificate hang up."""


def _copy(client, server):
    while True:
        for end, other in ((client, server), (server, client)):
            if end in select.select([client, server], [], [])[0]:
                chunk = end.recv(65536)
                if not chunk:
                    return
                other.sendall(chunk)


@pytest.fixture
def rediss(redis_url, authority, tmp_path):
    """The URL of Valkey behind TLS, with a certificate for localhost."""
    certificate, key = authority.certificate("localhost")
    (tmp_path / "server.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    parts = urlsplit(redis_url)
    with _Secured(context, (parts.hostname, parts.port)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"rediss://{parts.username}:{parts.password}@localhost:{server.server_address[1]}{parts.path}"
        server.shutdown()


def test_redis_must_show_who_it_is_too(rediss, authority, database, monkeypatch):
    with opened(database.url) as db:
        for wrong in (rediss, f"{rediss}?ssl_ca_certs={authority.file}".replace("localhost", HOST)):
            with pytest.raises(Misconfigured, match="the server in REDIS_URL is not to be trusted"):
                JobLock(db, connect_redis(wrong, "test"), **LOCK).acquire()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        for right in (rediss, f"{rediss}?ssl_ca_certs={authority.file}", f"{rediss}?ssl_cert_reqs=none"):
            with connect_redis(right, "test") as client:
                lock = JobLock(db, client, **LOCK)
                lock.acquire()
                assert not lock.degraded
                lock.release()
        limit = SharedRateLimit(rediss, name="tls", per_minute=1)
        limit.acquire(1, pause=pytest.fail)
        assert not limit._alone
        limit._limiter.storage.storage.close()


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("redis://cache.example.com:6379/0", False),
        ("redis://:secret@10.0.0.7", False),
        ("redis://[2001:db8::1]:6379", False),
        ("redis://cache.example.com#tls", False),
        ("redis://cache.example.com/0#no-tls", True),
        ("rediss://cache.example.com:6379/0", True),
        ("redis://127.0.0.1:6379", True),
        ("redis://[::1]:6379", True),
        ("redis://localhost", True),
        ("redis://red-abc123:6379", True),  # Render's private network
    ],
)
def test_redis_on_another_machine_is_encrypted_unless_the_url_says_otherwise(url, allowed):
    assert (tls.redis_problem(url) is None) is allowed
