"""Checks that Vercel Blob accepts the token and Sentry the key, and that the archives' keys open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import httpx

from scripts.lifecycle.blobs.blobs import client_for
from scripts.lifecycle.health.findings import Context, Finding, failed, passed, warned
from scripts.utils.blob_client import BlobCallFailed
from scripts.utils.retry_utils import CircuitOpen

SENTRY_SECONDS = 5.0
_REFUSED = (401, 403, 404)


def blob(context: Context) -> Iterator[Finding]:
    """List one page of the blobs under each policy's prefix."""
    prefixes = {name: policy.blob.prefix for name, policy in context.run.policies.policies.items() if policy.blob}
    if not prefixes:
        yield passed("Vercel Blob", "no policy needs it")
        return
    if context.run.settings.blob_read_write_token is None:
        yield failed(
            "BLOB_READ_WRITE_TOKEN",
            f"is not set, and {', '.join(prefixes)} needs it",
            "set the store's read-write token",
        )
        return
    with closing(client_for(context.run)) as client:
        for name, prefix in prefixes.items():
            began = time.perf_counter()
            try:
                page = client.page(prefix, None)
            except CircuitOpen:
                yield failed("Vercel Blob", "fails too often", "look at its status page; run again later")
                return
            except BlobCallFailed as error:
                yield _blob_failed(error)
                return
            seconds = time.perf_counter() - began
            more = "at least " if page.cursor else ""
            yield passed("Vercel Blob", f"{name}: {more}{len(page.blobs)} blobs, listed in {1000 * seconds:.0f} ms")


def _blob_failed(error: BlobCallFailed) -> Finding:
    if error.fatal:
        return failed(
            "BLOB_READ_WRITE_TOKEN",
            f"the store refuses it ({error.code})",
            "set the token that the store's page at Vercel shows; a rotated one ends at once",
        )
    return failed("Vercel Blob", f"gives no answer ({error.code})", "check VERCEL_BLOB_API_URL, network, status page")


def sentry(context: Context) -> Iterator[Finding]:
    """Send Sentry an empty envelope."""
    dsn = context.run.settings.sentry_dsn
    if dsn is None:
        yield passed("SENTRY_DSN", "is not set: errors, traces and check-ins go nowhere but the log")
        return
    if context.run.options.dry_run:
        yield passed("SENTRY_DSN", "is well-formed; not tried: CLEANUP_DRY_RUN is set")
        return
    parts = urlsplit(dsn.get_secret_value())
    path, _, project = parts.path.rpartition("/")
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}/api/{project}/envelope/"
    auth = f"Sentry sentry_version=7, sentry_client=data-lifecycle/1.0, sentry_key={parts.username}"
    try:
        answer = httpx.post(url, content=b"{}\n", headers={"x-sentry-auth": auth}, timeout=SENTRY_SECONDS)
    except httpx.HTTPError as error:
        yield warned(
            "SENTRY_DSN",
            f"its host does not answer ({type(error).__name__}): errors and check-ins are lost, jobs are not",
            "check the host in SENTRY_DSN and the network",
        )
        return
    code = answer.status_code
    if code in _REFUSED:
        yield failed("SENTRY_DSN", f"its host refuses the key or the project ({code})", "copy the DSN from the project")
    elif not answer.is_success:
        yield warned("SENTRY_DSN", f"its host answers {code}", "look at its status page and at the project's quota")
    else:
        yield passed("SENTRY_DSN", "its host takes envelopes")


def archives(context: Context) -> Iterator[Finding]:
    """Check that the archives' keys can be opened and that no archive is unfinished."""
    from scripts.lifecycle.archives import (
        health as archive_health,  # imported late: it takes a tenth of a second
    )

    found = archive_health.warnings(context.run.database, context.run.settings)
    for problem in found:
        yield failed("keys" if "key" in problem else "catalogue", problem, "see scripts/retention/README.md, archives")
    if not found:
        yield passed("archives", "every key opens, and nothing is unfinished")
