"""Every command that the documents tell people to type, really typed: in a copy of the checkout, against a local stack.

In the order of the document, each in the shell that the ones before it left behind. What cannot be carried out here is
listed with its reason; a command that fails and is not listed fails the test.
"""

import re
import shutil

import pytest

from tests.project import commands as documented
from tests.project.checkout import Shell
from tests.project.conftest import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

# What is not carried out, and why.
NOT_RUN = {
    r"make (demo|test|soak|bench\S*)\b": "takes minutes; `make demo` and the tests are run by themselves",
    r"pip install": "the copy shares its virtual environment with the checkout: make has installed the same into it",
    r"\S*python scripts/manual-resolution/process_queue\.py( --item-type \w+)?$": (
        "wants a person at a terminal: tests/manual-resolution/test_session.py is one"
    ),
    r".*report_metrics\.py --email": "wants a mail server: tests/manual-resolution/test_report_mail.py has one",
    r".*generate_compliance_report\.py --email": "wants a mail server: tests/retention/compliance has one",
}
# What ends otherwise than with 0, and is meant to.
ALSO = {
    r".*cleanup_\w+\.py|.*enforce_retention_policies\.py|.*archive_before_delete\.py": {4},  # new on the queue
    r"ps aux": {1},  # nothing runs
    r".*check_cleanup_health\.py": {1, 4},  # it finds what a trial's machine lacks
    r".*monitor_\w+\.py": {0},
    r".*explain_deletion\.py --record -": {1},  # nothing has that key
    r".*check --policy-file": {1},  # of the sample's tables not all have a policy
}
JOBS_URL, OWNER_URL = "DATABASE_URL", "MIGRATION_DATABASE_URL"
QUIZ = "select id from public.quiz_responses order by created_at limit 1"
ITEM = "select id from ops.manual_resolution_queue where status = '{}' order by item_type, first_seen_at limit 1"
# What a person would have at hand in place of a name in capitals: by the command, then by the name.
AT_HAND = [
    (r"process_queue\.py reopen", "THE_ID", ITEM.format("resolved")),
    (r"process_queue\.py undo", "THE_ID", ITEM.format("deferred")),
    (r"process_queue\.py release", "THE_ID", ITEM.format("assigned")),
    (r"process_queue\.py (resolve|defer|escalate)", "THE_ID", ITEM.format("pending' and item_type = 'pdf_deletion_failed")),
    (r"process_queue\.py", "THE_ID", ITEM.format("pending")),
    (r"explain_deletion", "THE_ID", "select resource_id from ops.audit_log where resource_type = 'public.quiz_responses' limit 1"),
    (r"public\.email_blacklist", "THE_ID", "select id from public.email_blacklist limit 1"),
    (r"restore .*--id", "THE_ID", "select resource_id from ops.audit_log where action = 'archive_then_delete' limit 1"),
    (r"resource_id = ", "THE_ID", "select resource_id from ops.audit_log limit 1"),
    (r".", "THE_ID", QUIZ),
    (r".", "THE_ARCHIVE", "select id from ops.archives where status = 'sealed' limit 1"),
    (r".", "THE_HOLD", "select id from ops.legal_holds where released_at is null limit 1"),
    (r"identify", "THE_REQUEST", "select id from ops.erasure_requests where identity_verified_at is null limit 1"),
    (r".", "THE_REQUEST", "select id from ops.erasure_requests order by closed_at nulls last limit 1"),
    (r".", "THE_RUN", "select run_id from ops.audit_batches where run_id is not null order by seq limit 1"),
    (r".", "FROM_THE_LOG", "select correlation_id from ops.job_runs where records_processed > 0 order by started_at desc limit 1"),
    (r".", "THE_JOB", "select 'cleanup_quiz_responses'"),
]  # fmt: skip


