"""Blobs: files in Vercel Blob that rows name, deleted without losing one and without deleting one too many.

This room deletes the blobs that a policy or an erasure chose, and compares the store with the rows.
It may import from the rooms engine, jobs, audit and policy, and from utils.
It knows nothing of the purge, of an erasure or of the queue's decisions: these three call it.
A blob's canonical name is read in ``scripts/utils/blob_names.py``, and in SQL by ``ops.blob_parts``.
Begin reading at ``blob_intents.py`` (what the database says), then ``blobs.py`` (what is asked of the store), then
``reconcile.py`` (the comparison).

The principle: a database and a blob store share no transaction, so blobs are deleted through an outbox table,
``ops.blob_deletions``.
A deletion in the store cannot be undone, so every check comes before the call, and as close to it as it can.
First the batch that chooses a row writes an intent, ``pending``, in the same transaction.
Then a claim looks at the intent again, behind the gate: the row must be as it was, due, and not held, and no other row
may need the blob.
What passes becomes ``sending`` and is committed; what does not becomes ``cancelled``, with the reason.
Only then is the store asked, outside of any transaction, by pathname and never by the URL that a row holds.
When the store has said that the blob is gone, one transaction confirms the intent, clears the row and writes the audit.
A blob that is gone already counts as deleted, so every step can be repeated.
A crash leaves intents ``pending`` or ``sending``; the next run takes them up, and looks at each of them again.
Nothing is audited before the store has confirmed it, and nothing is audited twice.
Two values name the same blob if store and pathname are equal, however they are spelled.
A value that is no certain name of a blob is never sent to the store, and it keeps every blob that it may mean.
Such a row goes to a person; it stops no other row.
A call that fails is halved until the blob is known that it fails for; that blob goes to a person, once a run.
A token or a store that is refused stops the policy, and so does a store that fails more than half of its calls.
A legal hold cancels every pending intent under it; one that is ``sending`` is named to the person who places the hold.
An orphan is a blob that no row names; the comparison finds candidates, and the claim asks the rows themselves.
A comparison that finds too much refuses to act: that is another store, or another prefix.
"""
