#!/usr/bin/env python3
"""Honour requests to be erased within their deadline and prove it, and export a person's data.

Without a verb and without --add, --preview or --export, the script carries out every request with a verified identity.

Policies: erasure: in retention_policies.yaml · Schedule and budget: there, jobs · Runbook: scripts/retention/README.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.utils import early_signals

early_signals.install(__name__)

import argparse
from typing import Any
from uuid import UUID

from scripts.lifecycle.erasure import commands as erasure_commands
from scripts.lifecycle.erasure.job import enforce
from scripts.lifecycle.jobs.arguments import MAX_BATCH_ROWS, add_common_flags, add_operator_flag, moment, positive
from scripts.lifecycle.jobs.entry_point import Job, Kind, Run, main
from scripts.utils.errors import Misconfigured

_ABOUT_A_PERSON = {
    "add": "enter a request; the address on standard input",
    "preview": "show what an erasure of this person would do; writes nothing; the address on standard input",
    "export": "write a person's data to --output, a ZIP file; the address on standard input",
}


_ONLY_WITH: dict[str, tuple[str | None, ...]] = {
    "requested_at": ("add",),
    "channel": ("add",),
    "identity": ("add",),
    "output": ("export", "certificate"),
    "replay": (None,),
    "limit": (None,),
    "batch_size": (None,),
}


class _AboutAPerson(argparse.Action):
    """A flag that acts as a verb. Its only value is ``-``: an address never stands on a command line."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        """Note the verb; two of them are refused."""
        if namespace.verb:
            parser.error(f"{namespace.verb} and {self.dest} are two different things to do")
        namespace.verb = namespace.about = self.dest


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags and the verbs."""
    parser.set_defaults(verb=None, about=None)
    parser.add_argument("--limit", type=positive, default=argparse.SUPPRESS, metavar="N", help="at most N requests")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"rows a transaction, at most {MAX_BATCH_ROWS}",
    )
    parser.add_argument("--replay", action="store_true", help="erase again what a restore of the database undid")
    for name, what in _ABOUT_A_PERSON.items():
        parser.add_argument(f"--{name}", choices=["-"], action=_AboutAPerson, default=argparse.SUPPRESS, help=what)
    parser.add_argument("--requested-at", type=moment, metavar="T", help="with --add: when the person asked; else now")
    parser.add_argument("--channel", help="with --add: how the person asked, such as web; else operator")
    parser.add_argument("--identity", metavar="METHOD", help="with --add: how the identity was verified")
    parser.add_argument("--output", type=Path, metavar="FILE", help="with --export, or of a certificate")
    add_operator_flag(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="{list,show,identify,cancel,certificate,verify,sign-ledger}")
    listing = verbs.add_parser("list", help="show open requests by deadline")
    listing.add_argument("--all", action="store_true", help="closed ones too")
    show = verbs.add_parser("show", help="show one request, and what was done for it")
    identify = verbs.add_parser("identify", help="note that the identity was verified; the next run erases")
    identify.add_argument("--method", required=True, help="how, such as signed_link; name no person in it")
    cancel = verbs.add_parser("cancel", help="withdraw a request before it ran")
    paper = verbs.add_parser("certificate", help="write a fulfilled request's certificate")
    paper.add_argument("--format", choices=["json", "html"], default="json", help="default: json")
    check = verbs.add_parser("verify", help="check a certificate against the audit")
    check.add_argument("certificate", type=Path, help="its JSON file")
    check.add_argument(
        "--archives", action="store_true", help="read the archives too: can a key still open the columns?"
    )
    sign = verbs.add_parser("sign-ledger", help="accept ledger lines of an earlier version, or that lines are missing")
    sign.add_argument("request", type=UUID, nargs="*", help="lines to accept that the database does not know")
    sign.add_argument("--accept-missing", action="store_true", help="nobody can bring the missing lines back")
    for verb in (show, identify, cancel, paper):
        verb.add_argument("request", type=UUID, help="the request's reference")
    for verb in (listing, show, identify, cancel, paper, check, sign):
        add_common_flags(verb)
        add_operator_flag(verb)
    paper.add_argument(
        "--output", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="default: standard output"
    )


def work(run: Run) -> None:
    """Carry out the requests, or one verb.

    Raises:
        Misconfigured: A flag belongs to something else: it would be overlooked.
    """
    flags = run.options.flags
    astray = [flags.about] if flags.about and flags.about != flags.verb else []
    astray += [name for name, verbs in _ONLY_WITH.items() if getattr(flags, name, None) and flags.verb not in verbs]
    if astray:
        named = ", ".join("--" + name.replace("_", "-") for name in astray)
        raise Misconfigured(f"{named} does not go with {flags.verb or 'a run'}: nothing was done")
    erasure_commands.VERBS.get(run.options.flags.verb, enforce)(run)


JOB = Job(
    "enforce_gdpr_deletion",
    work,
    "Honour requests to be erased, within their deadline, and prove it.",
    kind=Kind.CHANGES_DATA,
    events="erasure",
    arguments=arguments,
    commands=frozenset(erasure_commands.VERBS),
)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
