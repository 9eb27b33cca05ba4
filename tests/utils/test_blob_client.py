"""The client against a real server: what it names, what it believes, and what it never says."""

import http.server
import json
import threading
from contextlib import contextmanager
from fractions import Fraction

import pytest
from structlog.testing import capture_logs

from backend.blob_faults import ALWAYS
from backend.blob_server import BlobServer
from scripts.utils.blob_client import LONGEST_RETRY_AFTER, BlobCallFailed, BlobClient
from scripts.utils.rate_limit import SharedRateLimit
from scripts.utils.retry_utils import CircuitBreaker, CircuitOpen
from scripts.utils.settings import load_settings


@pytest.fixture
def server(tmp_path):
    with BlobServer(tmp_path / "store") as running:
        yield running


@pytest.fixture
def waits():
    """Seconds of each pause that a client was asked to make; none is made."""
    return []


@pytest.fixture
def connect(monkeypatch, redis_url, waits):
    """A function that makes a client with these settings, and a breaker that opens at four failures of five."""
    clients = []

    def make(**settings):
        for name, value in ({"DATABASE_URL": "postgresql://x/y", "REDIS_URL": redis_url} | settings).items():
            monkeypatch.setenv(name, value)
        breaker = CircuitBreaker(
            "a store", failure_limit=Fraction(4, 5), counts=lambda error: isinstance(error, BlobCallFailed)
        )
        limit = SharedRateLimit(redis_url, name="test", per_minute=100_000)
        clients.append(BlobClient(load_settings(), breaker=breaker, limit=limit, pause=waits.append))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect, server):
    return connect(**server.settings())


@pytest.mark.parametrize(
    ("name", "pathname"),
    [
        ("plans/a.pdf", "plans/a.pdf"),
        ("https://{host}/plans/a.pdf", "plans/a.pdf"),
        ("https://{host}/plans/a.pdf?download=1#top", "plans/a.pdf"),
        ("https://{host}/plans/a%20b%25%C3%A9.pdf", "plans/a b%é.pdf"),
        ("https://{store}.private.blob.vercel-storage.com/a.pdf", "a.pdf"),
        ("HTTPS://{HOST}/a.pdf", "a.pdf"),
        ("plans/100%25.pdf", "plans/100%25.pdf"),  # a pathname is meant as it is written
        ("http://{host}/a.pdf", "a.pdf"),
        ("http://{host}:443/a.pdf", None),
        ("ftp://{host}/a.pdf", None),
        ("https://other.public.blob.vercel-storage.com/a.pdf", None),
        ("https://{host}.example.com/a.pdf", None),
        ("https://example.com/{host}/a.pdf", None),
        ("https://{store}.other.blob.vercel-storage.com/a.pdf", None),
        ("https://{host}:443/a.pdf", "a.pdf"),
        ("https://{host}:8443/a.pdf", None),
        ("https://{host}:/a.pdf", "a.pdf"),
        ("https://{host}:99999/a.pdf", None),
        ("https://{host}:port/a.pdf", None),
        ("https://someone@{host}/a.pdf", None),
        ("https://{host}@example.com/a.pdf", None),
        ("https://{host}/%ff.pdf", None),
        ("https://[/a.pdf", None),
        ("://", None),
    ],
)
def test_a_name_is_a_pathname_of_this_store_or_none(client, server, name, pathname):
    names = {"host": server.delivery_host, "HOST": server.delivery_host.upper(), "store": server.store_id.lower()}
    assert client.pathname(name.format(**names)) == pathname
    assert server.counters.requests == 0


def test_what_the_client_takes_for_ours_the_store_takes_too(client, server):
    names = ["a.pdf", "b c%é.pdf", "d.pdf"]
    for name in names:
        server.put(name, b"%PDF")
    urls = [server.url_of(names[0]), server.url_of(names[1]), f"{server.url_of(names[2])}?download=1"]
    assert [client.pathname(url) for url in urls] == names
    client.delete(urls)
    assert server.count() == 0


def test_deleting_what_is_not_there_is_fine(client, server):
    server.put("a", b"x")
    client.delete(["a", "never-there"])
    client.delete(["a", "never-there"])
    assert (server.count(), server.counters.statuses) == (0, {"200": 2})


def test_a_blob_exists_or_does_not(client, server):
    server.put("a", b"x")
    assert client.exists("a")
    assert client.exists(server.url_of("a"))
    assert not client.exists("b")


def test_more_than_a_page_is_listed_whole(client, server):
    server.populate(2500, "plans/", on_disk=False)
    server.populate(10, "other/", on_disk=False)
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = client.page("plans/", cursor)
        found, cursor, pages = found + page.blobs, page.cursor, pages + 1
    assert (pages, len(found), len({blob.pathname for blob in found})) == (3, 2500, 2500)
    assert all(blob.pathname.startswith("plans/") and blob.uploaded_at.tzinfo for blob in found)


