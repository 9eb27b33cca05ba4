"""The life of one run: from its flags to its exit code, the same for every script.

The room is for what happens around a script's work. It may import the rooms ``policy`` and ``audit``, and ``utils``; it
knows neither of rows nor of policies' actions. Every other room is given a :class:`~.run.Run` from here. A script names
a :class:`~.run.Job` and hands it to ``main`` of ``entry_point.py``. Begin there: its functions stand in a run's order.

The principle: a script says what it is and supplies the work; nothing else of a run is a script's to decide.

1. Flags, environment and policy file are read first, and everything that is wrong with them is said at once (exit 2).
2. The job connects, and the database's clock gives the cut-off of the whole run, once.
3. A dry run is given objects that cannot write: a database with READ ONLY transactions, a Redis client that only reads,
   no lock, no lease, no check-ins, no metrics. A step that would write and is reached all the same is an error.
4. A real run looks at the stop switch, then takes the lock in Redis and the lease in PostgreSQL.
5. The lease's fencing token is what counts: each batch checks it, so an old holder can delete nothing more.
6. The run's record is opened before the work, and every policy has a row of its own in ``ops.job_runs``.
7. Work stops at a checkpoint between two batches: for a signal, a lost lock, the stop switch or the time budget.
8. A signal never interrupts a batch. A statement that only looks is cancelled at once.
9. One place turns an error into an exit code, and where several apply the worst counts: 2, 1, 143 and 130, 3, 4, 75, 0.
10. An error that an operator can cause has a message and no traceback; any other one is a bug and goes to Sentry.
11. At the end the residue is counted anew, the record is closed, and one closing line says all of it.
12. From the closing line on signals are ignored, so that the exit code is what the line says.
13. Losing Sentry, a metrics sink or the place of the anchor is logged and never changes the exit code.

What a failure leaves behind: after SIGKILL the record stays ``running`` until the next run, or the monitor, sets it to
``abandoned``; the lock ends by its time, and a dead owner on the same host is replaced at once. What was committed
stands, and a rerun is safe.
"""
