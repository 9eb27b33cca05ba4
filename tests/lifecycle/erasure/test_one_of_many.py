"""One request that cannot be carried out keeps no other from it."""

from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON
from tests.mailbox import Mailbox, mail_server


def test_whose_rows_the_database_refuses_for_any_reason_keeps_nobody_else(world, asked, erase):
    """The application's trigger writes where the job may not: that is no constraint of the row's."""
    world.add("first@example.com")
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.link.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '42501'; END$$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON users FOR EACH ROW WHEN (OLD.normalized_email = 'first@example.com')"
        " EXECUTE FUNCTION public.refuse()"
    )
    asked("first@example.com", requested_at="2026-01-01T00:00:00Z")
    asked()
    done = erase()
    assert len(world.of("first@example.com")["users"]) == 1
    assert world.where() == set(), done.output
    assert done.code == 4, done.output


def test_an_address_that_no_index_takes_is_rejected(world, asked, erase):
    import secrets

    world.add(PERSON, address=ADDRESS, name=NAME)
    asked()
    world.link.execute(
        "INSERT INTO ops.erasure_requests (email, channel) VALUES (%s, 'web')",
        (secrets.token_hex(5000) + "@example.com",),
    )
    done = erase()
    assert done.code == 0, done.output
    assert world.where() == set()


def test_an_address_that_cannot_be_written_to_stops_nothing(world, asked, erase):
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.add("gone@example.com")
    asked("gone@example.com", requested_at="2026-01-01T00:00:00Z")
    asked()
    mailbox = Mailbox()
    with mail_server(mailbox) as settings:
        done = erase(**settings)
    assert done.code == 0, done.output
    assert (done.closing["fulfilled"], done.closing["confirmed"]) == (2, 1)
    assert world.where() == set()


def test_a_mail_server_that_is_down_is_not_asked_again_for_everybody(world, asked, erase):
    for number in range(6):
        world.add(f"person{number}@example.com")
        asked(f"person{number}@example.com")
    down = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": "9", "SMTP_FROM": "a@example.com", "SMTP_STARTTLS": "false"}
    done = erase(**down)
    failed = [line for line in done.lines if line["event"] == "erasure_not_confirmed"]
    assert (done.code, done.closing["fulfilled"]) == (0, 6)
    assert len([line for line in failed if "failed (" in line["error"]]) <= 3


def test_a_row_that_no_step_is_about_is_named_to_a_person(world, person, asked, erase, tmp_path, database):
    import yaml

    from backend import migrate
    from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE

    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["erasure"]["magic_link_tokens"]["when"] = {"usage_ip": "set"}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    asked()
    done = erase("--policy-file", str(tmp_path / "p.yaml"))
    assert done.code == 1
    assert (
        "no right to SELECT public.magic_link_tokens.usage_ip for erasure.magic_link_tokens.when.usage_ip"
        in done.output
    )
    migrate.grant(database.superuser_url, tmp_path / "p.yaml")
    done = erase("--policy-file", str(tmp_path / "p.yaml"))
    assert (done.code, done.closing["blocked"]) == (4, 1), done.output


def test_a_table_that_refers_to_itself(world, person, asked, erase, tmp_path, database):
    import yaml

    from backend import migrate
    from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE

    world.link.execute(
        "CREATE TABLE public.notes (id bigint PRIMARY KEY, who varchar(320), parent bigint REFERENCES notes)"
    )
    world.link.execute("INSERT INTO notes SELECT n, %s, nullif(n - 1, 0) FROM generate_series(1, 6) n", (PERSON,))
    document = yaml.safe_load(DEFAULT_POLICY_FILE.read_text())
    document["erasure"]["notes"] = {
        "table": "public.notes",
        "key": "id",
        "person": "who",
        "action": "delete",
        "ground": "x",
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    migrate.grant(database.superuser_url, tmp_path / "p.yaml")
    asked()
    done = erase("--policy-file", str(tmp_path / "p.yaml"))
    assert done.code == 0, done.output
    assert world.where() == set()
