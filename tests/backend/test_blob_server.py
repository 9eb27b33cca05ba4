"""The local Blob server: its store, its refusals and each of its faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from backend import blob_server
from backend.blob_faults import ALWAYS, Counters
from backend.blob_server import BlobServer
from backend.blob_store import BlobRefused, checked_pathname

BAD_PATHNAMES = [
    "",
    "/",
    "..",
    "a/../b",
    "../../etc/passwd",
    "./a",
    "a//b",
    "//a",
    "a\x00b",
    "a\nb",
    "\x7f",
    "a" * 951,
    "🍎" * 476,
]


@pytest.fixture
def server(tmp_path):
    with BlobServer(tmp_path / "store") as running:
        yield running


@pytest.fixture
def api(server):
    headers = {"authorization": f"Bearer {server.token}", "x-api-version": "12"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=10) as client:
        yield client


def delete(api, *targets, **headers):
    return api.post("/delete", json={"urls": targets}, headers=headers)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("pathname", BAD_PATHNAMES)
def test_bad_pathnames_are_refused_and_nothing_is_written(api, server, pathname, tmp_path):
    before = sorted(tmp_path.rglob("*"))

    assert code(api.put("", params={"pathname": pathname}, content=b"x")) == (400, "bad_request")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "target", ["https://{host}/%2e%2e/x", "https://{host}/a%2f%2fb", "https://{host}/%ff", "https://[", "\ud800"]
)
def test_bad_targets_are_refused(api, server, target):
    named = json.dumps({"urls": [target.format(host=server.delivery_host)]})
    answer = api.post("/delete", content=named)

    assert answer.status_code in {400, 403}
    assert server.counters.blobs_deleted == 0


def test_leading_slash_is_dropped_and_long_names_of_reads_pass():
    assert checked_pathname("/a/b") == "a/b"
    assert checked_pathname("a" * 951) == "a" * 951
    assert checked_pathname("🍎" * 475, upload=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://other.public.blob.vercel-storage.com/a",
        "http://{host}/a",
        "https://{host}:8443/a",
        "https://x@{host}/a",
    ],
)
def test_urls_of_elsewhere_are_refused(api, server, url):
    server.put("a", b"x")

    assert code(delete(api, url.format(host=server.delivery_host))) == (403, "forbidden")
    assert server.count() == 1


def test_credentials(api, server):
    secret = server.token.rpartition("_")[2]
    for header, expected in {
        "": "forbidden",
        "Bearer": "forbidden",
        server.token: "forbidden",
        f"Bearer {server.token}x": "forbidden",
        f"Bearer vercel_blob_rw_{server.store_id.swapcase()}_{secret}": "store_not_found",
    }.items():
        assert code(api.get("", headers={"authorization": header})) == (403, expected)
    del api.headers["x-api-version"]
    assert code(api.get("")) == (400, "bad_request")


def test_the_same_folder_keeps_blobs_and_store_id(tmp_path):
    with BlobServer(tmp_path) as first:
        first.put("a", b"content")
    with BlobServer(tmp_path) as second:
        assert second.url_of("a") == first.url_of("a")
        assert second.token != first.token
        assert second.count() == 1
    with pytest.raises(ValueError, match="not of the form"):
        BlobServer(tmp_path, token="secret")


def test_private_store_wants_the_token_for_content(tmp_path):
    with BlobServer(tmp_path, access="private") as server:
        server.put("a", b"content")

        assert httpx.get(server.local_url_of("a")).status_code == 403
        assert (
            httpx.get(server.local_url_of("a"), headers={"authorization": f"Bearer {server.token}"}).content
            == b"content"
        )
        assert ".private." in server.url_of("a")


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", ""])
def test_list_limits(api, limit):
    assert code(api.get("", params={"limit": limit})) == (400, "bad_request")


@pytest.mark.parametrize("cursor", ["%%%", "é", "a"])
def test_bad_cursors_are_refused(api, cursor):
    assert code(api.get("", params={"cursor": cursor})) == (400, "bad_request")


@pytest.mark.parametrize("mode", ["expanded", "folded"])
def test_cursors_survive_deletions_and_uploads_between_pages(api, server, mode):
    names = list(server.populate(50, "plans/"))
    seen, cursor = [], {}
    while cursor is not None:
        page = api.get("", params={"limit": "10", "prefix": "plans/", "mode": mode, **cursor}).json()
        seen += [blob["pathname"] for blob in page["blobs"]]
        delete(api, *seen[-10:])  # the cursor's own neighbours go
        server.put(f"plans/{len(seen):07d}-behind", b"x", overwrite=True)
        cursor = {"cursor": page["cursor"]} if page["hasMore"] else None

    assert [name for name in seen if name in set(names)] == names
    assert len(seen) == len(set(seen))


def test_no_page_is_empty_while_more_follows(api, server):
    server.populate(20, "a/")
    server.populate(20, "b/")

    first = api.get("", params={"limit": "1", "mode": "folded"}).json()
    second = api.get("", params={"limit": "1", "mode": "folded", "cursor": first["cursor"]}).json()

    assert (first["folders"], first["hasMore"]) == (["a/"], True)
    assert (second["folders"], second["hasMore"], "cursor" in second) == (["b/"], False, False)


def test_listing_50_000_blobs_costs_the_same_on_every_page(server):
    server.populate(50_000, "plans/", on_disk=False)
    server.store.page()
    tracemalloc.start()
    listed, cursor, pages = 0, None, []
    while not pages or cursor:
        started = time.process_time()
        page = server.store.page(cursor=cursor)
        pages.append(time.process_time() - started)
        listed, cursor = listed + len(page.blobs), page.cursor
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert listed == 50_000
    assert peak < 3_000_000  # three pages, not 50
    assert min(pages[-10:]) < 5 * min(pages[:10])  # processor time, the best of ten: a cache that was cold costs too


def test_delete_of_too_many_or_none_or_not_a_list(api):
    assert delete(api, *(str(number) for number in range(1000))).json() is None
    assert code(delete(api, *(str(number) for number in range(1001)))) == (400, "bad_request")
    assert code(delete(api)) == (400, "bad_request")
    assert code(api.post("/delete", json={"urls": "a"})) == (400, "bad_request")
    assert code(api.post("/delete", content=b"{")) == (400, "bad_request")
    assert code(delete(api, "a", "b", **{"x-if-match": '"x"'})) == (400, "bad_request")
    assert code(api.post("/mpu")) == (404, "bad_request")


@pytest.mark.parametrize(
    ("switches", "expected", "retry_after"),
    [
        ({"rate_limited_calls": 2, "retry_after": 3}, (429, "rate_limited"), "3"),
        ({"failing_calls": 2}, (503, "service_unavailable"), None),
        ({"failing_calls": 2, "failing_status": 500}, (500, "internal_server_error"), None),
    ],
)
def test_counted_failures_do_nothing_and_end(api, server, switches, expected, retry_after):
    server.put("a", b"x")
    server.faults.change(switches)
    for _ in range(2):
        answer = delete(api, "a")
        assert (code(answer), answer.headers.get("retry-after")) == (expected, retry_after)
    assert server.count() == 1

    assert delete(api, "a").status_code == 200
    assert server.count() == 0


def test_faults_can_last_and_spare_other_calls(api, server):
    server.faults.change({"failing_calls": ALWAYS, "operations": ["delete"]})

    assert [delete(api, "a").status_code for _ in range(5)] == [503] * 5
    assert api.get("").status_code == 200
    server.reset()
    assert delete(api, "a").status_code == 200
    assert server.counters.requests == 1


@pytest.mark.parametrize(("fault", "left"), [("cut_before_calls", 1), ("cut_after_calls", 0), ("half_body_calls", 0)])
def test_cut_connections(api, server, fault, left):
    server.put("a", b"x")
    server.faults.change({fault: 1})

    with pytest.raises(httpx.RemoteProtocolError):
        delete(api, "a")

    assert server.count() == left
    assert server.log[0].status is None
    assert api.get("").status_code == 200


def test_trickle_latency_and_garbled_errors(api, server, monkeypatch):
    server.faults.change({"trickle_calls": 1, "trickle_seconds": 0.4, "latency_ms": 100, "garbled_calls": 0})
    paused = []
    monkeypatch.setattr(server, "pause", paused.append)
    assert api.get("").json()["hasMore"] is False
    assert paused[0] == 0.1
    assert len(paused) > 2
    assert sum(paused[1:]) == pytest.approx(0.4)

    server.faults.garbled_calls = 1
    answer = api.get("")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html")
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_a_named_blob_fails_every_call_that_names_it(api, server):
    server.populate(3, "plans/")
    bad = "plans/0000001.pdf"
    server.faults.unavailable = {bad}

    assert code(delete(api, "plans/0000000.pdf", server.url_of(bad))) == (503, "service_unavailable")
    assert code(api.get("", params={"url": bad})) == (503, "service_unavailable")
    assert server.count() == 3
    assert delete(api, "plans/0000000.pdf", "plans/0000002.pdf").status_code == 200


def test_limit_of_blobs_a_minute_moves(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(blob_server.time, "time", lambda: now[0])
    counters = Counters()

    assert counters.admit(6, 10) == 0
    now[0] += 20
    assert counters.admit(4, 10) == 0
    assert counters.admit(1, 10) == 40
    assert counters.admit(7, 10) == 60  # not before the second call has left the window
    assert counters.admit(11, 10) == 60
    now[0] += 40
    assert counters.admit(6, 10) == 0
    assert counters.admit(1, None) == 0


def test_counters_know_the_fullest_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(blob_server.time, "time", lambda: now[0])
    counters = Counters()
    for blobs in (5, 5, 1, 1):
        counters.done(200, blobs)
        now[0] += 30

    assert counters.snapshot()["peak_deleted_per_minute"] == 10
    assert counters.deleted.peak_at == 1030
    assert list(counters.deletions)[:2] == [(1000.0, 5), (1030.0, 5)]


def test_calls_wait_side_by_side_on_reused_connections(api, server):
    server.populate(400, "plans/", on_disk=False)
    server.faults.latency_ms = 20
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: delete(api, f"plans/{number:07d}.pdf"), range(400)))

    assert server.count() == 0
    assert server.counters.connections <= 20
    assert 2 <= server.counters.peak_in_flight <= 16


def test_control_from_another_process(api, server):
    control = f"{server.root}/_control"
    wanted = {
        "reset": True,
        "faults": {"latency_ms": 1, "unavailable": ["a"]},
        "populate": {"count": 5, "prefix": "p/"},
    }
    state = api.post(control, json=wanted).json()
    delete(api, "p/0000001.pdf")

    assert (state["blobs"], state["faults"]["unavailable"], server.faults.latency_ms) == (5, ["a"], 1)
    told = api.get(control).json()
    assert (told["counters"]["blobs_deleted"], told["log"][0]["targets"]) == (1, ["p/0000001.pdf"])
    assert httpx.post(control, json=wanted).status_code == 403
    for wrong in (
        {"faults": {"latency": 1}},
        {"faults": {"failing_calls": "1"}},
        {"populate": {"count": "x", "prefix": ""}},
        [],
    ):
        assert api.post(control, json=wrong).status_code == 400


def test_upload_broken_off_leaves_nothing(server):
    head = f"PUT /api/blob?{urlencode({'pathname': 'a'})} HTTP/1.1\r\nHost: x\r\nx-api-version: 12\r\nAuthorization: Bearer {server.token}\r\n"
    with socket.create_connection(("127.0.0.1", int(server.root.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\nhalf".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""

    assert server.count() == server.count_files() == 0


def test_chunked_upload_and_refused_lengths(server):
    connection = http.client.HTTPConnection("127.0.0.1", int(server.root.rpartition(":")[2]))
    headers = {"authorization": f"Bearer {server.token}", "x-api-version": "12"}
    connection.request("PUT", "/api/blob?pathname=a", iter([b"one ", b"two"]), headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    for length in ("-1", "x", str(10**12)):
        connection.request("PUT", "/api/blob?pathname=b", headers={**headers, "content-length": length})
        assert connection.getresponse().status == 400
        connection.close()

    assert server.store.read("a") == b"one two"
    assert server.count() == 1


def test_failed_overwrite_keeps_the_old_blob_and_linked_ones(server):
    first, second = server.populate(2, "plans/")
    before = server.store.read(first)

    with pytest.raises(BlobRefused):
        server.put(first, b"new")
    server.put(first, b"new", overwrite=True)

    assert server.store.read(first) == b"new"
    assert server.store.read(second) == before


def test_command_line(tmp_path):
    script = Path(blob_server.__file__)
    command = [
        sys.executable,
        "-I",
        str(script),
        "--directory",
        str(tmp_path / "store"),
        "--token-file",
        str(tmp_path / "token"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={"PATH": os.defpath}
    ) as process:
        settings = dict(process.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(3))
        token = settings["BLOB_READ_WRITE_TOKEN"]
        headers = {"authorization": f"Bearer {token}", "x-api-version": "12"}
        assert httpx.get(settings["VERCEL_BLOB_API_URL"], headers=headers).json() == {"blobs": [], "hasMore": False}
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0

    assert (tmp_path / "token").read_text().strip() == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_command_line_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("secret")
    done = subprocess.run(
        [sys.executable, blob_server.__file__, "--directory", tmp_path / "store", "--token-file", tmp_path / "file"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 2
    assert "not of the form" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr.replace("_<secret>", "")
