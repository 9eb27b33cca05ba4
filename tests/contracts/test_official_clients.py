"""Vercel's own two clients, in Python and JavaScript, work with the local server as with Vercel Blob."""

from __future__ import annotations

from urllib.request import urlopen

import pytest

ODD_NAMES = ["plans/päper ü.pdf", "plans/100%25 ?#&+.pdf", "plans/日本語-🍎.pdf", "plans/a", "plans/a/b", "plans/A"]


def content_of(server, pathname):
    with urlopen(server.local_url_of(pathname)) as answer:
        return answer.read().decode()


def test_put_and_head_tell_the_same(client, server):
    put = client.put("plans/1.pdf", "a plan", cacheControlMaxAge=120)
    head = client.ok("head", target="plans/1.pdf")

    assert put["url"] == server.url_of("plans/1.pdf")
    assert put["downloadUrl"] == f"{put['url']}?download=1"
    assert {name: head[name] for name in put} == put
    assert (head["pathname"], head["size"], head["contentType"]) == ("plans/1.pdf", 6, "application/pdf")
    assert head["cacheControl"] == "public, max-age=120"
    assert content_of(server, "plans/1.pdf") == "a plan"


def test_streamed_body_arrives_whole(client, server):
    client.put("plans/1.txt", "a long plan " * 20_000, streamed=True)

    assert content_of(server, "plans/1.txt") == "a long plan " * 20_000


@pytest.mark.parametrize("pathname", ODD_NAMES)
def test_odd_names_go_there_and_back(client, server, pathname):
    put = client.put(pathname, pathname)

    assert put["pathname"] == pathname
    assert client.ok("head", target=put["url"])["pathname"] == pathname
    assert client.ok("listAll", prefix="plans/") == [pathname]
    client.ok("delete", targets=[put["url"]])
    assert server.count() == 0


def test_put_refuses_to_overwrite_unless_told(client, server):
    client.put("plans/1.pdf", "old")

    refused = client.ask("put", pathname="plans/1.pdf", body="new", access="public")
    client.put("plans/1.pdf", "newer", allowOverwrite=True)
    suffixed = client.put("plans/1.pdf", "another", addRandomSuffix=True)

    assert (refused.error, "already exists" in refused.message) == ("BlobError", True)
    assert content_of(server, "plans/1.pdf") == "newer"
    assert suffixed["pathname"].startswith("plans/1-")
    assert suffixed["pathname"].endswith(".pdf")
    assert server.count() == 2


def test_put_of_the_wrong_access_is_refused(client, server):
    refused = client.ask("put", pathname="plans/1.pdf", body="x", access="private")

    assert refused.error == "BlobError"
    assert server.count() == 0


def test_list_follows_cursors_to_the_end(client, server):
    names = list(server.populate(25, "plans/"))
    server.populate(3, "other/")

    assert client.ok("listAll", prefix="plans/", limit=10) == names
    assert len(client.ok("listAll")) == 28
    assert client.ok("listAll", prefix="none/") == []
    assert server.counters.operations["list"] == 5


def test_list_tells_of_each_blob_what_head_tells(client, server):
    client.put("plans/1.pdf")

    (listed,) = client.ok("list", prefix="plans/")["blobs"]

    head = client.ok("head", target="plans/1.pdf")
    assert listed == {name: head[name] for name in ("url", "downloadUrl", "pathname", "size", "uploadedAt", "etag")}


def test_folded_list_shows_folders_once(client, server):
    for folder in ("plans/a/", "plans/b/deep/", "plans/"):
        server.populate(5, folder)

    folded = client.ok("folders", prefix="plans/", limit=2)

    assert sorted(folded["folders"]) == ["plans/a/", "plans/b/"]
    assert folded["blobs"] == [f"plans/{number:07d}.pdf" for number in range(5)]


def test_copy(client, server):
    source = client.put("plans/1.pdf", "a plan")

    copied = client.ok("copy", source=source["url"], pathname="copies/1.pdf", access="public", ifMatch=source["etag"])
    mismatch = client.ask("copy", source="plans/1.pdf", pathname="copies/2.pdf", access="public", ifMatch='"other"')
    missing = client.ask("copy", source="plans/none.pdf", pathname="copies/3.pdf", access="public")

    assert copied["url"] == server.url_of("copies/1.pdf")
    assert content_of(server, "copies/1.pdf") == "a plan"
    assert (mismatch.error, missing.error) == ("BlobPreconditionFailedError", "BlobNotFoundError")
    assert server.count("copies/") == 1


