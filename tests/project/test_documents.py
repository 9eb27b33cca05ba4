"""What the documents tell people to type: every script, verb, flag, target and tool in them is there."""

import html
import re
import shlex

import pytest

from tests.project import commands as documented
from tests.project.conftest import ROOT

each_document = pytest.mark.parametrize("document", documented.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_document
def test_every_block_says_what_it_is(document):
    for line, language, _ in documented.blocks(document):
        assert language in documented.LANGUAGES, f"{document.relative_to(ROOT)}:{line}: ```{language}"


@each_document
def test_every_command_line_is_one_that_its_script_takes(document, capsys):
    refused = []
    for command in documented.commands(document):
        if not command.whole:
            name, rest = documented.SHORT.fullmatch(command.text).groups()
            wrong = documented.unknown(name, shlex.split(rest))
            refused += [f"{command}: {name}.py knows no {word}" for word in wrong]
            continue
        for name, arguments in documented.invocations(command):
            try:
                documented.parse(name, arguments)
            except SystemExit as misuse:
                if misuse.code:
                    refused.append(f"{command}: {capsys.readouterr().err.splitlines()[-1]}")
    assert refused == []


@each_document
def test_every_program_and_target_is_known(document):
    """A tool that is not here yet has to be looked at by somebody, who then adds it to the list."""
    strange = []
    for command in documented.commands(document):
        if not command.whole:
            continue
        for program in documented.programs(command):
            known = program in documented.TOOLS or program.startswith("python") or program in ("head", "grep")
            if not known:
                strange.append(f"{command}: {program}")
        if (named := re.match(r"make ([a-z-]+)", command.text)) and named[1] not in documented.targets():
            strange.append(f"{command}: no target {named[1]}")
        stand_ins = set(re.findall(r"\b(?:THE_[A-Z_]+|FROM_[A-Z_]+)\b", command.text))
        strange += [f"{command}: {word} stands for nothing" for word in stand_ins - set(documented.PLACEHOLDERS)]
    assert strange == []


@each_document
def test_every_path_that_a_command_names_is_there(document):
    missing = []
    for command in documented.commands(document):
        paths = re.findall(r"(?<![\w/.-])(?:scripts|backend|benchmarks|docs)/[\w./-]+\.\w+", command.text)
        made = "newsletter_signups"  # CONTRIBUTING.md makes it itself
        missing += [f"{command}: {path}" for path in paths if made not in path and not (ROOT / path).exists()]
    assert missing == []


def test_the_search_finds_commands():
    """Of the README's by hand: a block of seven lines, and what it is made of."""
    texts = [command.text for command in documented.commands(ROOT / "README.md")]
    assert any(text.startswith("make demo") for text in texts)
    assert ".venv/bin/python scripts/cleanup/cleanup_quiz_responses.py --limit 10" in texts
    assert sum(len(documented.commands(document)) for document in documented.DOCUMENTS) > 120


def test_a_block_is_split_where_a_shell_would(tmp_path):
    text = "a \\\n  b\n# no command\nc 'd\ne'\nf <<'X'\ng\nX\n"
    assert documented.split(text) == [(0, "a \\\n  b"), (3, "c 'd\ne'"), (5, "f <<'X'\ng\nX")]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("`stop_switch.py off`", ["off"]),
        ("`process_queue.py resolve THE_ID --now`", ["--now"]),
        ("`legal_holds.py list --log-format json`", []),
    ],
)
def test_a_short_form_with_a_verb_or_flag_that_is_not_there(command, said):
    name, rest = documented.SHORT.fullmatch(command.strip("`")).groups()
    assert documented.unknown(name, shlex.split(rest)) == said


def test_the_picture_is_of_a_run_and_the_readme_says_what_is_in_it():
    text = (ROOT / "README.md").read_text()
    picture = html.unescape((ROOT / "docs" / "run.svg").read_text()).replace("\xa0", " ")
    assert "(docs/run.svg)" in text
    for said in ("--dry-run", "cleanup_completed", "would delete", "audit_intact", "exit_code=4"):
        assert said in re.sub(r"<[^>]*>", "", picture), f"docs/run.svg does not show {said}: make picture"
    (orders,) = re.findall(r"here (\d+) orders", text)
    assert f"records_queued={orders}" in re.sub(r"<[^>]*>", "", picture)
    assert "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", picture), "it fetches nothing"
