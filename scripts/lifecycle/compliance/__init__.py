"""The compliance report: what is kept, what was deleted, how late, and whether the proof is whole.

It may import every room but health. Begin with report.py (the order of the parts and the first page), then document.py
(what a part consists of). Each further module fills one part: inventory, enforcement, punctuality, exceptions (with the
queue), erasures, archives, chain, policy_changes. console.py, page.py, pdf.py and sheet.py each render the same Report.

The principle: every number is measured from the source that proves it, in one snapshot, and what could not be measured
is said on the first page and never shown as 0.

All parts read one READ ONLY transaction, so the numbers of different parts agree with each other. What went is counted
from the audit and never from the run records; archives are read from the store again, and seals are recomputed outside
the database. A part that fails is named under "What could not be counted" together with the reason, and the other parts
are made. A value that Python cannot hold (a date of ``-infinity``) is shown as what it is and hides no other row.

The verdict is ``broken`` if a seal or an archive is not what was written, ``findings`` if a deadline or a service level
was missed, ``incomplete`` if something was not counted, and ``in_order`` only if none of these holds. The report holds
no personal data: it counts, and names policies, tables, codes and hashes. It holds no free text of operators either,
because a reason may be about a person; text from elsewhere is shown with its control characters written out.

A report changes nothing: a failure leaves no report, or one whose first page says what is missing.
"""
