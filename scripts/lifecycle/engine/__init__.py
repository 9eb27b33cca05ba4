"""Select rows, judge each of them again, and delete, change or mark them in one audited transaction.

This room is what every deletion goes through, whether by age, by an operator's decision or for an archive.
It may import jobs, audit, policy and utils.
It knows nothing of archives, partitions, erasure requests or queues, which use it.
Begin with ``selection.py``, the one predicate that counting, dry run and deletion share.
Then read ``batches.py``, the transaction, ``loop.py``, the loop, and ``deleter.py``, what the loop does with a window.

The principle: nothing is deleted because it was found to be due; it is deleted because it is due in the very statement.
Preflight refuses a policy that the database contradicts, before anything is counted.
The selection is composed once a run and never changes: period, exceptions, holds, references.
Windows cut the table into bounded pieces, so that no statement reads or locks more than a batch may.
A batch is one transaction in one round trip.
It first passes the gate, shared; a hold, a stop or a lease take-over takes the gate exclusively.
So what was committed before is seen by the batch, and what comes later waits until the batch is over.
Settings, locks, dependants, the DELETE and the audit's notes follow in one pipeline, and the COMMIT chains the notes.
The DELETE checks period, holds, references, fencing token and stop switch in its own WHERE.
Dependants go before their parents, counted and audited, or the parent stays.
No batch has more records than it may; one that would is undone by the database and done again in parts.
The audit's head, for which every job waits, is locked by the COMMIT alone.
No transaction sleeps, waits for a person or calls another service.
A locked row is waited for briefly, then left to a later pass; a lost connection repeats the batch.
A COMMIT whose answer was lost is settled by the ids of its audit entries, so no row is counted or audited twice.
A batch that the database refuses is bisected to the row, which is handed to a person.
Between batches the loop looks at signals, time budget, lock and limit, and makes room for others.
A failure leaves whole batches behind, each with its audit, and a run record that says how far the run came.
"""
