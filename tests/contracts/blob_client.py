"""Make calls with PyPI's vercel-blob: each comes as a line of JSON on standard input, its outcome goes to standard output.

Runs in a virtual environment of its own, so that its packages are none of the project's.
"""

import dataclasses
import datetime as dt
import io
import json
import os
import re
import sys

from vercel.api import session
from vercel.blob import sync as sdk


def put(pathname, body, *, streamed=False, **options):
    content = body.encode()
    if streamed:
        return sdk.put_blob(pathname, io.BytesIO(content), content_length=len(content), **options)
    return sdk.put_blob(pathname, content, **options)


def head(target):
    return sdk.head_blob(target)


def list_page(prefix):
    return {"blobs": [as_json(blob) for blob in sdk.query_blobs(prefix=prefix)]}


def list_all(prefix=None, limit=None):
    return [blob.pathname for blob in sdk.query_blobs(prefix=prefix, page_size=limit)]


def folders(prefix=None, limit=None):
    entries = list(sdk.query_blob_entries(prefix=prefix, page_size=limit))
    return {
        "blobs": [entry.pathname for entry in entries if isinstance(entry, sdk.ListBlob)],
        "folders": [entry.prefix for entry in entries if isinstance(entry, sdk.BlobPrefix)],
    }


def delete(targets, **options):
    return sdk.delete_blob(targets, **options)


CALLS = {
    "put": put,
    "head": head,
    "list": list_page,
    "listAll": list_all,
    "folders": folders,
    "copy": sdk.copy_blob,
    "delete": delete,
}


def as_json(result):
    """Write a result as the JavaScript client does."""
    if isinstance(result, dt.datetime):
        return result.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if dataclasses.is_dataclass(result):
        return {camel(name): as_json(part) for name, part in dataclasses.asdict(result).items()}
    return result


def camel(name):
    return re.sub(r"_(.)", lambda found: found[1].upper(), name)


def snake(name):
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)


def outcome(asked):
    os.environ.update(asked["environment"])
    options = {snake(name): option for name, option in asked["options"].items()}
    try:
        with session():  # reads the settings anew
            return {"value": as_json(CALLS[asked["call"]](**options))}
    except sdk.BlobError as error:
        return {"error": type(error).__name__, "message": str(error), "retryAfter": getattr(error, "retry_after", None)}


for line in sys.stdin:
    sys.stdout.write(json.dumps(outcome(json.loads(line))) + "\n")
    sys.stdout.flush()
