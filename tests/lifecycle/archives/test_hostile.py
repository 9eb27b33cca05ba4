"""Headers and catalogue lines that somebody made up: refused, named, and no word of them in a statement."""

import hashlib
import json
import struct

import pytest

from scripts.lifecycle.archives.catalogue import entries
from scripts.lifecycle.archives.format import Block, ObjectReader, ObjectWriter
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.lifecycle.archives.search import rows_of
from scripts.utils.archive_store import FolderStore
from tests.lifecycle.archives.test_format import Sink

RESTORE = ("restore", "--policy", "payment_transactions")
SQL = "numeric(10,2)) IS NULL; DROP TABLE public.canary; --"
TYPES = [
    SQL,
    "text; DROP TABLE public.canary",
    "text)::text FROM public.canary",
    "text /* ", "text -- ", "int4, public.canary", "(SELECT 1)", "'text'", "text' || 'x", "setof text", "void", "", "%s", "{}",
    "numeric(" + "9" * 5000 + ")",
    "x" * 100_000,
]  # fmt: skip
KINDS = [
    "null",
    "[]",
    "7",
    '"columns"',
    "{}",
    '{"columns": "id"}',
    '{"key": "id", "personal": [], "columns": [["id", 5]]}',
    '{"key": "id", "personal": [], "columns": [["id", "text", "text"]]}',
    '{"key": "id", "personal": [], "columns": [["id", "text"], ["id", "text"]]}',
    '{"key": "nothing", "personal": [], "columns": [["id", "text"]]}',
    '{"key": [], "personal": [], "columns": [["id", "text"]]}',
    '{"key": {"a": "id"}, "personal": [], "columns": [["id", "text"]]}',
    '{"key": "id", "personal": ["x"], "columns": [["id", "text"]]}',
    '{"key": "id", "personal": null, "columns": []}',
]
NESTED = "[" * 50_000 + "]" * 50_000


class Forger:
    """An attacker who can write to the archive store, and who has the object's key if a test gives it."""

    def __init__(self, payments, folder, db, settings):
        self.link = payments.link
        self.store = FolderStore(folder)
        (self.path,) = folder.rglob("*.archive")
        (self.archive, self.name), *_ = self.link.execute("SELECT id, object FROM ops.archives").fetchall()
        self.key = ArchiveKeys(db, settings).object_key(self.archive)

    def exchange_header(self, text):
        """Write another header over the one that is there, without the key."""
        data = self.path.read_bytes()
        (length,) = struct.unpack_from(">I", data, 8)
        self.path.write_bytes(data[:8] + struct.pack(">I", len(text)) + text.encode() + data[12 + length :])

    def seal(self, monkeypatch, text):
        """Write the object anew under its own key, with a header of this text; the catalogue knows its hash."""
        blocks = [
            part for part in ObjectReader("x", [self.path.read_bytes()]).blocks(self.key) if isinstance(part, Block)
        ]
        out = Sink()
        with monkeypatch.context() as patched:
            patched.setattr("scripts.lifecycle.archives.format.json.dumps", _dumps(text))
            writer = ObjectWriter(out, self.key, {"forged": True})
            for block in blocks:
                writer.add(block)
            writer.finish()
        self.path.write_bytes(out)
        self.link.execute(
            "UPDATE ops.archives SET sha256 = %s, bytes = %s", (hashlib.sha256(out).hexdigest(), len(out))
        )

    def header(self):
        reader = ObjectReader("x", [self.path.read_bytes()])
        list(reader.blocks(self.key))
        return reader.header

    def note(self, manifest):
        self.link.execute("UPDATE ops.archives SET manifest = %s::jsonb", (manifest,))


def _dumps(text):
    whole = json.dumps
    return lambda value, **options: text if value == {"forged": True} else whole(value, **options)


@pytest.fixture
def forger(run, payments, folder, db, settings):
    """One archive of five rows, of which two are one person's, and a table that must survive."""
    payments.fill(5)
    assert run().code == 0
    payments.link.execute("CREATE TABLE public.canary AS SELECT 1 AS alive")
    return Forger(payments, folder, db, settings)