class Stage(Shell):
    """A shell with everything at hand that the runbooks speak of."""

    def ask(self, query, url=OWNER_URL):
        """Return one value from the database."""
        return self.run(f'psql "${url}" -Atc "{query}"').strip()

    def prepare(self):
        """Start the stack, and be an operator in it with everything at hand that the runbooks speak of."""
        self.run("make stack")
        self.run('eval "$(.venv/bin/python backend/local_stack.py exports)"')
        archives = self.folder / "archives"
        archives.mkdir(exist_ok=True)
        self.env |= {
            "OPERATOR": "olga",
            "ARCHIVE_URL": archives.as_uri(),
            "ARCHIVE_MASTER_KEY": f"m1:{'ab' * 32}",
            "SUPPRESSION_KEY": f"s1:{'cd' * 32}",
            "PUSHGATEWAY_URL": "",
        }
        # Something that was done, something that waits, something that was archived, and a copy from before.
        self.ask("update public.payment_transactions set paddle_created_at = paddle_created_at - interval '8 years' where id in"
                 " (select id from public.payment_transactions limit 20)")  # fmt: skip
        # The person who stands as an example, so that her request is fulfilled.
        self.ask("insert into public.users (id, email, normalized_email, created_at, updated_at) values"
                 " ('someone', 'someone@example.com', 'someone@example.com', now(), now())")  # fmt: skip
        branch = self.env[OWNER_URL].rpartition("/")[0] + "/branch"
        self.run(f'psql "{self.env[OWNER_URL].rpartition("/")[0]}/postgres" -c "create database branch template app"')
        self.run(".venv/bin/python scripts/cleanup/cleanup_quiz_responses.py --limit 12000", {0, 4})
        self.ask("insert into ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, reason,"
                 " raised_by, first_seen_at, deadline_at) select 'pdf_deletion_failed', 'public.meal_plans', id,"
                 " 'medium', 'for the trial', 'system:cleanup_pdfs', now() - interval '3 days', now() + interval '1 day'"
                 " from public.meal_plans where pdf_blob_path <> '' order by created_at limit 4")  # fmt: skip
        self.env |= {"BRANCH_URL": branch, "HEAD": self._head(), "OLDER_HEAD": self._head()}

    def _head(self):
        return self.ask("select seq || ':' || encode(seal, 'hex') from ops.audit_head")

    def filled(self, text):
        """Put what a person has at hand in place of the names in capitals."""
        for name in documented.PLACEHOLDERS:
            if re.search(rf"\b{name}\b", text):
                query = next((query for what, of, query in AT_HAND if of == name and re.search(what, text)), None)
                assert query, f"{name} stands for nothing in: {text}"
                text = re.sub(rf"\b{name}\b", self.ask(query), text)
        return text


DOCUMENTS = [path for path in documented.DOCUMENTS if path.name != "CONTRIBUTING.md"]  # test_contributing.py has it


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_the_document_does_what_it_says(document, checkout):
    shell = Stage(checkout)
    typed = [command for command in documented.commands(document) if command.whole]
    if not typed:
        return
    if not any(command.text.startswith("make stack") for command in typed):
        shell.prepare()
    lacking = []
    for command in typed:
        if any(re.match(pattern, command.text) for pattern in NOT_RUN):
            continue
        if tool := next((each for each in documented.programs(command) if _is_missing(each)), None):
            lacking.append(f"{command}: {tool} is not installed")
            continue
        if "postgresql://…" in command.text:  # the owner's URL: of a stack that runs
            shell.prepare()
            continue
        wanted = {0}.union(*(codes for pattern, codes in ALSO.items() if re.match(pattern, command.text)))
        shell.run(shell.filled(command.text), wanted)
    if lacking:
        print("\n".join(lacking))  # noqa: T201 - one loud line each


def _is_missing(tool):
    return tool in {"psql", "redis-cli"} and not shutil.which(tool)


def test_every_exception_is_still_needed():
    texts = [command.text for document in documented.DOCUMENTS for command in documented.commands(document)]
    unused = [pattern for pattern in [*NOT_RUN, *ALSO] if not any(re.match(pattern, text) for text in texts)]
    assert unused == []
