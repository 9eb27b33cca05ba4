"""Archives are read again for the report; and the report by mail, against a real SMTP server on this machine."""

from __future__ import annotations

import io
import socket
from email import message_from_bytes, policy

import pypdf
import pytest
from aiosmtpd.controller import Controller

from tests.lifecycle.compliance.history import midnight

TODAY = (midnight(1), midnight(-1))


def test_archives_are_read_again_and_what_is_not_read_is_not_whole(ask, payments, run_archives, folder):
    payments.fill(40)
    assert run_archives().code == 0

    report = ask(period=TODAY).report
    (inventory,) = report["sections"]["archives"]["tables"]["inventory"]
    assert (inventory["objects"], inventory["rows"], inventory["sealed_rows"]) == (1, 40, 40)
    figures = {row["figure"]: row["value"] for row in report["sections"]["archives"]["tables"]["verification"]}
    assert (figures["read and found whole"], figures["rows in these"], figures["not read"]) == (1, 40, 0)
    went = {row["rule"]: row["records"] for row in report["sections"]["enforcement"]["tables"]["by_policy"]}
    assert went == {"payment_transactions/expired": 40}

    unread = ask(period=TODAY, ARCHIVE_URL="")
    assert unread.code == 0
    assert any("archives: 1 of 1 were not read (ARCHIVE_URL is not set" in each for each in unread.report["uncounted"])

    (stranger := folder / "stranger.archive").write_bytes(b"?")
    assert "1 objects lie in the archives' store" in ask(period=TODAY).report["statements"][0]["text"]
    stranger.unlink()

    (archive,) = folder.rglob("*.archive")
    archive.write_bytes(archive.read_bytes()[:-9])
    broken = ask(period=TODAY)
    assert (broken.code, broken.report["verdict"]) == (1, "broken")
    assert archive.name in broken.report["statements"][0]["text"]


class Mailbox:
    """Takes every mail."""

    def __init__(self):
        self.mails = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - the library's name
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"


@pytest.fixture
def mailbox():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    box = Mailbox()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    box.settings = {
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(port),
        "SMTP_STARTTLS": "false",
        "SMTP_FROM": "reports@example.com",
        "REPORT_EMAIL_TO": "officer@example.com",
    }
    yield box
    server.stop()


def test_by_mail_it_is_a_pdf_with_the_first_page_as_text(ask, database, mailbox):
    database.superuser().execute("REVOKE SELECT ON ops.legal_holds FROM lifecycle_jobs")
    assert ask("--email", CLEANUP_DRY_RUN="true", **mailbox.settings).code == 0
    assert mailbox.mails == []

    asked = ask("--email", **mailbox.settings)
    assert asked.code == 0, asked.closing
    (mail,) = mailbox.mails
    assert mail["Subject"].startswith("Compliance report, data-lifecycle, ")
    assert "not counted: " in mail.get_body().get_content()
    (attached,) = mail.iter_attachments()
    assert attached.get_content_type() == "application/pdf"
    assert (
        "Data retention compliance report"
        in pypdf.PdfReader(io.BytesIO(attached.get_content())).pages[0].extract_text()
    )


def test_a_person_at_a_terminal_sees_the_first_page_and_the_tables(ask):
    asked = ask("--log-format", "console")
    assert asked.code == 0
    assert "punctuality of every policy" in " ".join(asked.err.split())
    assert "enforcement: Records that went, by day (UTC) and policy" in " ".join(asked.err.split())


@pytest.mark.parametrize("moment", ["-infinity", "4713-01-01 BC", "0001-01-01 00:00"])
def test_one_archived_row_with_an_odd_date_does_not_silence_its_section(ask, payments, run_archives, moment):
    payments.fill(5)
    payments.link.execute(
        "UPDATE payment_transactions SET paddle_created_at = %s WHERE id = %s", (moment, payments.id(1))
    )
    assert run_archives().code == 0

    asked = ask(period=TODAY)
    (inventory,) = asked.report["sections"]["archives"]["tables"]["inventory"]
    assert (inventory["objects"], inventory["rows"]) == (1, 5)
    assert inventory["oldest"] == "0001-01-01T00:00:00Z"
    assert not [each for each in asked.report["uncounted"] if each.lower().startswith("archives")]


@pytest.mark.parametrize("column", ["oldest", "newest", "sealed_at", "created_at"])
@pytest.mark.parametrize("moment", ["-infinity", "infinity", "12000-01-01", "0044-03-15 BC"])
def test_one_odd_line_of_the_catalogue_does_not_silence_the_others(ask, payments, run_archives, column, moment):
    payments.fill(10)
    assert run_archives("--batch-size", "5").code == 0
    payments.link.execute(
        f"UPDATE ops.archives SET {column} = %s WHERE id = %s", (moment, payments.catalogue("id")[0][0])
    )

    asked = ask(period=TODAY)

    assert asked.code == 0
    (inventory,) = asked.report["sections"]["archives"]["tables"]["inventory"]
    assert (inventory["objects"], inventory["rows"]) == (2, 10)
    figures = {row["figure"]: row["value"] for row in asked.report["sections"]["archives"]["tables"]["verification"]}
    assert figures["archives in the catalogue"] == 2
