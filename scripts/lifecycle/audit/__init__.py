"""The room of the audit log: writing entries, proving that nothing was changed since, and explaining a deletion.

It may import ``scripts.utils`` and nothing else of ``scripts.lifecycle``. Begin with ``audit.py`` (how an entry is
written), then ``audit_chain.py`` (how the chain is verified). ``audit_anchor.py`` and ``audit_heads.py`` supply heads
that others kept, and ``definitions.py`` compares the schema's functions with those that the migrations made.
``provenance.py`` answers under which rule a record was deleted.

The principle: the audit is the only proof of what was deleted, so it must stay believable when the jobs' role, an
operator or the owner of the database is not trusted.

- One row of ``ops.audit_batches`` is one batch; ``ops.audit_log`` shows one entry for each record of it.
- An entry is written in the transaction that makes the change. Neither can be committed without the other.
- No entry holds personal data. A key that may be personal stands as a keyed pseudonym (GDPR Art. 4(5)).
- ``seal = sha256(previous seal ‖ content)`` chains the batches; ``ops.audit_head`` holds the last seal.
- The head is locked at COMMIT and not before, because every other transaction of the suite waits for it.
- No role may insert, update or delete. Functions with their owner's rights write; a trigger refuses every change.
- ``ops.append_audit`` adds the login (``session_user``) to the metadata, because the actor is only what it was told.
- It refuses metadata that is no small object: an entry must be readable years later.
- It refuses an operator's name unless a table of the suite bears it out, such as an item of the queue.
- Changes to legal holds are written by a trigger on ``ops.legal_holds``, so no statement changes a hold unseen.
- Verification recomputes the seals in Python. A function in the database could have been altered together with the log.
- Someone who owns the database can rewrite the whole chain. Only heads that a log store or an anchor kept reveal that.
- Verification reads one snapshot, writes nothing, and keeps memory flat whatever the length of the chain.
- What could not be compared is an error, never "intact".
- A failure to keep a head in the anchor is a warning; the head still stands in the run's closing line.
- Entries are never deleted. Destroying an old pseudonym key makes its years anonymous without breaking the chain.
"""
