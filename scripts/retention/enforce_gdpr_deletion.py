#!/usr/bin/env python3
"""Honour requests to be erased within their deadline and prove it, and export a person's data.

Without a verb the script carries out every request with a verified identity.

Policies: erasure: in retention_policies.yaml · Schedule and budget: there, jobs · Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from uuid import UUID

from scripts.lifecycle.erasure import commands as erasure_commands
from scripts.lifecycle.erasure.job import enforce
from scripts.lifecycle.jobs.arguments import (
    MAX_BATCH_ROWS,
    add_common_flags,
    add_job_flags,
    add_operator_flag,
    moment,
    positive,
)
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main

_VERBS = {
    "run": "carry out every request with a verified identity; what happens without a verb",
    "replay": "the same, after erasing again what a restore of the database undid",
    "add": "enter a request; the address on standard input",
    "preview": "show what an erasure of this person would do; writes nothing; the address on standard input",
    "export": "write a person's data to a ZIP file; the address on standard input",
    "list": "show open requests by deadline",
    "show": "show one request, and what was done for it",
    "identify": "note that the identity was verified; the next run erases",
    "cancel": "withdraw a request before it ran",
    "certificate": "write a fulfilled request's certificate",
    "verify": "check a certificate against the audit",
    "sign-ledger": "accept ledger lines of an earlier version, or that lines are missing",
}
# What earlier versions had as flags goes on working, as the verb of the same name; no help names it.
_FORMER_FLAGS = {f"--{verb}": verb for verb in ("add", "preview", "export", "replay")}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    parser.set_defaults(replay=False)
    add_operator_flag(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    of = {name: verbs.add_parser(name, help=text) for name, text in _VERBS.items()}
    of["replay"].set_defaults(replay=True)
    for name in ("run", "replay"):
        of[name].add_argument(
            "--limit", type=positive, default=argparse.SUPPRESS, metavar="N", help="at most N requests"
        )
        of[name].add_argument(
            "--batch-size",
            type=positive,
            default=argparse.SUPPRESS,
            metavar="N",
            help=f"rows a transaction, at most {MAX_BATCH_ROWS}",
        )
    for name in ("add", "preview", "export"):
        of[name].add_argument("person", nargs="?", choices=["-"], help="the address, on standard input")
    add = of["add"]
    add.add_argument("--requested-at", type=moment, metavar="T", help="when the person asked; else now")
    add.add_argument("--channel", help="how the person asked, such as web; else operator")
    add.add_argument("--identity", metavar="METHOD", help="how the identity was verified")
    of["export"].add_argument("--output", type=Path, metavar="FILE", required=True, help="a ZIP file")
    of["list"].add_argument("--all", action="store_true", help="closed ones too")
    of["identify"].add_argument("--method", required=True, help="how, such as signed_link; name no person in it")
    paper = of["certificate"]
    paper.add_argument("--format", choices=["json", "html"], default="json", help="default: json")
    paper.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    of["verify"].add_argument("certificate", type=Path, help="its JSON file")
    of["verify"].add_argument(
        "--archives", action="store_true", help="read the archives too: can a key still open the columns?"
    )
    of["sign-ledger"].add_argument(
        "request", type=UUID, nargs="*", help="lines to accept that the database does not know"
    )
    of["sign-ledger"].add_argument(
        "--accept-missing", action="store_true", help="nobody can bring the missing lines back"
    )
    for name in ("show", "identify", "cancel", "certificate"):
        of[name].add_argument("request", type=UUID, help="the request's reference")
    for verb in of.values():
        add_job_flags(verb, purges=False)
        add_common_flags(verb)
        add_operator_flag(verb)


def spelled(words: list[str]) -> list[str]:
    """Return a command line with its verb in front: ``run`` where it has none, a verb for a former flag."""
    former = [verb for flag, verb in _FORMER_FLAGS.items() if {flag, f"{flag}=-"} & set(words)]
    others = [word for word in words if word.removesuffix("=-") not in _FORMER_FLAGS]
    if not former and not {"-h", "--help", *_VERBS} & set(words):
        former = ["run"]
    return [*former, *others]


def work(run: Run) -> None:
    """Carry out the requests, or one verb."""
    erasure_commands.VERBS.get(run.options.flags.verb, enforce)(run)


JOB = Job(
    "enforce_gdpr_deletion",
    work,
    "Honour requests to be erased, within their deadline, and prove it.",
    kind=Kind.CHANGES_DATA,
    events="erasure",
    arguments=arguments,
    commands=frozenset(erasure_commands.VERBS),
    spelled=spelled,
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
