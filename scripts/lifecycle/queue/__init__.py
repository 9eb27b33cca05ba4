"""The manual-resolution queue: items that a job could not decide, and what people do with them.

Jobs raise items through jobs/handover.py; this room claims, decides, defers, escalates and closes them. It may import
the rooms erasure, purge, monitoring and everything below them; only health and compliance import it. Begin with work.py
(the states and who may change them), then decisions.py (what may be decided), then desk.py (how a decision is done).
session.py is the dialogue at a terminal, verbs.py the same by one command line. escalation.py runs without a person.

The principle: an item changes only from the state that the operator has seen, and never without its audit entry.

Every change is a compare-and-set: an UPDATE with the expected state in its WHERE, together with the audit entry in one
statement. So two operators never decide the same item: the second one gets ``SomebodyWasFirst``. A claim is a
reservation with an end; an operator who goes away blocks nobody for longer. A decision about a row is carried out in
one transaction behind the gate: the row's change, its audit entry and the closing of the item happen together or not
at all. That transaction looks at legal holds and the stop switch again, as a job's batch does. A decision about a blob
uses the same ledger as the jobs (ops.blob_deletions): the intent is written in one transaction, the store is asked
outside of any, and the item is closed in the transaction that confirms the blob's end.

The audit never holds an operator's words. The justification stays on the item, and the audit holds the decision's code
and a keyed digest of the justification. Neither a justification nor a context may hold an e-mail address.

After a failure the item is in the state that it had before, or decided and closed; nothing in between is visible. A
process that is killed between asking the store and confirming leaves an open intent, which the next run of the blob's
job carries out; the item stays open and can be decided again. An item with a deadline that passed is escalated by
escalate_breaches.py, once, and an alert for it stays open until the item is closed.
"""
