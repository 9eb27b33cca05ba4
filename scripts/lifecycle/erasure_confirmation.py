"""What follows an erasure: the certificate beside the archives, a last message to the person, and her address is gone.

The message may come twice if the process is killed between sending and forgetting; it never comes not at all.
"""

from __future__ import annotations

from scripts.lifecycle import certificate
from scripts.lifecycle.erasure_requests import TABLE, Request
from scripts.utils import mail
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.logging_utils import get_logger
from scripts.utils.run import Run

_SUBJECT = "Your data has been erased"
_TEXT = """\
You asked us to erase your personal data. That has been done.

Reference: {request}
Asked on:  {requested_at:.10}
Done on:   {fulfilled_at:.10}

What the law obliges us to keep (figures and dates of payments, for the tax office) no longer names you.
Backups, in which your data may still be, are gone by {backups_rolled_over_by:.10}.

This address was used for this message and is now forgotten.
"""


def finish(run: Run, store: ArchiveStore, request: Request) -> bool:
    """Keep the certificate, tell the person, forget the address; safe to repeat.

    Returns:
        Whether she was told.

    Raises:
        ArchiveStoreFailed: The certificate could not be kept; the next run tries again.
    """
    certificate.keep(store, request)
    told = _tell(run, request)
    # Tried again until the deadline; no address is kept for ever on the strength of a mail server that refuses it.
    later = request.email and not told and mail.can_write(run.settings)
    keep_address = bool(later and request.deadline_at and request.deadline_at > run.cutoff)
    run.database.write(
        lambda connection: connection.execute(
            f"UPDATE {TABLE} SET certified_at = coalesce(certified_at, now()),"  # noqa: S608 - constants
            " email = CASE WHEN %(keep)s THEN email END,"
            " confirmed_at = CASE WHEN %(told)s THEN now() ELSE confirmed_at END WHERE id = %(id)s",
            {"keep": keep_address, "told": told, "id": request.id},
        )
    )
    return told


def _tell(run: Run, request: Request) -> bool:
    if request.email is None:
        return False
    try:
        facts = request.certificate or {}
        mail.send_to(run.settings, request.email, subject=_SUBJECT, text=_TEXT.format(**facts))
    except mail.MailNotSent as error:
        get_logger().warning("erasure_not_confirmed", request=str(request.id), error=str(error))
        return False
    return True
