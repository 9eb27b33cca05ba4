"""Whose rows they are by foreign keys, whatever the columns are called, and what the policy file says of them."""

import pytest
import yaml

from scripts.lifecycle.health.ownership import Reference, owned

ACCOUNTS = """
CREATE TABLE public.accounts (id bigint PRIMARY KEY, mail text, parent bigint REFERENCES public.accounts);
"""


@pytest.fixture
def accounts(admin, policy_file):
    """A table with people and an erasure step; the function adds entries to the policy file."""
    admin.execute(ACCOUNTS)

    def add(**sections):
        document = yaml.safe_load(policy_file.read_text())
        document["erasure"]["accounts"] = {"table": "public.accounts", "person": "mail"} | STEP
        for name, entries in sections.items():
            document[name] |= entries
        policy_file.write_text(yaml.safe_dump(document, sort_keys=False))

    add()
    return add


STEP = {"key": "id", "action": "delete", "ground": "personal data"}


@pytest.fixture
def found(check):
    """The findings of the check, by table."""
    return lambda: {line["subject"]: line for line in check().of("owners") if line["status"] != "PASS"}


def test_a_table_of_numbers_that_refers_to_a_person_is_hers(accounts, admin, found):
    admin.execute(
        'CREATE SCHEMA odd; CREATE TABLE odd."Heart Rates" (no bigint PRIMARY KEY, "whose?" bigint NOT NULL'
        " REFERENCES accounts ON DELETE CASCADE, bpm int)"
    )

    line = found()["odd.Heart Rates"]

    assert line["status"] == "WARN"
    assert line["message"] == (
        "its rows refer to a person's: whose? to public.accounts, and no line of the file says what becomes of them"
    )
    assert line["cure"] == (
        "add under erasure the step Heart Rates: {table: odd.Heart Rates, key: no, person: null, action: delete,"
        " ground: why}; or under kept the line odd.Heart Rates: why nothing deletes its rows"
    )


def test_a_chain_is_followed_and_each_table_is_told(accounts, admin, found):
    admin.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, account bigint REFERENCES accounts);"
        "CREATE TABLE parcels (a int, b int, for_order bigint REFERENCES orders, PRIMARY KEY (a, b));"
        "CREATE TABLE scans (id bigint, parcel_a int, parcel_b int, FOREIGN KEY (parcel_a, parcel_b) REFERENCES parcels);"
        "CREATE TABLE unrelated (id bigint PRIMARY KEY); CREATE TABLE further (id bigint REFERENCES unrelated)"
    )

    assert found().keys() == {"public.orders", "public.parcels", "public.scans"}
    assert "[parcel_a, parcel_b] to public.parcels" in found()["public.scans"]["message"]
    assert "key: [a, b]" in found()["public.parcels"]["cure"]


@pytest.mark.parametrize("entry", ["erasure", "kept"])
def test_a_line_of_the_file_decides(accounts, admin, found, entry):
    admin.execute("CREATE TABLE orders (id bigint PRIMARY KEY, account bigint REFERENCES accounts)")
    line = (
        {"orders": {"table": "public.orders", "person": None} | STEP} if entry == "erasure" else {"public.orders": "x"}
    )

    accounts(**{entry: line})

    assert found() == {}


def test_a_dependant_of_a_policy_is_decided_and_what_refers_to_it_is_not(accounts, admin, found, policy_file):
    admin.execute(
        "CREATE TABLE children (id bigint PRIMARY KEY, plan varchar REFERENCES meal_plans);"
        "CREATE TABLE grandchildren (id bigint PRIMARY KEY, child bigint REFERENCES children)"
    )
    assert found().keys() == {"public.children", "public.grandchildren"}
    assert (
        "under dependants of policy meal_plans the line - {table: public.children, column: plan, action: refuse}"
        in found()["public.children"]["cure"]
    )

    document = yaml.safe_load(policy_file.read_text())
    document["policies"]["meal_plans"]["dependants"].append(
        {"table": "public.children", "column": "plan", "action": "refuse"}
    )
    policy_file.write_text(yaml.safe_dump(document, sort_keys=False))

    assert found().keys() == {"public.grandchildren"}


