"""What the policy file may say of an erasure, and tables that it was never written for."""

import pytest
import yaml

from backend import migrate
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, parse_policies
from scripts.utils.errors import Misconfigured
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON


@pytest.fixture
def steps(tmp_path, database):
    """A function that writes the default file with other steps, gives the rights, and returns the flag for it."""

    def write(*, grant=True, **changes):
        document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
        document["erasure"] |= changes
        path = tmp_path / "policies.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        if grant:
            migrate.grant(database.superuser_url, path)
        return "--policy-file", str(path)

    return write


def step(table, **changes):
    return {"table": table, "key": "id", "person": None, "action": "delete", "ground": "personal data"} | changes


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("users", None, "no step is about public.users"),
        ("quiz_responses", None, "no step is about public.quiz_responses, where policy quiz_responses knows a person"),
        ("quiz_responses", {"person": "email"}, "differ about the person column"),
        ("email_blacklist", {"key": "reason"}, "differ from another step of public.email_blacklist"),
        ("users", {"action": "anonymize"}, "action anonymize and the section columns belong together"),
        ("users", {"columns": {"email": None}}, "action anonymize and the section columns belong together"),
        ("payment_transactions", {"columns": {"id": None}}, "must not name the key"),
        ("payment_transactions", {"columns": {"amount": "erase"}}, "is not a treatment"),
        ("users", {"action": "retain"}, "must be 'delete' or 'anonymize'"),
        ("users", {"ground": ""}, "at least 1 character"),
        ("users", {"table": "ops.audit_batches"}, "is proof"),
    ],
)
def test_a_mistake_is_named_before_any_connection(name, changes, says):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    if changes is None:
        del document["erasure"][name]
        if name == "users":
            document["policies"]["users"] = document["policies"]["magic_link_tokens"] | {"table": "public.users"}
    else:
        document["erasure"][name] |= changes
    with pytest.raises(Misconfigured) as refused:
        parse_policies(yaml.safe_dump(document), "p.yaml")
    assert says in str(refused.value)


def test_a_file_without_the_section_cannot_erase(world, person, asked, erase, tmp_path):
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    del document["erasure"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    done = erase("--policy-file", "p.yaml")
    assert (done.code, "says nothing about erasure" in done.closing["error"]) == (2, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE users RENAME normalized_email TO address", "column public.users.normalized_email does not exist"),
        ("ALTER TABLE magic_link_tokens RENAME TO tokens", "table public.magic_link_tokens does not exist"),
        ("REVOKE DELETE ON users FROM lifecycle_jobs", "no right to DELETE on public.users"),
        ("REVOKE UPDATE (customer_email) ON payment_transactions FROM lifecycle_jobs", "no right to UPDATE"),
        ("ALTER TABLE email_blacklist ALTER normalized_email TYPE varchar(60)", "holds 60 characters"),
        ("ALTER TABLE users ENABLE ROW LEVEL SECURITY", "row-level security on public.users"),
        ("CREATE RULE keep AS ON DELETE TO users DO INSTEAD NOTHING", "rule keep on public.users rewrites DELETE"),
    ],
)
def test_what_the_database_contradicts_stops_everything_before_the_first_row(world, asked, erase, change, says):
    world.payment(PERSON, address="a@example.com", years=1)
    asked()
    world.link.execute(change)
    done = erase()
    assert (done.code, says in done.closing["error"]) == (1, True), done.closing
    assert len(world.rows("payment_transactions", "id", f"normalized_email = '{PERSON}'")) == 1


def test_a_step_that_could_find_nobody_is_refused(world, asked, erase, steps):
    world.link.execute("CREATE TABLE public.notes (id bigint PRIMARY KEY, words text)")
    asked()
    done = erase(*steps(notes=step("public.notes")))
    assert (done.code, "erasure.notes: nothing says whose rows public.notes has" in done.closing["error"]) == (1, True)


