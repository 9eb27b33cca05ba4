"""What follows an erasure: the certificate is stored, a confirmation is sent, and the address is cleared.

If a run is killed after the message was sent and before the address is cleared, the next run sends the message again;
that is better than an address that is kept. Without a mail server, or if the server refuses until the deadline, the
person is not told; this is logged, and the address is cleared all the same.
"""

from __future__ import annotations

from scripts.lifecycle.erasure import certificate
from scripts.lifecycle.erasure.requests import TABLE, Request
from scripts.lifecycle.jobs.run import Run
from scripts.utils import mail
from scripts.utils.addresses import Address, NoAddress
from scripts.utils.archive_store import ArchiveStore
from scripts.utils.logging_utils import get_logger

# Failures in a row before mail is given up for this run: waiting for a server that is down, once for each person, would
# take the whole run.
_FAILURES = 3
_SUBJECT = "Your data has been erased"
_TEXT = """\
You asked us to erase your personal data. That has been done.

Reference: {request}
Asked on:  {requested_at:.10}
Done on:   {fulfilled_at:.10}

What the law obliges us to keep (figures and dates of payments, for the tax office) no longer names you.
Backups, from which your data could still be read, are gone by {backups_rolled_over_by:.10}.

This address was used for this message and is now forgotten.
"""


class Aftercare:
    """Does what follows fulfilled requests, in one run.

    Args:
        run: The run.
        store: Where the archives are.
    """

    def __init__(self, run: Run, store: ArchiveStore) -> None:
        self._run = run
        self._store = store
        self._failures = 0

    def finish(self, request: Request) -> bool:
        """Store the certificate, send the confirmation and clear the address; safe to repeat.

        Returns:
            Whether the confirmation was sent.

        Raises:
            ArchiveStoreFailed: The certificate could not be kept; the next run tries again.
        """
        run = self._run
        certificate.keep(self._store, request)
        told = self._tell(request)
        # The next run tries again until the deadline. After it the address is forgotten, whatever the mail server says.
        later = request.email and not told and mail.can_write(run.settings)
        keep_address = bool(later and request.deadline_at and request.deadline_at > run.cutoff)
        run.writer.write(
            lambda connection: connection.execute(
                f"UPDATE {TABLE} SET certified_at = coalesce(certified_at, now()),"  # noqa: S608 - constants
                " email = CASE WHEN %(keep)s THEN email END,"
                " confirmed_at = CASE WHEN %(told)s THEN now() ELSE confirmed_at END WHERE id = %(id)s",
                {"keep": keep_address, "told": told, "id": request.id},
            )
        )
        return told

    def _tell(self, request: Request) -> bool:
        if request.email is None:
            return False
        try:
            address = Address.parse(request.email)
        except NoAddress as error:
            get_logger().warning("erasure_not_confirmed", request=str(request.id), error=str(error))
            return False
        if self._failures >= _FAILURES:
            reason = "mail failed again and again: it is not tried any more in this run"
            get_logger().warning("erasure_not_confirmed", request=str(request.id), error=reason)
            return False
        try:
            facts = request.certificate or {}
            mail.send_to(self._run.settings, address, subject=_SUBJECT, text=_TEXT.format(**facts))
        except mail.MailNotSent as error:
            self._failures += 1
            get_logger().warning("erasure_not_confirmed", request=str(request.id), error=str(error))
            return False
        self._failures = 0
        return True
