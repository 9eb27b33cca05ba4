"""The policy file: what is kept, how long, and why.

This room parses the policy file, checks it, puts its policies in order and works out when jobs are due. It may import
only scripts.utils. It reads no environment variable and, apart from the order of foreign keys, asks no database.
Every other room reads the objects that it returns. Begin with ``policies.py``, at ``Policy``; ``policy_file.py`` reads
the file.

The policy file is the only place where a period is written. No period stands in Python or SQL, so a person who reads
the file has read everything that decides how long a row is kept. The file is parsed once, into frozen objects; nothing
changes them afterwards. An unknown key is refused, because a misspelt key would be a rule that silently does not apply.
A value that YAML reads otherwise than it is written, such as ``no`` or ``010``, is refused for the same reason. Every
problem is named with its place and line, all of them at once, and ends the script with exit code 2 before any
connection is opened. "Keep forever" is the word ``forever``, never 0, null or a missing key, because those are also
what a mistake looks like. A period may not be shorter than its ``floor`` or longer than its ``ceiling``; these are what
the law or a promise allows, and they are compared for every month of four years, because months differ in length.
What only the database can contradict, such as a missing column or a value that is no label of an enum, is checked by
the preflight of the room ``engine``; it stops one policy and not the others. The hash of the file's bytes stands in
every run's record and in every audit entry, so that years later the rule that a row went by can be shown as it was
written. Tables that hold the proof itself may be named only by the action ``retain``. Policies go in the order that the
foreign keys ask for, children before parents. A cycle of foreign keys has no such order; it is reported, and the order
of the file decides.
"""
