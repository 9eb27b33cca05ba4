"""The report by mail, against a real SMTP server on this machine."""

import json

import pytest

from tests.mailbox import Mailbox, free_port, mail_server


@pytest.fixture
def mailbox():
    return Mailbox()


@pytest.fixture
def settings(mailbox):
    with mail_server(mailbox) as settings:
        yield settings | {"REPORT_EMAIL_TO": "ops@example.com, boss@example.com"}


def test_a_text_with_the_page(report, settings, mailbox):
    done = report("--email", **settings)

    assert done.returncode == 0, done.stdout
    ((recipients, mail),) = mailbox.mails
    assert recipients == ["ops@example.com", "boss@example.com"]
    assert "deadlines kept: not known" in mail.get_body(("plain",)).get_content()
    (page,) = mail.iter_attachments()
    assert page.get_content_type() == "text/html"
    assert "<h1>Manual-resolution queue</h1>" in page.get_content()


def test_a_dry_run_sends_nothing(report, settings, mailbox):
    done = report("--email", CLEANUP_DRY_RUN="true", **settings)

    assert done.returncode == 0
    assert mailbox.mails == []
    assert "report_would_be_sent" in done.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SMTP_PASSWORD": "s3cret-wrong"}, "refused with code 535"),
        ({"SMTP_PASSWORD": "s3cret-\N{SNOWMAN}"}, "failed (UnicodeEncodeError)"),
        ({"SMTP_STARTTLS": "true"}, "does not offer"),
        ({"REPORT_EMAIL_TO": "gone@example.com"}, "failed (SMTPRecipientsRefused)"),
        ({"REPORT_EMAIL_TO": "gone@example.com,ops@example.com"}, "refused 1 of 2 recipients"),
        ({"SMTP_PORT": None}, "failed (ConnectionRefusedError)"),
    ],
)
def test_a_failing_mail_server_is_named_and_no_secret_is(report, settings, changes, said):
    changes = {name: value or str(free_port()) for name, value in changes.items()}

    done = report("--email", "--verbose", **settings | changes)

    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "report_failed"
    assert said in last["error"]
    for secret in ("s3cret", "example.com", "Traceback"):
        assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SMTP_HOST": "mail.example.com"}, "SMTP_STARTTLS may be false only where"),
        ({"SMTP_HOST": "smtp://mail"}, "SMTP_HOST must be a host's name"),
        ({"SMTP_FROM": "nobody"}, "SMTP_FROM must be"),
        ({"REPORT_EMAIL_TO": "a@example.com\nBcc: b@example.com"}, "REPORT_EMAIL_TO must be"),
        ({"SMTP_PASSWORD": ""}, "set SMTP_USER and SMTP_PASSWORD both, or neither"),
    ],
)
def test_settings_that_are_wrong(report, settings, changes, said):
    done = report("--email", **settings | changes)

    assert done.returncode == 2
    assert said in done.stdout
