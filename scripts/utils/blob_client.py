"""A client of Vercel Blob's HTTP API, version 12: delete many, list, head, read.

It calls the API by httpx: the official Python client repeats no call, has no rate limit and brings fifteen
distributions (docs/decisions/0008). In tests/contracts/ both official clients check the local server that this client
is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from httpx import codes

from scripts.utils.blob_names import blob_name
from scripts.utils.blob_token import secret_of, store_of
from scripts.utils.logging_utils import get_logger
from scripts.utils.rate_limit import SharedRateLimit
from scripts.utils.retry_utils import CircuitBreaker, retry
from scripts.utils.settings import Settings
from scripts.utils.tracing import span, traceparent

API_VERSION = "12"
PAGE = 1000
ATTEMPTS = 4
RETRY_SECONDS = 300.0
LONGEST_RETRY_AFTER = 60.0
# Decide by the error code: the store sends one code with different HTTP statuses.
_RETRYABLE = frozenset({"service_unavailable", "internal_server_error", "unknown_error", "rate_limited", "no_answer"})
_FATAL = frozenset({"forbidden", "store_not_found", "store_suspended", "not_allowed"})


class BlobCallFailed(Exception):
    """The store refused a call or gave no answer. After no answer the call may or may not have been carried out.

    Args:
        code: The store's error code, or ``no_answer``.
        retry_after: Seconds to wait, as the store asked; None: it did not ask.
    """

    def __init__(self, code: str, retry_after: float | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in _RETRYABLE

    @property
    def fatal(self) -> bool:
        """Whether every further call would fail too, because token or store are wrong."""
        return self.code in _FATAL


@dataclass(frozen=True)
class ListedBlob:
    """A blob, as the listing has it."""

    pathname: str
    uploaded_at: datetime


@dataclass(frozen=True)
class Page:
    """A page of the listing; ``cursor`` is None on the last page."""

    blobs: list[ListedBlob]
    cursor: str | None


class BlobClient:
    """The store that the token belongs to.

    Args:
        settings: Token, URLs and limits.
        breaker: Counts every attempt of ``delete``, ``page`` and ``exists``, unless ``counted`` is false.
        limit: Counts the blobs of every delete.
        pause: Waits for the given seconds; raises an exception to give up.

    Raises:
        Misconfigured: There is no token.
    """

    def __init__(
        self, settings: Settings, *, breaker: CircuitBreaker, limit: SharedRateLimit, pause: Callable[[float], None]
    ) -> None:
        self.store = store_of(settings).lower()
        """The store's id, as the hosts of its URLs have it: in small letters."""
        self._breaker = breaker
        self._limit = limit
        self._pause = pause
        self._delivery = (settings.vercel_blob_delivery_url or "").rstrip("/")
        self._http = httpx.Client(
            base_url=settings.vercel_blob_api_url.rstrip("/"),
            headers={
                "authorization": f"Bearer {secret_of(settings)}",
                "x-api-version": API_VERSION,
            },
            timeout=httpx.Timeout(settings.blob_timeout_seconds, connect=min(5.0, settings.blob_timeout_seconds)),
            limits=httpx.Limits(max_connections=settings.blob_concurrency, max_keepalive_connections=None),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def pathname(self, name: str) -> str | None:
        """Return the canonical pathname of a row's value; None: it is no name of a blob in this store."""
        found = blob_name(name)
        return found.pathname if found.store in ("", self.store) else None

    def delete(self, names: Sequence[str], *, attempts: int = ATTEMPTS, counted: bool = True) -> None:
        """Delete blobs by pathname; a blob that is gone already counts as deleted.

        Args:
            names: Pathnames, at most as many as the limit lets through a minute.
            attempts: Most calls to make.
            counted: Whether the circuit breaker counts failures.

        Raises:
            BlobCallFailed: The blobs may or may not be gone.
            CircuitOpen: Too many of the last calls failed; this one was not made.
        """

        def call() -> None:
            self._limit.acquire(len(names), self._pause)
            self._request("POST", "/delete", json={"urls": list(names)})

        self._repeat(call if not counted else lambda: self._breaker.call(call), attempts)

    def page(self, prefix: str, cursor: str | None) -> Page:
        """List blobs, 1,000 a call.

        Raises:
            BlobCallFailed: The store gave no page.
        """
        query = {"prefix": prefix, "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
        body = self._repeat(lambda: self._breaker.call(lambda: self._request("GET", "", params=query)), ATTEMPTS)
        try:
            blobs = [ListedBlob(blob["pathname"], datetime.fromisoformat(blob["uploadedAt"])) for blob in body["blobs"]]
            return Page(blobs, body.get("cursor") if body["hasMore"] else None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BlobCallFailed("unknown_error") from None

    def exists(self, name: str) -> bool:
        """Tell whether a blob is there.

        Raises:
            BlobCallFailed: The store did not say.
        """
        try:
            self._head(name)
        except BlobCallFailed as error:
            # By the error code: a 404 from a proxy or a wrong address says nothing about the blob.
            if error.code == "not_found":
                return False
            raise
        return True

    def read(self, name: str) -> Iterator[bytes]:
        """Read a blob in pieces, from the URL that the store gives for it.

        Raises:
            BlobCallFailed: The blob is not there, or its content could not be read.
        """
        where = self._head(name)
        url = where.get("url") if isinstance(where, dict) else None
        # The request carries the token, so it goes to the store alone.
        if not isinstance(url, str) or self.pathname(url) is None:
            raise BlobCallFailed("foreign_store")
        if self._delivery:
            url = self._delivery + urlsplit(url).path
        try:
            with self._http.stream("GET", url) as answer:
                if not answer.is_success:
                    raise BlobCallFailed("not_found" if answer.status_code == codes.NOT_FOUND else "unknown_error")
                yield from answer.iter_bytes()
        except httpx.HTTPError:
            raise BlobCallFailed("no_answer") from None

    def _head(self, name: str) -> Any:
        return self._repeat(
            lambda: self._breaker.call(lambda: self._request("GET", "", params={"url": name})), ATTEMPTS
        )

    def _repeat(self, call: Callable[[], Any], attempts: int) -> Any:
        return retry(
            call,
            on=lambda error: isinstance(error, BlobCallFailed) and error.retryable,
            attempts=attempts,
            seconds=RETRY_SECONDS,
            longest_wait=5.0,
            before_wait=_tell,
            asked_wait=lambda error: error.retry_after if isinstance(error, BlobCallFailed) else None,
            sleep=self._pause,
        )

    def _request(self, method: str, path: str, **content: Any) -> Any:
        with span("http.client", f"{method} Vercel Blob{path}") as facts:
            trace = traceparent()
            try:
                answer = self._http.request(method, path, headers={"traceparent": trace} if trace else None, **content)
            except httpx.HTTPError:
                raise BlobCallFailed("no_answer") from None  # the error's text may quote the URL
            facts["http.response.status_code"] = answer.status_code
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.is_success:
            return body
        error = body.get("error") if isinstance(body, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        raise BlobCallFailed(code if isinstance(code, str) else "unknown_error", _retry_after(answer))


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return min(max(float(answer.headers["retry-after"]), 0.0), LONGEST_RETRY_AFTER)
    except (KeyError, ValueError):
        return None


def _tell(attempt: int, error: BaseException) -> None:
    get_logger().warning("blob_call_retry", attempt=attempt, error=str(error))