def test_delete_one_by_url_and_one_by_pathname(client, server):
    names = list(server.populate(3, "plans/"))

    client.ok("delete", targets=server.url_of(names[0]))
    client.ok("delete", targets=names[1])

    assert client.ok("listAll") == [names[2]]
    assert server.count_files() == 1


def test_delete_a_thousand_at_once_mixed_and_with_some_missing(client, server):
    names = list(server.populate(998, "plans/"))
    targets = [server.url_of(name) if number % 2 else name for number, name in enumerate(names)]

    client.ok("delete", targets=[*targets, "plans/none.pdf", server.url_of("none.pdf")])

    assert server.count_files() == 0
    assert (server.counters.blobs_named, server.counters.blobs_deleted) == (1000, 998)


def test_delete_with_if_match(client, server):
    etag = client.put("plans/1.pdf")["etag"]

    mismatch = client.ask("delete", targets=["plans/1.pdf"], ifMatch='"other"')

    assert mismatch.error == "BlobPreconditionFailedError"
    assert server.count() == 1
    client.ok("delete", targets=["plans/1.pdf"], ifMatch=etag)
    assert server.count() == 0


def test_head_of_a_missing_blob(client):
    assert client.ask("head", target="plans/none.pdf").error == "BlobNotFoundError"


@pytest.mark.parametrize("call", [("head", {"target": "a"}), ("listAll", {}), ("delete", {"targets": ["a"]})])
def test_wrong_token_and_unknown_store(client, server, call):
    name, options = call
    server.put("a", b"content")

    wrong = client.ask(name, token=f"vercel_blob_rw_{server.store_id}_wrong", **options)
    unknown = client.ask(name, token="vercel_blob_rw_AnotherStore_secret", **options)

    assert (wrong.error, unknown.error) == ("BlobAccessError", "BlobStoreNotFoundError")
    assert server.count() == 1


@pytest.mark.parametrize("status", [502, 503])
def test_service_unavailable(client, server, status):
    server.faults.change({"failing_calls": 1, "failing_status": status})

    assert client.ask("delete", targets=["a"]).error == "BlobServiceNotAvailable"
    assert server.counters.requests == 1


def test_one_unavailable_blob_fails_the_whole_call(client, server):
    names = list(server.populate(10, "plans/"))
    server.faults.unavailable = {names[7]}

    assert client.ask("delete", targets=names).error == "BlobServiceNotAvailable"
    assert server.count() == 10


def test_rate_limited_tells_how_long_to_wait_and_is_not_repeated(client, server):
    server.faults.change({"rate_limited_calls": 1, "retry_after": 7})

    refused = client.ask("delete", targets=["a"], retries=3)

    assert (refused.error, refused.retryAfter) == ("BlobServiceRateLimited", 7)
    assert server.counters.requests == 1


def test_limit_of_blobs_a_minute(client, server):
    server.faults.blobs_per_minute = 10

    client.ok("delete", targets=[f"plans/{number}" for number in range(8)])
    refused = client.ask("delete", targets=["a", "b", "c"])

    assert refused.error == "BlobServiceRateLimited"
    assert 50 <= refused.retryAfter <= 60


def test_error_without_json_is_unknown(client, server):
    server.faults.change({"garbled_calls": 1, "failing_status": 500})

    assert client.ask("head", target="a").error == "BlobUnknownError"


@pytest.mark.parametrize("fault", ["cut_before_calls", "cut_after_calls", "half_body_calls"])
def test_cut_connection_is_an_error(client, server, fault):
    server.put("a", b"content")
    server.faults.change({fault: 1})

    assert client.ask("delete", targets=["a"]).error in {
        "BlobUnknownError",
        "TypeError",
        "SyntaxError",
        "BlobStreamError",
    }
    assert server.count() == (1 if fault == "cut_before_calls" else 0)


@pytest.mark.parametrize("fault", ["failing_calls", "garbled_calls", "cut_before_calls"])
def test_javascript_client_repeats_what_may_pass(javascript_client, server, fault):
    server.faults.change({fault: 1})

    javascript_client.ok("delete", targets=["a"], retries=3)

    assert [call.attempt for call in server.log] == ["0", "1"]


@pytest.mark.parametrize("fault", ["failing_calls", "garbled_calls", "cut_before_calls"])
def test_python_client_repeats_nothing(python_client, server, fault):
    server.faults.change({fault: 1})

    assert python_client.ask("delete", targets=["a"], retries=3).error
    assert server.counters.requests == 1


def test_javascript_client_makes_a_folder(javascript_client, server):
    made = javascript_client.ok("createFolder", pathname="plans")

    assert made == {"url": server.url_of("plans/"), "pathname": "plans/"}
