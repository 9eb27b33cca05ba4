"""Delete what a policy says has expired.

This room holds the jobs that delete by age: purge, caps, rollout, inventory, partitions, plans and the orchestrator.
It may import archives, blobs, engine, jobs, audit, policy and utils.
It may not import erasure or monitoring, which stand beside it, nor the rooms above.
Begin with ``purge.py``, which carries out one policy from its first look to its last count.
The transaction that deletes is not here: ``engine/batches.py`` has it.

A purge deletes rows for good, so everything that can be refused is refused before the first row goes.
First the policy is checked against the database: tables, columns, types, rights, foreign keys, triggers and plans.
Then one cut-off is taken from the database's clock, and every row is judged by it until the run ends.
Then the rows that may go are counted, together with the rows of other tables that would go along.
The caps are compared with both numbers; a run beyond its cap deletes nothing and says how it can be allowed.
A dry run ends here; it has no way to write, and it predicts what the run would do.
Partitions of which every row is due are detached, looked at again, audited and dropped.
Everything else goes in batches: a sweep over the table's blocks where much is due, an index walk where little is.
A batch has at most the records that the policy allows, dependants included, whatever the statistics say.
A row that has more dependants than a batch may have goes last: they go before it, in batches of their own.
Rows that refer to rows of their own table go before them, and a row above one that stays, stays.
A row under a legal hold never goes, and nothing goes along with a row that a hold keeps.
A row that an exception keeps, or that another table still needs, stays and is handed to a person, once.
A row that the database refuses to delete is found by bisection and handed to a person; the others of its batch go.
After the batches an index walk looks for rows that were locked, or that moved behind the sweep.
The run ends with a fresh count of what is still past its date, because a job that deletes nothing must not look well.
The number of rows that went is read from the audit, not from the process's memory.
A process that is killed leaves whole batches behind: each is committed with its audit entries, or did not happen.
The next run begins at once, takes what is left, and finishes a partition that was left detached.
"""
