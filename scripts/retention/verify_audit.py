#!/usr/bin/env python3
"""Prove that the audit log is whole: recompute every seal along the chain, and name what was altered or removed.

Exit 0: intact. Exit 1: broken; every finding is a line. Runbook: scripts/retention/README.md
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.lifecycle import audit
from scripts.utils.errors import AuditBroken
from scripts.utils.logging_utils import get_logger
from scripts.utils.script_template import Job, Run, main


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own flag."""
    parser.add_argument("--head", metavar="SEQ:SEAL", help="an audit_head from an earlier closing line: must be in it")


def work(run: Run) -> None:
    """Walk along the chain."""
    result = audit.verify(run.database, anchor=run.options.flags.head)
    for finding in result.findings:
        get_logger().error("audit_finding", kind=finding.kind, seq=finding.seq, finding=str(finding))
    if not result.intact:
        raise AuditBroken(f"the audit log is broken in {len(result.findings)} places, the first: {result.findings[0]}")
    get_logger().info("audit_intact", batches=result.batches, entries=result.entries, audit_head=result.head)


JOB = Job("verify_audit", work, "Verify the audit log.", changes_data=False, events="verify", arguments=arguments)

if __name__ == "__main__":
    raise SystemExit(main(JOB))
