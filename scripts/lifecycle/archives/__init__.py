"""Archives: rows of policies with the action ``archive_then_delete``, kept in cold storage after their deletion.

This room writes archives, reads them back, verifies them, restores rows from them and deletes them at the end of their
own period. It may import the rooms engine, jobs, audit and policy, and scripts/utils; the room blobs stands beside it
and neither imports the other. Begin with format.py (what an object looks like), then catalogue.py (the states of an
archive), then batches.py (the order of export, upload, read-back and delete).

The principle: a row is deleted only in the transaction that seals the archive that holds exactly this version of it.

A run exports a window of due rows with COPY in one snapshot, together with each row's ctid and xmin, which name one
version of one row. It encrypts the rows, uploads them as one object, reads the object back from the store and compares
its hash and row count with what was written. Only then does it delete. The DELETE runs behind the gate and asks for
every exported row again: the same version, still due, not held, the fencing token still valid, the stop switch off. The
same transaction writes the audit entry and changes the archive's status to ``sealed``. If one row is not as it was
exported, nothing is deleted; the object is discarded and the window is exported again without that row.

An object is never changed after its upload, and an object that rows were deleted for is never removed before the
archive's own period ends. No row is ever deleted on the strength of an upload that was not read back. No plaintext
reaches the store: the object has a key of its own, and each person's columns have a key per person on top of it.
ARCHIVE_MASTER_KEY wraps these keys, which stand in ops.archive_keys. An erasure destroys the person's key, which makes
their columns unreadable in every archive without touching one object (GDPR Art. 17); the other columns stay readable.

Nothing is taken from an object before its key has opened the first frame, and what a row consists of is read from the
catalogue, ops.archives, not from the object. Names of types reach PostgreSQL as values only.

A failure before the DELETE leaves an archive in status ``writing`` and perhaps an object in the store; nothing was
deleted for it, and the next run removes both. A lost answer to COMMIT is settled by looking at the status, with the
gate closed. A failure of the store stops the policy, keeps its rows and raises one item on the manual-resolution queue.
"""
