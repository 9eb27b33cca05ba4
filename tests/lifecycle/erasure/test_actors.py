"""Who acted stands in the audit, for every verb of every script: a person's verb names the person, a job's run the script."""

import argparse
import importlib

import pytest

from tests.lifecycle.archives.payments import MASTER_KEY
from tests.lifecycle.erasure.conftest import FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

SCRIPTS = FOLDER.parent
BY_HAND = ("--operator", "otto")
OTTO = "operator:otto"
READING = (
    ("cleanup", "stop_switch", "status"),
    ("retention", "legal_holds", "list"),
    ("retention", "enforce_gdpr_deletion", "list", "--all"),
    ("retention", "enforce_gdpr_deletion", "preview"),
    ("retention", "enforce_gdpr_deletion", "export", "--output", "{export}"),
    ("retention", "enforce_gdpr_deletion", "show", "{request}"),
    ("retention", "enforce_gdpr_deletion", "certificate", "{request}", "--output", "{paper}"),
    ("retention", "enforce_gdpr_deletion", "verify", "{paper}"),
    ("retention", "archive_before_delete", "list"),
    ("retention", "archive_before_delete", "verify"),
    ("sla-monitoring", "alerts", "list"),
    ("manual-resolution", "process_queue", "list"),
    ("manual-resolution", "process_queue", "show", "{item}"),
)
"""Verbs that only read."""


@pytest.fixture
def act(world, erase):
    """A function that runs a script and returns its run and who the audit says did what since.

    A verb of which the audit says nothing must leave every table of the suite as it was.
    """
    walked = {}

    def run(folder, script, *words, stdin="", **changes):
        before, tables = _newest(world), _tables(world)
        done = erase(*words, script=SCRIPTS / folder / f"{script}.py", stdin=stdin, **changes)
        assert done.code == 0, done.output
        found = {actor for (actor,) in world.rows("ops.audit_batches", "actor", f"seq > {before}")}
        if not found:
            assert _tables(world) == tables, f"{script} {words} changes the suite's tables and audits nothing"
        walked.setdefault(script, set()).update(verb for verb in _verbs(folder, script) if set(verb) <= set(words))
        return done, found

    run.walked = walked
    return run


def _newest(world):
    ((seq,),) = world.rows("ops.audit_batches", "coalesce(max(seq), 0)")
    return seq


def _tables(world):
    """The content of every table of the suite."""
    names = world.rows("pg_tables", "tablename", "schemaname = 'ops'")
    return {
        name: world.rows(f"ops.{name} t", "md5(string_agg(t::text, ',' ORDER BY t::text))")
        for (name,) in names
        if name != "audit_notes"  # unlogged, and empty between transactions
    }


def _verbs(folder, script):
    """Every verb, as the words that lead to it: found in the script's own parser, so that a new one is found too."""
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"scripts.{folder}.{script}")
    getattr(module, "arguments", lambda _: None)(parser)
    return set(_below(parser))


def _below(parser, words=()):
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if words and not subparsers:
        yield words
    for action in subparsers:
        for name, below in action.choices.items():
            yield from _below(below, (*words, name))


def only_read(act, names):
    for words in READING:
        _, by = act(*words[:2], *(each.format(**names) for each in words[2:]), stdin=f"{ADDRESS}\n")
        assert by == set(), words


def require_all_walked(act):
    for folder, script in sorted((path.parent.name, path.stem) for path in SCRIPTS.glob("*/*.py")):
        if folder in ("cleanup", "retention", "sla-monitoring", "manual-resolution") and script != "__init__":
            assert _verbs(folder, script) == act.walked.get(script, set()), script


