"""The commands that the documents tell people to type, pulled out of the Markdown, and what is known of them.

A command in a ```bash block, or in running text where it is written whole (from `.venv/bin/python`, `psql`, `cp` or
`make` on), is a command. `script.py …` in running text is short for one: its verb and flags are looked up.
A name in capitals such as THE_ID stands for something that a person has at hand; PLACEHOLDERS are all there are.
"""

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise

from backend import local_stack, migrate
from scripts.lifecycle.jobs.arguments import parser_of
from tests.project.conftest import ROOT, SCRIPTS, load_script

DOCUMENTS = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "scripts").rglob("README.md"))]
    if path.exists()
]
LANGUAGES = {"bash", "json", "python", "sql", "text", "yaml"}
WHOLE = re.compile(r"(?:\.venv/bin/python|psql|cp|make|redis-cli)\s+\S")
SHORT = re.compile(r"(?:\w+=\S+ )*(?:(?:\.venv/bin/)?python )?(?:[\w-]+/)*(\w+)\.py(?:\s+(.*))?")
PLACEHOLDERS = ("FROM_THE_LOG", "THE_ARCHIVE", "THE_HOLD", "THE_ID", "THE_JOB", "THE_REQUEST", "THE_RUN", "OLD_NAME", "NAME", "KEY", "ID")  # fmt: skip
TOOLS = {"cp", "curl", "echo", "eval", "export", "kill", "make", "mkdir", "pip", "ps", "psql", "redis-cli", "sed"}
SOME_ID = "00000000-0000-4000-8000-000000000001"
SOME_MOMENT = "2026-01-01T00:00:00Z"  # the documents put nothing else into a flag by $(…)
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_BACKEND = {"migrate": migrate._arguments, "local_stack": local_stack._arguments}
_JOBS = {path.stem: path for path in SCRIPTS}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """One command: where it stands, and whether it is written whole."""

    document: str
    line: int
    text: str
    whole: bool = True

    def __str__(self):
        return f"{self.document}:{self.line}: {self.text}"


def blocks(document):
    """Each fenced block: its line, its language, its text without the fence's own indentation."""
    text = document.read_text()
    return [
        (text.count("\n", 0, m.start()) + 1, m[2], re.sub(rf"^{m[1]}", "", m[3], flags=re.MULTILINE))
        for m in _FENCE.finditer(text)
    ]


def commands(document):
    """Every command of a document, in its order."""
    name = str(document.relative_to(ROOT))
    found = []
    for line, language, text in blocks(document):
        if language == "bash":
            found += [Command(name, line + 1 + offset, command) for offset, command in split(text)]
    prose = _FENCE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), document.read_text())
    for match in _SPAN.finditer(prose):
        line = prose.count("\n", 0, match.start()) + 1
        if WHOLE.match(match[1]):
            found.append(Command(name, line, match[1]))
        elif (short := SHORT.fullmatch(match[1])) and short[2] and short[1] in {*_JOBS, *_BACKEND}:
            found.append(Command(name, line, match[1], whole=False))
    return sorted(found, key=lambda command: command.line)


def split(text):
    """The commands of a block with the lines at which they begin: a quote, a backslash or a heredoc goes on."""
    found, held, begin = [], [], 0
    for number, line in enumerate(text.splitlines()):
        if not held:
            begin = number
        held.append(line)
        command = "\n".join(held)
        heredoc = re.search(r"<<-?'?(\w+)'?", command)
        if heredoc and line.strip() != heredoc[1]:
            continue
        if not heredoc and (line.endswith("\\") or _open_quote(command)):
            continue
        if command.strip() and not command.lstrip().startswith("#"):
            found.append((begin, command))
        held = []
    return found


def _open_quote(command):
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def invocations(command):
    """The scripts that a command line starts: pairs of name and arguments, as the shell would split them."""
    text = _plain(command.text)
    found = []
    for part in [*_SUBSTITUTION.findall(text), _SUBSTITUTION.sub(SOME_MOMENT, text)]:
        words = shlex.split(part, comments=True)
        begins = [0, *(place + 1 for place, word in enumerate(words) if word in ("|", "&&"))]
        for begin, end in zip(begins, [*begins[1:], len(words) + 1], strict=True):
            own = words[begin : end - 1]
            own = own[: own.index(">")] if ">" in own else own
            for place, word in enumerate(own[:2]):
                name = word.rpartition("/")[2].removesuffix(".py")
                if word.endswith(".py") and name in {*_JOBS, *_BACKEND}:
                    found.append((name, own[place + 1 :]))
    return found


def _plain(text):
    """A command as one line, without what is written into its input, and with an id for each name in capitals."""
    text = text.partition("<<")[0].replace("\\\n", " ")
    return re.sub(rf"\b(?:{'|'.join(PLACEHOLDERS[:7])})\b", SOME_ID, text)


def programs(command):
    """The programs that a command line names first, between pipes."""
    words = shlex.split(_plain(command.text), comments=True)
    firsts = words[:1] + [after for before, after in pairwise(words) if before == "|"]
    return [word.rpartition("/")[2] for word in firsts]


def parse(name, arguments):
    """Let the script's own parser read arguments; SystemExit if it would refuse them."""
    if name in _BACKEND:
        _BACKEND[name](arguments)
    else:
        job = load_script(_JOBS[name]).JOB
        parser_of(job).parse_args(job.spelled(arguments))


def unknown(name, arguments):
    """What a script would not know of a short form: a verb, a flag."""
    if name in _BACKEND:
        known, verbs = {"--sample-app", "--status", "--check", "--grants", "--indexes", "--apply"}, {"start", "stop"}
        known |= {"--delete", "--rows"}
    else:
        known, verbs = _flags_and_verbs(parser_of(load_script(_JOBS[name]).JOB))
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    first = arguments[0] if arguments and not arguments[0].startswith("-") else None
    wrong = [flag for flag in flags if flag not in known]
    return wrong + ([first] if verbs and first and first not in verbs and name not in _BACKEND else [])


def _flags_and_verbs(parser):
    known, verbs = set(), set()
    for action in parser._actions:
        known |= set(action.option_strings)
        if isinstance(action.choices, dict):
            for verb, inner in action.choices.items():
                verbs.add(verb)
                known |= _flags_and_verbs(inner)[0]
    return known, verbs


def targets():
    """What make knows."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