def test_tables_of_another_shape_need_yaml_alone(world, person, asked, erase, steps):
    """Found by foreign keys of one column and of two, over two steps; every treatment; a table with a key of numbers."""
    world.link.execute(
        """
        CREATE TABLE public.visits (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant int NOT NULL,
            number int NOT NULL, visitor varchar(36) REFERENCES users ON DELETE CASCADE, ip inet, note text,
            seen timestamptz, UNIQUE (tenant, number));
        CREATE TABLE public.clicks (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant int, number int, what text,
            FOREIGN KEY (tenant, number) REFERENCES public.visits (tenant, number));
        CREATE INDEX ON public.visits (visitor); CREATE INDEX ON public.clicks (tenant, number);
        """
    )
    world.link.execute(
        "INSERT INTO visits (tenant, number, visitor, ip, note) VALUES (1, 1, %s, '192.0.2.77', %s),"
        " (1, 2, (SELECT id FROM users WHERE id <> %s LIMIT 1), '192.0.2.78', 'hers')",
        (person["users"], NAME, person["users"]),
    )
    world.link.execute(
        "INSERT INTO clicks (tenant, number, what) SELECT 1, 1 + n %% 2, CASE n %% 2 WHEN 0 THEN %s ELSE 'x' END"
        " FROM generate_series(0, 5) n",
        (NAME,),
    )
    flags = steps(
        clicks=step("public.clicks"),
        visits=step(
            "public.visits",
            action="anonymize",
            columns={"visitor": None, "ip": "truncate_ip", "note": {"constant": "removed"}},
        ),
    )
    asked()
    done = erase(*flags)
    assert done.code == 0, done.output
    assert world.where() == set()
    assert world.rows("visits", "number, visitor IS NULL, ip::text, note") == [
        (1, True, "192.0.2.0/32", "removed"),
        (2, False, "192.0.2.78/32", "hers"),
    ]
    assert world.rows("clicks", "what") == [("x",)] * 3


def test_more_rows_than_a_transaction_takes_go_in_several(world, person, asked, erase):
    world.link.execute(
        "INSERT INTO magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, generation_ip)"
        " SELECT gen_random_uuid()::text, md5(n::text), %s, %s, now(), now(), '192.0.2.1' FROM generate_series(1, 25) n",
        (ADDRESS, PERSON),
    )
    asked()
    assert erase("--batch-size", "10").code == 0
    assert world.where() == set()
    ((batches, entries),) = world.link.execute(
        "SELECT count(DISTINCT seq), count(*) FROM ops.audit_log WHERE resource_type = 'public.magic_link_tokens'"
    ).fetchall()
    assert (batches, entries) == (3, 26)


def test_no_more_requests_than_the_limit(world, asked, erase):
    for number in range(3):
        world.add(f"person{number}@example.com")
        asked(f"person{number}@example.com")
    assert erase("--limit", "2").closing["fulfilled"] == 2
    assert len(world.rows("users")) == 1


MESSAGES = """
CREATE TABLE public.messages (id bigint PRIMARY KEY, sender varchar(36) REFERENCES users,
    receiver varchar(36) REFERENCES users, words text);
CREATE INDEX ON public.messages (sender); CREATE INDEX ON public.messages (receiver);
"""


def test_of_two_owners_each_has_a_step_of_its_own(world, person, asked, erase, steps):
    """A message is its sender's; of the receiver only the name goes. A message to oneself is both."""
    (other,) = world.link.execute("SELECT id FROM users WHERE id <> %s LIMIT 1", (person["users"],)).fetchone()
    world.link.execute(MESSAGES)
    world.link.execute(
        "INSERT INTO messages VALUES (1, %(her)s, %(other)s, %(name)s), (2, %(other)s, %(her)s, 'theirs'),"
        " (3, %(her)s, %(her)s, %(name)s), (4, %(other)s, %(other)s, 'theirs'), (5, %(her)s, NULL, %(name)s),"
        " (6, NULL, NULL, 'nobody''s')",
        {"her": person["users"], "other": other, "name": NAME},
    )
    flags = steps(
        sent=step("public.messages", by="sender"),
        received=step("public.messages", by=["receiver"], action="anonymize", columns={"receiver": None}),
    )
    asked()

    predicted = erase("--dry-run", *flags)
    done = erase(*flags)

    assert (predicted.code, done.code) == (0, 0), done.output
    assert world.where() == set()
    assert world.rows("messages", "id, sender IS NULL, receiver IS NULL") == [
        (2, False, True),
        (4, False, False),
        (6, True, True),
    ]
    erased = world.rows("ops.audit_log", "resource_id", "reason = 'erasure_request:sent'")
    assert sorted(erased) == [("1",), ("3",), ("5",)]


def test_columns_by_which_nothing_refers_to_a_person_are_refused(world, asked, erase, steps):
    world.link.execute(MESSAGES)
    asked()
    done = erase(*steps(sent=step("public.messages", by=["sender", "words"])))
    assert done.code == 1
    assert (
        "erasure.sent.by: no foreign key of public.messages that refers to another step's table is made of words; there"
        " are receiver, sender" in done.closing["error"]
    )


def test_a_person_column_without_addresses_stops_everything_before_the_first_row(world, person, asked, erase):
    world.link.execute("UPDATE magic_link_tokens SET normalized_email = md5(normalized_email)")
    asked()
    done = erase()
    assert done.code == 1
    assert "policies.magic_link_tokens.person (line " in done.closing["error"]
    assert "public.magic_link_tokens.normalized_email holds no address" in done.closing["error"]
    assert world.rows("users", "id", f"normalized_email = '{PERSON}'") == [(person["users"],)]