def test_every_verb_of_every_script_says_who_acted_or_changes_nothing(world, act, tmp_path):
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.payment("other@example.com")
    gdpr = ("retention", "enforce_gdpr_deletion")

    done, by = act(*gdpr, "add", "--identity", "passport", *BY_HAND, stdin=f"{ADDRESS}\n")
    assert by == {OTTO}
    _, by = act(*gdpr, "cancel", done.event("erasure_entered")["request"], *BY_HAND)
    assert by == {OTTO}
    done, by = act(*gdpr, "add", *BY_HAND, stdin=f"{ADDRESS}\n")
    _, identified = act(*gdpr, "identify", done.event("erasure_entered")["request"], "--method", "letter", *BY_HAND)
    assert by == identified == {OTTO}
    names = {
        "request": done.event("erasure_entered")["request"],
        "paper": str(tmp_path / "certificate.json"),
        "export": str(tmp_path / "export.zip"),
    }
    _, by = act(*gdpr, "run")
    assert by == {"system:enforce_gdpr_deletion"}
    act(*gdpr, "add", "--identity", "passport", *BY_HAND, stdin="other@example.com\n")
    _, by = act(*gdpr, "replay")
    assert by == {"system:enforce_gdpr_deletion"}

    done, by = act(
        "retention", "legal_holds", "place", "--person", "-", "--reason", "r", *BY_HAND, stdin=f"{ADDRESS}\n"
    )
    _, released = act("retention", "legal_holds", "release", done.event("hold_placed")["hold"], *BY_HAND)
    assert by == released == {OTTO}

    _, by = act("retention", "archive_before_delete", "run")
    assert by == {"system:archive_before_delete"}
    _, by = act("retention", "archive_before_delete", "restore", "--policy", "payment_transactions", *BY_HAND)
    assert by == {OTTO}

    _, by = act("cleanup", "stop_switch", "stop", "--all", "--reason", "r", *BY_HAND)
    _, gone = act("cleanup", "stop_switch", "go", "--all", *BY_HAND)
    assert by == gone == {OTTO}

    done, by = act("sla-monitoring", "alerts", "silence", "sla:", "--for", "1h", "--reason", "r", *BY_HAND)
    ((silence,),) = world.rows("ops.alert_silences", "id::text")
    _, ended = act("sla-monitoring", "alerts", "unsilence", silence, *BY_HAND)
    assert by == ended == {OTTO}

    row = world.add("third@example.com")["users"]
    item = ("--item-type", "archive_failed", "--resource-type", "public.users", "--resource-id", row)
    _, by = act("manual-resolution", "add_to_queue", *item, "--priority", "low", "--reason", "r", *BY_HAND)
    ((key, raised),) = world.rows("ops.manual_resolution_queue", "id::text, raised_by", f"resource_id = '{row}'")
    assert by == {raised} == {OTTO}
    names["item"] = key
    for words in (
        ("claim", key),
        ("defer", key, "--until", "7d"),
        ("undo", key),
        ("claim", key),
        ("release", key),
        ("escalate", key),
        ("claim", key),
        ("resolve", key, "--decision", "settled", "--reason", "done"),
        ("reopen", key),
    ):
        _, by = act("manual-resolution", "process_queue", *words, *BY_HAND)
        assert by == {OTTO}, words

    done, by = act("sla-monitoring", "alerts", "test", *BY_HAND)
    assert by == {OTTO}
    world.link.execute(
        "INSERT INTO ops.alerts (key, severity, what, how_bad, what_to_do, runbook, raised_by, since)"
        " VALUES ('sla:gone:missed', 'info', 'w', 'h', 'd', 'r', 'x', now())"
    )
    _, by = act("sla-monitoring", "alerts", "close", "sla:gone:missed", *BY_HAND)
    assert by == {OTTO}

    only_read(act, names)

    _, by = act(*gdpr, "sign-ledger", *BY_HAND)
    assert by == {OTTO}
    anew = {"ARCHIVE_MASTER_KEY": "m2:" + "4d" * 32, "ARCHIVE_PREVIOUS_MASTER_KEYS": MASTER_KEY}
    _, by = act("retention", "archive_before_delete", "rotate-keys", *BY_HAND, **anew)
    assert by == {OTTO}

    require_all_walked(act)