@pytest.fixture
def refused(run, payments, forger, db, settings):
    """Assert that nobody reads it: not to verify, not to restore, not to tell a person what is known of her."""

    def check():
        done = run("verify")
        assert (done.code, done.event("archive_broken")["kind"]) == (1, "broken")
        assert forger.name in done.event("archive_broken")["object"]
        restored = run(*RESTORE)
        assert restored.code == 1
        assert forger.name in restored.closing["error"]
        with pytest.raises(Exception, match=str(forger.archive)) as error:
            list(rows_of(db, forger.store, ArchiveKeys(db, settings), "person.4@example.com", db.read(entries)))
        assert type(error.value).__name__ == "ArchiveBroken"
        assert payments.rows() == payments.survivors
        assert payments.link.execute("SELECT alive FROM public.canary").fetchone() == (1,)

    return check


@pytest.mark.parametrize(
    "text",
    [*KINDS, NESTED, '{"a":' * 9_000 + "1" + "}" * 9_000, '{"table": 1, "table": 2}', "x" * 2_000_000, "\x00", "{"],
    ids=str,
)
def test_a_header_that_nobody_sealed_is_not_even_read(forger, refused, text):
    forger.exchange_header(text)
    refused()


@pytest.mark.parametrize(
    "text", [*KINDS, NESTED, '{"table": 1, "table": 2}', '{"n": NaN}', "{"], ids=lambda text: text[:60]
)
def test_a_sealed_header_that_is_none_is_refused(forger, refused, monkeypatch, text):
    forger.seal(monkeypatch, text)
    refused()


@pytest.mark.parametrize("change", ["table", "personal", "columns", "archive", "key"])
def test_a_sealed_header_that_says_something_else_than_the_catalogue_is_refused(forger, refused, monkeypatch, change):
    forger.seal(monkeypatch, json.dumps(forger.header() | {change: "public.canary"}))
    refused()


@pytest.mark.parametrize("name", ["table", "columns"])
def test_a_sealed_header_with_a_name_twice_is_refused(forger, refused, monkeypatch, name):
    """Although the later of the two is the catalogue's."""
    text = json.dumps(forger.header())
    forger.seal(monkeypatch, text.replace(f'"{name}"', f'"{name}": "public.canary", "{name}"', 1))
    refused()


@pytest.mark.parametrize(
    "manifest", [*KINDS, "[" * 4000 + "]" * 4000, '{"a":' * 4000 + "1" + "}" * 4000], ids=lambda text: text[:60]
)
def test_a_catalogue_that_describes_no_archive_is_refused_and_keeps_nothing_else(
    run, payments, forger, refused, manifest
):
    forger.note(manifest)
    refused()
    assert run("list").events("archive")[0]["archive"] == str(forger.archive)
    assert run().code == 0, "another day's run goes on"


@pytest.mark.parametrize("type_name", TYPES, ids=lambda text: text[:40])
def test_the_name_of_a_type_is_never_a_statement(run, payments, forger, monkeypatch, type_name):
    """Header and catalogue agree, seal and hash are right, and the table has changed: types have to be compared."""
    payments.link.execute("ALTER TABLE payment_transactions ALTER amount TYPE numeric(14,4)")
    columns = [[name, type_name if name == "amount" else kind] for name, kind in forger.header()["columns"]]
    forger.seal(monkeypatch, json.dumps(forger.header() | {"columns": columns}))
    forger.note(json.dumps(forger.header()))

    done = run(*RESTORE)

    assert payments.link.execute("SELECT alive FROM public.canary").fetchone() == (1,)
    assert (done.code, payments.rows().keys()) == (1, payments.survivors.keys())
    assert len(done.closing["error"]) < 500


def test_types_that_are_gone_are_compared_by_their_text(run, payments, forger, monkeypatch):
    columns = [[name, "public.gone" if name == "currency" else kind] for name, kind in forger.header()["columns"]]
    forger.seal(monkeypatch, json.dumps(forger.header() | {"columns": columns}))
    forger.note(json.dumps(forger.header()))
    assert run(*RESTORE).code == 0
    assert payments.rows() == payments.due | payments.survivors


def test_one_broken_archive_does_not_keep_the_others_from_coming_back(run, payments, folder):
    payments.fill(30)
    assert run("--batch-size", "10").code == 0
    newest, _, oldest = (f"payment_transactions/{archive}.archive" for (archive,) in reversed(payments.catalogue("id")))
    (folder / newest).write_bytes(b"")
    (folder / oldest).unlink()

    done = run(*RESTORE)

    assert (done.code, len(done.events("archive_not_restored"))) == (1, 2)
    assert "2 archives were not restored" in done.closing["error"]
    assert len(payments.rows()) == len(payments.survivors) + 10
