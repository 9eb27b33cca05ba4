"""However a table spells a person, a hold on her keeps her rows and an erasure of her takes them, and nobody else's."""

import zipfile

import pytest

from tests.faults.stage import wait_until
from tests.lifecycle.erasure.conftest import ARCHIVE, FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

HOLDS = FOLDER / "legal_holds.py"
CLEANUP = FOLDER.parent / "cleanup" / "cleanup_magic_links.py"
SPELLINGS = ("Anne.Gret+Plan@GoogleMail.com", "ANNEGRET@gmail.com", " annegret@gmail.com ", "a.n.n.e.gret@gmail.com")
# Other mailboxes, whatever a server's lower() makes of them.
OTHERS = (
    "ann\u212aegret@gmail.com",
    "\u212aelvin@x.example",
    "kelvin@x.example",
    "K\u0131m@x.example",
    "kim@x.example",
)


@pytest.fixture
def spelt(world):
    """The ids of her rows in each table, a spelling a row."""
    ids = [
        world.add(spelling, address=f"{' ' * number}{ADDRESS}", name=NAME, permanent=number == 0)
        for number, spelling in enumerate(SPELLINGS)
    ]
    for other in OTHERS:
        world.add(other)
    return ids


def test_an_erasure_takes_every_spelling_and_no_other_mailbox(world, spelt, asked, erase, tmp_path):
    output = tmp_path / "export.zip"
    assert erase("--export", "-", "--output", str(output), stdin=f"{PERSON}\n").code == 0
    with zipfile.ZipFile(output) as archive:
        assert archive.read("public.users.json").count(b'"id"') == len(SPELLINGS)
    asked()

    done = erase()

    assert (done.code, done.closing["fulfilled"]) == (0, 1), done.output
    assert world.where() == set()
    assert world.rows("users", "normalized_email") == sorted((other,) for other in OTHERS)


@pytest.mark.parametrize("asks", ["kelvin@x.example", "kim@x.example"])
def test_a_letter_that_some_servers_fold_is_another_mailbox(world, spelt, asked, erase, asks):
    asked(asks)

    assert erase().closing["fulfilled"] == 1
    assert {person for (person,) in world.rows("users", "normalized_email")} == {*SPELLINGS, *OTHERS} - {asks}


def test_a_row_in_another_spelling_that_comes_while_she_is_erased_is_found_by_the_last_search(
    world, person, asked, start
):
    asked()
    world.valve("public.users", "DELETE", "true")
    running = start()
    wait_until(world.stopped, what="the run at the valve")
    world.link.execute(
        "INSERT INTO quiz_responses (id, email, normalized_email, quiz_data, calorie_target, created_at)"
        " VALUES ('late', %s, 'ANNE.GRET@gmail.com', '{}', 1, now())",
        (ADDRESS,),
    )
    world.open_valve()
    running.finish(0)
    assert world.where() == set()


def test_a_hold_on_her_keeps_every_spelling_from_the_cleanup(world, spelt, erase):
    world.link.execute("UPDATE magic_link_tokens SET expires_at = now() - interval '90 days'")
    assert erase("place", "--person", "-", "--reason", "a case", script=HOLDS, stdin=f"{ADDRESS}\n").code == 0

    assert erase(script=CLEANUP).code == 0
    kept = {person for (person,) in world.rows("magic_link_tokens", "normalized_email")}
    assert kept == set(SPELLINGS)


def test_her_archived_rows_are_under_one_key_however_they_spelt_her(world, asked, erase):
    for spelling in SPELLINGS:
        world.payment(spelling, address=ADDRESS)
    world.payment("kelvin@x.example")
    assert erase("run", script=ARCHIVE).closing["records_deleted"] == len(SPELLINGS) + 1
    assert world.rows("ops.archive_keys", "count(*)", "kind = 'person'") == [(2,)]
    asked()
    assert erase().code == 0
    assert world.where() == set()


# What may name her, and what names somebody else.
UNCLEAR = (
    "Anne Gret <Anne.Gret+plan@googlemail.com>",
    "mailto:annegret@gmail.com",
    "annegret@gmail.com.",
    "annegret@gmail.com\u00a0",
    "\u200bannegret@gmail.com",
    "annegret@gmail.com,ben@x.example",
    "annegret%40gmail.com",
    "{annegret@gmail.com}",
    '"annegret@gmail.com"',
)
CLEAR = ("annegret@x.example", "Ben <ben@gmail.com>", "annegret", "annegret at gmail.com", "", "ben@annegret.gmail.com")


@pytest.mark.parametrize("value", UNCLEAR)
def test_a_value_that_is_no_plain_address_and_may_name_her_keeps_the_certificate_back(
    world, spelt, asked, erase, value
):
    world.add(value)
    asked()

    done = erase()

    assert (done.code, done.closing["fulfilled"], done.closing["blocked"]) == (4, 0, 1), done.output
    assert (value,) in world.rows("users", "normalized_email")
    assert world.link.execute("SELECT count(*) FROM ops.erasure_requests WHERE certificate IS NOT NULL").fetchone() == (
        0,
    )


@pytest.mark.parametrize("value", [*UNCLEAR, *CLEAR])
def test_what_may_name_a_held_person_is_kept_and_the_rest_is_not(world, value):
    (kept,) = world.link.execute("SELECT ops.may_name(%s, %s)", (value, PERSON)).fetchone()
    assert kept is (value in UNCLEAR)
