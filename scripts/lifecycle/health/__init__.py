"""The room ``health`` checks what is around the jobs, before they run.

It serves ``check_cleanup_health.py`` (the health page, the checklists) and ``--check`` of the orchestrator (the gate
in front of a change of the policy file). It may import from every room but ``compliance``, and nothing imports it but
the scripts. Begin with ``findings.py`` (what a check is, and how it is carried out) and ``checks.py`` (the list of
checks and their order). A new check is one function that yields findings, and one line in ``checks.py``.

The principle: a check looks at the real thing and never at a copy of the rules. ``database.policies`` runs the
purge's own preflight, ``locks`` takes and gives back a real lock, ``services`` lists a real page of the Blob store.
So a check cannot drift away from what a job will meet.

A finding is PASS, WARN or FAIL, with a subject, a message and a cure; the exit code is that of the worst one. What
cannot be seen with the role's rights is reported as not visible. It is never reported as well. A check that found
nothing to look at fails, because silence is not health.

The checks run one after the other, what the others need first. A check that raises fails by itself and the rest go
on. Without a connection to PostgreSQL the checks that need one say so instead of failing one by one. A signal or the
end of the time budget stops after the check in hand, and what was found is still shown.

The room changes nothing, with two named exceptions: the trial lock of its own, and ``--fix-zombies``, which releases
a lock that no live run claims. With CLEANUP_DRY_RUN set it does neither. ``telling`` raises an alert for each finding
and ends it when the finding is gone.
"""
