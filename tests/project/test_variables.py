"""The settings, the example file and the README's table say the same."""

import re
import subprocess

import pytest
from pydantic import SecretStr

from scripts.utils.settings import Settings, load_settings
from tests.project.conftest import ROOT

# Read by backend/migrate.py, which is no job: the owner of the tables must not be in a job's environment.
MIGRATION = ["DATABASE_URL_UNPOOLED", "MIGRATION_DATABASE_URL"]
FIELDS = {field.alias: field for field in Settings.model_fields.values()}
EXAMPLE = ROOT / ".env.example"
REFERENCE = ROOT / "docs" / "variables.md"
README = ROOT / "README.md"
NOTHING = ("", "-", "—", "none", "unset")


def written(default):
    """Return a default as a file spells it; None and an empty set are empty."""
    if default is None or default == frozenset():
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def example():
    """Return for each name in .env.example: whether it is commented out, its value, and the comment above it."""
    found, above = {}, ""
    for line in EXAMPLE.read_text().splitlines():
        if match := re.fullmatch(r"(# )?([A-Z][A-Z0-9_]*)=(.*)", line):
            assert match[2] not in found, f"{match[2]} is there twice"
            found[match[2]] = (bool(match[1]), match[3], above)
        above = line.removeprefix("# ")
    return found


def table(document):
    """Return for each name in a document's table of variables its cells: required, default, meaning."""
    rows = re.findall(r"^\| `([A-Z][A-Z0-9_]*)` \|(.*)\|(.*)\|(.*)\|$", document.read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in cells] for name, *cells in rows}


def test_the_example_names_every_setting_in_their_order():
    assert [name for name in example() if name not in MIGRATION] == list(FIELDS)
    assert set(MIGRATION) < set(example())


@pytest.mark.parametrize("name", FIELDS)
def test_the_example_says_what_the_setting_says(name):
    commented, value, above = example()[name]
    field = FIELDS[name]
    assert above == field.description
    assert commented is not field.is_required()
    if commented:
        assert value == written(field.default)


def test_the_example_s_own_values_are_fake_and_valid(monkeypatch):
    required = {name: value for name, (commented, value, _) in example().items() if not commented}
    assert required.keys() == {name for name, field in FIELDS.items() if field.is_required()}
    for name, value in required.items():
        assert ".invalid" in value, "this name never resolves"
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.database_url.get_secret_value() == required["DATABASE_URL"]


def test_a_shell_reads_the_example(tmp_path):
    """Uncommented as it stands, every line is a default: nothing changes but the two that are required."""
    text = re.sub(r"^# (?=[A-Z][A-Z0-9_]*=)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    (tmp_path / "settings").write_text(text)
    done = subprocess.run(
        ["/bin/sh", "-c", "set -a; . ./settings; env"], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    values = dict(line.split("=", 1) for line in done.stdout.splitlines())
    loaded = Settings(**{name: values[name] for name in FIELDS if values[name]})
    for name, field in FIELDS.items():
        if not field.is_required():
            value = getattr(loaded, name.lower())
            assert value == field.default
            assert not isinstance(value, SecretStr)


def test_the_reference_has_every_variable():
    assert table(REFERENCE).keys() == {*FIELDS, *MIGRATION}


@pytest.mark.parametrize("name", FIELDS)
def test_the_reference_says_what_the_setting_says(name):
    required, default, meaning = table(REFERENCE)[name]
    field = FIELDS[name]
    assert required.lower().startswith("yes") is field.is_required()
    default = default.strip("`")
    assert ("" if default.lower() in NOTHING else default) == ("" if field.is_required() else written(field.default))
    assert meaning


def test_the_readme_has_ten_of_them_as_the_reference_says_them():
    shown = table(README)
    assert len(shown) == 10
    assert shown.items() <= table(REFERENCE).items()