@pytest.mark.parametrize("asked", [3, 86_400])
def test_the_store_says_how_long_to_wait_up_to_a_minute(client, server, waits, asked):
    server.faults.change({"rate_limited_calls": 1, "retry_after": asked})
    client.delete(["a"])
    assert waits == [min(asked, LONGEST_RETRY_AFTER)]


def test_a_call_is_repeated_so_often_and_no_more(client, server, waits):
    server.faults.failing_calls = ALWAYS
    with pytest.raises(BlobCallFailed) as failed:
        client.delete(["a"])
    assert (failed.value.code, failed.value.retryable, failed.value.fatal) == ("service_unavailable", True, False)
    assert (server.counters.requests, len(waits)) == (4, 3)
    server.counters.reset()
    with pytest.raises(BlobCallFailed):
        client.delete(["a"], attempts=1, counted=False)
    assert server.counters.requests == 1


@pytest.mark.parametrize("fault", ["cut_before_calls", "cut_after_calls", "half_body_calls"])
def test_an_answer_that_did_not_come_is_asked_for_again(client, server, fault):
    server.put("a", b"x")
    server.faults.change({fault: 1})
    client.delete(["a"])
    assert (server.count(), server.counters.requests) == (0, 2)


def test_the_breaker_opens_after_enough_failures_and_no_call_is_made_any_more(client, server):
    server.faults.failing_calls = ALWAYS
    with pytest.raises(BlobCallFailed):
        client.delete(["a"])
    with pytest.raises(CircuitOpen):
        client.delete(["a"])
    server.faults.reset()
    server.counters.reset()
    for call in (lambda: client.delete(["a"]), lambda: client.exists("a"), lambda: client.page("", None)):
        with pytest.raises(CircuitOpen):
            call()
    assert server.counters.requests == 0


def test_what_is_not_counted_never_opens_the_breaker(client, server):
    server.faults.failing_calls = 20
    for _ in range(20):
        with pytest.raises(BlobCallFailed):
            client.delete(["a"], attempts=1, counted=False)
    client.delete(["a"])


@contextmanager
def answering(status, body, content_type="application/json"):
    """A server that gives every call the same answer, as a proxy or a wrong address would."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", "0")))
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the standard library names it

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield {
            "VERCEL_BLOB_API_URL": f"http://127.0.0.1:{server.server_port}/api/blob",
            "BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_store_secret",
        }
        server.shutdown()


def error(code):
    return json.dumps({"error": {"code": code, "message": "..."}}).encode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<html>Not Found</html>", "unknown_error"),
        (b"", "unknown_error"),
        (b"[]", "unknown_error"),
        (b"null", "unknown_error"),
        (b'{"error": "not_found"}', "unknown_error"),
        (b'{"error": {"code": 404}}', "unknown_error"),
        (b'{"code": "not_found"}', "unknown_error"),
        (error("store_not_found"), "store_not_found"),
        (error("bad_request"), "bad_request"),
    ],
)
def test_a_404_that_does_not_say_not_found_is_never_gone(connect, body, code):
    with answering(404, body) as settings:
        client = connect(**settings)
        for call in (lambda: client.exists("a"), lambda: client.delete(["a"], attempts=1)):
            with pytest.raises(BlobCallFailed) as failed:
                call()
            assert failed.value.code == code


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"", b"[]", b"null", b"{}", b'{"blobs": []}', b'{"blobs": null, "hasMore": false}'),
        b'{"blobs": [{"pathname": "a"}], "hasMore": false}',
        b'{"blobs": [{"pathname": "a", "uploadedAt": "yesterday"}], "hasMore": false}',
    ],
)
def test_a_listing_that_is_none_is_an_error_and_not_an_empty_store(connect, body):
    with answering(200, body) as settings, pytest.raises(BlobCallFailed):
        connect(**settings).page("", None)


def test_the_token_is_in_no_error_and_in_no_line(connect, server):
    calls = [lambda c: c.delete(["a"]), lambda c: c.exists("a"), lambda c: c.page("", None)]
    wrong = f"vercel_blob_rw_{server.store_id}_secret-word"
    said = []
    for settings in (
        {"VERCEL_BLOB_API_URL": "http://127.0.0.1:1/api/blob", "BLOB_READ_WRITE_TOKEN": wrong},
        {"VERCEL_BLOB_API_URL": server.url, "BLOB_READ_WRITE_TOKEN": wrong},
    ):
        for call in calls:
            client = connect(**settings)
            with capture_logs() as lines, pytest.raises(BlobCallFailed) as failed:
                call(client)
            said += [str(failed.value), repr(failed.value), repr(client), str(lines)]
            assert failed.value.__suppress_context__ or failed.value.__context__ is None
    assert "secret-word" not in "".join(said)
