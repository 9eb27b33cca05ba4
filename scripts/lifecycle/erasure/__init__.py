"""Erasure: a person's request to be erased, from the day it is made to the certificate (GDPR Art. 12, 15, 17 and 20).

This room also exports a person's data to a file, and repeats erasures after a restore of the database. It may import
``archives`` and ``blobs`` and the rooms below them; only ``queue``, ``compliance`` and ``health`` may import it.
Requests are in ``requests.py``, the SQL of an erasure is in ``plan.py``, its order is in ``erasure.py``. Begin with
``Eraser.carry_out`` in ``erasure.py``.

The principle: nothing is certified that did not happen, and nothing happens to anybody who did not ask.

Nothing happens before the identity was verified. A request's deadline runs from the day the person asked, not from
the day somebody entered it. The address is parsed once, and compared by one rule in Python and in PostgreSQL
(``scripts/utils/addresses.py``). The person's rows are those that name the person in a step's person column, and
those that refer to such a row by a foreign key; a row that merely mentions the person is not among them.

The order is: ledger line, blobs, rows, queue items, archive key, a last search, certificate, message to the person.
The ledger line is durable in ``ARCHIVE_URL`` before the first row goes: without it, a restored backup would bring the
person back for ever. Blobs go before the rows that name them, because nothing else knows where they are. The rows go
in transactions behind the gate, each with its audit entry, children before parents. The person's archive key is
destroyed last, because a row archived after it would make a new key. The last search and the certificate are in one
transaction: if the search finds a row, in whatever spelling, there is no certificate.

A legal hold wins over a request (Art. 17(3)(e)). What a hold, an open order, a blob or an unknown reference keeps
stays; the rest goes, and a person is told by a critical item ``erasure_blocked``. The same happens if no table names
the person, or if a verified request has no valid address: nothing is confirmed to anybody.

A killed run leaves a request ``running``, with whole transactions behind it; the next run goes on, and counts the
certificate from the audit, so nothing is counted twice. A message may be sent twice after a kill; an address that is
kept would be worse. A replay believes only ledger lines that carry a valid code, and stops before any write
otherwise.
"""
