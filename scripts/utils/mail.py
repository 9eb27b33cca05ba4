"""Sends mail through the SMTP server of the settings. No error holds a secret, an address or the server's text."""

from __future__ import annotations

import smtplib  # noqa: TID251 - its one home
import ssl
from contextlib import suppress
from email.headerregistry import Address as Mailbox
from email.message import EmailMessage
from email.policy import SMTP

from scripts.utils.addresses import Address
from scripts.utils.errors import Misconfigured, OpsError
from scripts.utils.settings import Settings

_SECONDS = 20.0


class MailNotSent(OpsError):
    """The mail server did not take the mail for every recipient."""

    stop_reason = "mail_not_sent"


def require_mail_settings(settings: Settings) -> None:
    """Check the mail settings before the work, so that its result can be mailed.

    Raises:
        Misconfigured: Names every variable that is missing.
    """
    needed = {
        "SMTP_HOST": settings.smtp_host,
        "SMTP_FROM": settings.smtp_from,
        "REPORT_EMAIL_TO": settings.report_email_to,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise Misconfigured(f"--email needs {', '.join(missing)}: not set")
    if bool(settings.smtp_user) != bool(settings.smtp_password):
        raise Misconfigured("set SMTP_USER and SMTP_PASSWORD both, or neither")


def send(settings: Settings, *, subject: str, text: str, attachment: tuple[str, str | bytes]) -> int:
    """Send a text with one HTML page or PDF attached.

    Args:
        settings: The server, sender and recipients.
        subject: The mail's subject.
        text: Its body.
        attachment: The file's name and content: a text is a page, bytes are a PDF.

    Returns:
        How many recipients the server took it for.

    Raises:
        MailNotSent: Names the server and what kind of failure it was.
    """
    require_mail_settings(settings)
    recipients = [address.strip() for address in (settings.report_email_to or "").split(",")]
    message = _message(settings, subject, text, recipients)
    name, content = attachment
    if isinstance(content, str):
        message.add_attachment(content, subtype="html", filename=name)
    else:
        message.add_attachment(content, maintype="application", subtype="pdf", filename=name)
    return _send(settings, message, recipients)


def send_to(settings: Settings, recipient: Address, *, subject: str, text: str) -> None:
    """Send a text to one person; the address is not kept.

    Args:
        settings: Server and sender.
        recipient: The person's address.
        subject: The mail's subject.
        text: The mail's text.

    Raises:
        MailNotSent: No server is set, or it did not take the mail; the error does not hold the address.
    """
    if not can_write(settings):
        raise MailNotSent("SMTP_HOST or SMTP_FROM is not set")
    recipients = [recipient.raw]
    _send(settings, _message(settings, subject, text, recipients), recipients)


def can_write(settings: Settings) -> bool:
    """Tell whether there is a server and a sender."""
    return bool(settings.smtp_host and settings.smtp_from)


def _message(settings: Settings, subject: str, text: str, recipients: list[str]) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["Subject"], message["From"] = subject, settings.smtp_from
    # One object for each recipient: no text of theirs is ever read as a header.
    message["To"] = [_mailbox(recipient) for recipient in recipients]
    message.set_content(text)
    return message


def _mailbox(recipient: str) -> Mailbox:
    local, _, domain = recipient.rpartition("@")
    return Mailbox(username=local[1:-1] if local.startswith('"') else local, domain=domain)


def _send(settings: Settings, message: EmailMessage, recipients: list[str]) -> int:
    where = f"mail server {settings.smtp_host}:{settings.smtp_port}"
    try:
        refused = _deliver(settings, message, recipients)
    except smtplib.SMTPNotSupportedError:
        raise MailNotSent(f"{where} does not offer what the settings ask for: STARTTLS, or a login") from None
    except smtplib.SMTPResponseException as error:
        # The server's text may quote an address.
        raise MailNotSent(f"{where} refused with code {error.smtp_code} ({type(error).__name__})") from None
    except (OSError, smtplib.SMTPException, UnicodeError, ValueError) as error:
        raise MailNotSent(f"{where} failed ({type(error).__name__}): nothing was sent") from None
    if refused:
        raise MailNotSent(f"{where} refused {len(refused)} of {len(recipients)} recipients")
    return len(recipients)


def _deliver(settings: Settings, message: EmailMessage, recipients: list[str]) -> dict[str, tuple[int, bytes]]:
    server = smtplib.SMTP(settings.smtp_host or "", settings.smtp_port, timeout=_SECONDS)
    try:
        if settings.smtp_starttls:
            server.starttls(context=ssl.create_default_context())
        if settings.smtp_user and settings.smtp_password:
            server.login(settings.smtp_user, settings.smtp_password.get_secret_value())
        refused = server.send_message(message, to_addrs=recipients)
    except BaseException:
        server.close()
        raise
    # The server has taken the mail: an error from here on must not make the caller send it again.
    with suppress(OSError, smtplib.SMTPException):
        server.quit()
    return refused