def test_a_policy_for_the_blob_alone_decides_nothing(accounts, admin, found, policy_file):
    document = yaml.safe_load(policy_file.read_text())
    del document["policies"]["payment_transactions"], document["erasure"]["payment_transactions"]
    del document["jobs"]["archive_before_delete"]["policies"]
    document["policies"]["meal_plans"]["dependants"] = []
    policy_file.write_text(yaml.safe_dump(document, sort_keys=False))

    assert "public.payment_transactions" in found()


def test_partitions_and_children_go_by_the_name_of_their_table(accounts, admin, found):
    admin.execute(
        "CREATE TABLE events (id bigint, at date, who bigint, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2020-01-01') TO ('2030-01-01');"
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM ('2030-01-01') TO ('2040-01-01');"
        "ALTER TABLE events_1 ADD FOREIGN KEY (who) REFERENCES accounts;"
        "CREATE TABLE logs (id bigint PRIMARY KEY, who bigint); CREATE TABLE logs_old () INHERITS (logs);"
        "ALTER TABLE logs_old ADD FOREIGN KEY (who) REFERENCES accounts"
    )

    assert found().keys() == {"public.events", "public.logs"}


def test_a_ring_of_tables_and_a_reference_to_itself_come_to_an_end(accounts, admin, found):
    admin.execute(
        "CREATE TABLE teams (id bigint PRIMARY KEY, lead bigint REFERENCES accounts, best bigint);"
        "CREATE TABLE games (id bigint PRIMARY KEY, team bigint REFERENCES teams, next bigint REFERENCES games);"
        "ALTER TABLE teams ADD FOREIGN KEY (best) REFERENCES games"
    )

    assert found().keys() == {"public.teams", "public.games"}


def test_two_owners_have_to_be_decided(accounts, admin, found):
    admin.execute(
        "CREATE TABLE messages (id bigint PRIMARY KEY, sender bigint REFERENCES accounts,"
        " receiver bigint REFERENCES accounts, words text)"
    )
    assert "by: [receiver, sender], action: delete" in found()["public.messages"]["cure"]

    step = {"table": "public.messages", "person": None} | STEP
    accounts(erasure={"messages": step})
    line = found()["public.messages"]
    assert line["message"] == (
        "its rows may be the rows of several people: receiver refers to public.accounts; sender refers to"
        " public.accounts; an erasure of one of them would take all"
    )
    assert line["cure"].startswith("say in erasure.messages by which")

    accounts(erasure={"messages": step | {"by": "sender"}})
    assert found() == {}


def test_what_is_kept_is_followed_no_further_unless_it_has_people():
    keys = [Reference(child, parent, ("p",), "refuse") for child, parent in (("b", "a"), ("c", "b"), ("d", "c"))]

    assert owned({"a"}, keys, kept=set()).keys() == {"b", "c", "d"}
    assert owned({"a"}, keys, kept={"b"}).keys() == {"b"}
    assert owned({"a", "b"}, keys, kept={"b"}).keys() == {"b", "c", "d"}
    assert owned({"b"}, keys, kept=set()).keys() == {"c", "d"}
    assert owned({"d"}, keys, kept=set()) == {}


def test_a_person_column_that_holds_no_address_is_told(check, admin):
    admin.execute("INSERT INTO users VALUES ('u', 'anna@example.com', '4711', NULL, now(), now())")

    told = [line for line in check().unwell if line["subject"] == "person"]

    assert [(line["check"], line["status"]) for line in told] == [("owners", "FAIL")]
    assert "public.users.normalized_email holds no address in any of the 1 rows looked at" in told[0]["message"]
