"""Who acted stands in the audit, for every verb of every script: a person's verb names the person, a job's run the script."""

import argparse
import importlib

import pytest

from tests.lifecycle.erasure.conftest import FOLDER
from tests.lifecycle.erasure.world import ADDRESS, NAME, PERSON

SCRIPTS = FOLDER.parent
BY_HAND = ("--operator", "otto")
OTTO = "operator:otto"
# Verbs that read, tell somebody or exchange keys; a closed alert comes back by itself if its matter is not over.
SILENT = {
    "stop_switch": {"status"},
    "legal_holds": {"list"},
    "enforce_gdpr_deletion": {"list", "show", "certificate", "verify"},
    "archive_before_delete": {"list", "verify", "rotate-keys"},
    "alerts": {"list", "test", "close"},
    "process_queue": {"list", "show"},
}


@pytest.fixture
def act(world, erase):
    """A function that runs a script and returns its run and who the audit says did what since."""
    walked = {}

    def run(folder, script, *words, stdin=""):
        ((before,),) = world.rows("ops.audit_batches", "coalesce(max(seq), 0)")
        done = erase(*words, script=SCRIPTS / folder / f"{script}.py", stdin=stdin)
        assert done.code in (0, 4), done.output
        found = world.rows("ops.audit_batches", "action, actor", f"seq > {before}")
        assert found or script == "add_to_queue", f"{script} {words} audits nothing"
        walked.setdefault(script, set()).update(word for word in words if word in _verbs(folder, script))
        return done, {actor for _, actor in found}

    run.walked = walked
    return run


def _verbs(folder, script):
    parser = argparse.ArgumentParser()
    module = importlib.import_module(f"scripts.{folder}.{script}")
    getattr(module, "arguments", lambda _: None)(parser)
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name for action in actions for name in action.choices}


def test_every_verb_of_every_script_says_who_acted(world, act):
    world.add(PERSON, address=ADDRESS, name=NAME)
    world.payment("other@example.com")
    gdpr = ("retention", "enforce_gdpr_deletion")

    done, by = act(*gdpr, "--add", "-", "--identity", "passport", *BY_HAND, stdin=f"{ADDRESS}\n")
    assert by == {OTTO}
    _, by = act(*gdpr, "cancel", done.event("erasure_entered")["request"], *BY_HAND)
    assert by == {OTTO}
    done, by = act(*gdpr, "--add", "-", *BY_HAND, stdin=f"{ADDRESS}\n")
    _, identified = act(*gdpr, "identify", done.event("erasure_entered")["request"], "--method", "letter", *BY_HAND)
    assert by == identified == {OTTO}
    _, by = act(*gdpr)
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
    act("manual-resolution", "add_to_queue", *item, "--priority", "low", "--reason", "r", *BY_HAND)
    ((key, raised),) = world.rows("ops.manual_resolution_queue", "id::text, raised_by", f"resource_id = '{row}'")
    assert raised == OTTO
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

    for folder, script in sorted((path.parent.name, path.stem) for path in SCRIPTS.glob("*/*.py")):
        if folder in ("cleanup", "retention", "sla-monitoring", "manual-resolution") and script != "__init__":
            assert _verbs(folder, script) == act.walked.get(script, set()) | SILENT.get(script, set()), script
