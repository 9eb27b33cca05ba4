"""The room ``monitoring`` measures service levels and tells people what is wrong.

It watches four things: the runs of the jobs, the data that should be gone, the manual-resolution queue, and the open
erasure requests. It may import from ``engine`` and the rooms below it, never from ``queue`` or ``erasure``, whose
tables it reads by SQL. The scripts in ``scripts/sla-monitoring`` call it. Begin with ``sla_watch.look`` (one look at
everything) and ``alerts.py`` (what becomes of what it found). Each ``…_levels`` module holds the rules of one
subject.

The principle: a service level is counted from the data, never from what a job says of itself. A job can report
success and delete nothing, so the residue is the count of rows that are still past their date, by the same selection
that the purge uses. A count that failed is ``unknown``. It is never 0, and no alert that depends on it ends.

One look goes in this order. First each policy's data is counted, within 70 % of the monitor's own time budget, in a
READ ONLY transaction with a lock time-out of two seconds, so that the monitor never holds up a job. Then each job's
runs are compared with its schedule, its budget and its own earlier speed. Then the alerts, the observations and the
runs whose process is gone are written. Then the sinks are told.

An alert is one row of ``ops.alerts`` for one problem. Its key stays the same while the problem lasts, so two monitors
that see the same problem raise it once. Each rule looks at the present state only, so an alert ends by itself when
its rule is met no more. Every change of a row is a compare-and-set. Sinks (log, Sentry, Slack, PagerDuty) are told
after the transaction has ended, under a claim, because an HTTP call inside a transaction would hold its locks.

A sink that does not answer stays noted on the alert, and the next run of any monitor tells it the newest state. A
process that is killed between telling a sink and noting it tells the sink twice, with the same key. A silence keeps
sinks from being told and keeps nothing from being noted. It ends by itself after seven days at most.

No method of this room fails a job: what a sink does wrong is logged. No text of an alert holds personal data.
"""
