"""Do one call of PyPI's vercel-blob: the call comes as JSON on standard input, the outcome goes as JSON to standard output.

The packages are those of the folder given as the argument, none of the project's: run with ``python -I -S``.
"""

import dataclasses
import datetime
import io
import json
import sys

sys.path.insert(0, sys.argv[1])

from vercel.blob import sync as sdk


def put(pathname, body, *, access, streamed=False, addRandomSuffix=False, allowOverwrite=False, contentType=None,
        cacheControlMaxAge=None):
    content = body.encode()
    return sdk.put_blob(
        pathname,
        io.BytesIO(content) if streamed else content,
        access=access,
        content_length=len(content) if streamed else None,
        add_random_suffix=addRandomSuffix,
        allow_overwrite=allowOverwrite,
        content_type=contentType,
        cache_control_max_age=cacheControlMaxAge,
    )


def list_all(prefix=None, limit=None):
    return [blob.pathname for blob in sdk.query_blobs(prefix=prefix, page_size=limit)]


def folders(prefix=None, limit=None):
    entries = list(sdk.query_blob_entries(prefix=prefix, page_size=limit))
    return {
        "blobs": [entry.pathname for entry in entries if isinstance(entry, sdk.ListBlob)],
        "folders": [entry.prefix for entry in entries if isinstance(entry, sdk.BlobPrefix)],
    }


def copy(source, pathname, *, access, ifMatch=None, allowOverwrite=False):
    return sdk.copy_blob(source, pathname, access=access, if_match=ifMatch, allow_overwrite=allowOverwrite)


def delete(targets, ifMatch=None):
    return sdk.delete_blob(targets, if_match=ifMatch)


CALLS = {
    "put": put,
    "head": lambda target: sdk.head_blob(target),
    "list": lambda **options: {"blobs": [value(blob) for blob in sdk.query_blobs(**options)]},
    "listAll": list_all,
    "folders": folders,
    "copy": copy,
    "delete": delete,
}


def value(result):
    if not dataclasses.is_dataclass(result):
        return result
    pairs = ((camel(name), part) for name, part in dataclasses.asdict(result).items())
    return {name: iso(part) if isinstance(part, datetime.datetime) else part for name, part in pairs}


def iso(moment):
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def main():
    asked = json.load(sys.stdin)
    try:
        outcome = {"value": value(CALLS[asked["call"]](**asked["options"]))}
    except sdk.BlobError as error:
        retry_after = getattr(error, "retry_after", None)
        outcome = {"error": type(error).__name__, "message": str(error), "retryAfter": retry_after}
    json.dump(outcome, sys.stdout)


main()
