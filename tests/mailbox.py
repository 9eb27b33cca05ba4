"""A real SMTP server on this machine, and what it was sent."""

import socket
from contextlib import contextmanager
from email import message_from_bytes, policy

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

PASSWORD = "s3cret-of-the-mail-server"


class Mailbox:
    """Takes mail, but for one recipient."""

    def __init__(self):
        self.mails = []

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - the library's name
        if address.startswith("gone@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - the library's name
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def login(server, session, envelope, mechanism, data):
    # Not handled: the server itself then answers a wrong login with 535.
    right = data.login == b"reports" and data.password == PASSWORD.encode()
    return AuthResult(success=right, handled=False)


@contextmanager
def mail_server(mailbox):
    """Serve, and give the settings to write to it."""
    port = free_port()
    server = Controller(mailbox, hostname="127.0.0.1", port=port, authenticator=login, auth_require_tls=False)
    server.start()
    try:
        yield {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(port),
            "SMTP_STARTTLS": "false",
            "SMTP_USER": "reports",
            "SMTP_PASSWORD": PASSWORD,
            "SMTP_FROM": "reports@example.com",
        }
    finally:
        server.stop()
