"""What is written is for its owner alone, from the first byte, and lands where it was meant to."""

import os
import stat

import pytest

from backend.blob_store import BlobStore
from scripts.utils import pages, private_files
from scripts.utils.archive_store import ArchiveStoreFailed, FolderStore, ObjectMissing
from scripts.utils.errors import Misconfigured
from scripts.utils.metrics_utils import METRICS, Figure
from scripts.utils.prometheus_sinks import TextfileSink

BAD_NAMES = ["", "/etc/x", "../x", "a/../x", "a//x", "a/", ".", "..", "a/./x", "a\\..\\x", "a\0b", "a\nb"]


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def store(tmp_path):
    root = tmp_path / "archives"
    root.mkdir()
    return FolderStore(root)


def put(store, name, content=b"x"):
    with store.writing(name) as file:
        file.write(content)


def test_objects_are_private_from_their_first_byte(store, tmp_path):
    with store.writing("policy/2026/one.archive") as file:
        file.write(b"secret")
        (unfinished,) = (tmp_path / "archives" / "policy" / "2026").iterdir()
        assert mode(unfinished) == 0o600
    assert mode(tmp_path / "archives/policy/2026/one.archive") == 0o600
    assert [mode(tmp_path / "archives" / folder) for folder in ("policy", "policy/2026")] == [0o700, 0o700]
    assert list(store.names()) == ["policy/2026/one.archive"]
    assert b"".join(store.read("policy/2026/one.archive")) == b"secret"


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("verb", ["writing", "read", "delete"])
def test_a_name_that_could_lead_out_of_the_store_is_refused(store, tmp_path, name, verb):
    with pytest.raises(ArchiveStoreFailed, match="name of an object is refused"):  # noqa: PT012
        if verb == "writing":
            put(store, name)
        elif verb == "read":
            list(store.read(name))
        else:
            store.delete(name)
    assert list((tmp_path / "archives").iterdir()) == []


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if "\0" not in name])
def test_the_database_refuses_the_same_names(database, name):
    link = database.superuser()
    (rule,) = link.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'archives_object_check'"
    ).fetchone()
    link.execute(f"CREATE TABLE public.objects (object text NOT NULL, {rule.removesuffix(' NOT VALID')})")
    link.execute("INSERT INTO public.objects VALUES ('policy/one.archive'), ('..a/b..c/…')")
    with pytest.raises(Exception, match="violates check constraint"):
        link.execute("INSERT INTO public.objects VALUES (%s)", (name,))


def test_no_link_is_followed_on_the_way_to_an_object(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_bytes(b"theirs")
    (tmp_path / "archives" / "policy").symlink_to(elsewhere)
    with pytest.raises(ArchiveStoreFailed, match="could not be written"):
        put(store, "policy/x")
    with pytest.raises(ArchiveStoreFailed, match="could not be read"):
        list(store.read("policy/x"))
    with pytest.raises(ArchiveStoreFailed, match="could not be deleted"):
        store.delete("policy/x")
    assert (elsewhere / "x").read_bytes() == b"theirs"
    assert list(store.names()) == []


def test_a_link_in_an_objects_place_is_replaced_and_never_read_or_written_through(store, tmp_path):
    target = tmp_path / "theirs"
    target.write_bytes(b"theirs")
    for name in ("x", ".incomplete-x"):
        (tmp_path / "archives" / name).symlink_to(target)
    with pytest.raises(ArchiveStoreFailed, match="could not be read"):
        list(store.read("x"))
    put(store, "x", b"ours")
    assert (target.read_bytes(), b"".join(store.read("x"))) == (b"theirs", b"ours")
    store.delete("x")
    with pytest.raises(ObjectMissing):
        list(store.read("x"))


def test_the_place_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    put(FolderStore(tmp_path / "link"), "a/b")
    assert (tmp_path / "disk/a/b").read_bytes() == b"x"


def test_what_fails_half_way_leaves_nothing(store, tmp_path):
    put(store, "x", b"before")
    with pytest.raises(ZeroDivisionError), store.writing("x") as file:  # noqa: PT012
        file.write(b"half")
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "archives").iterdir()] == ["x"]
    assert b"".join(store.read("x")) == b"before"


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o400, 0o400), (0o640, 0o600), (None, 0o600)])
def test_a_report_never_gets_more_readers_than_it_had(tmp_path, before, after):
    path = tmp_path / "report.html"
    if before:
        path.write_text("old")
        path.chmod(before)
    pages.write(path, "new")
    assert (path.read_text(), mode(path)) == ("new", after)


def test_a_report_is_not_written_through_a_link(tmp_path):
    target, link = tmp_path / "theirs", tmp_path / "report.html"
    target.write_text("theirs")
    link.symlink_to(target)
    with pytest.raises(Misconfigured, match="is a symbolic link"):
        pages.write(link, "new")
    assert target.read_text() == "theirs"


def test_a_file_is_private_while_it_is_written(tmp_path):
    with private_files.folder(tmp_path) as within, private_files.replacing(within, "a") as file:
        file.write(b"x")
        (unfinished,) = tmp_path.iterdir()
        assert mode(unfinished) == 0o600
    assert mode(tmp_path / "a") == 0o600


def test_everything_of_a_local_blob_store_is_private(tmp_path):
    store = BlobStore(tmp_path / "a" / "store")
    store.put("meal-plans/one.pdf", b"hers")
    list(store.populate(3, "meal-plans/many-"))
    found = {path: mode(path) for path in (tmp_path / "a").rglob("*")} | {tmp_path / "a": mode(tmp_path / "a")}
    store.close()
    assert {path.name for path in found} >= {"store", "blobs", "index.sqlite3", "index.sqlite3-wal"}
    assert len([path for path in found if path.parent.name == "blobs"]) == 4
    assert found == {path: 0o700 if path.is_dir() else 0o600 for path in found}


def test_a_local_blob_store_keeps_what_a_file_s_rights_lack(tmp_path):
    store = BlobStore(tmp_path / "store")
    store.put("one.pdf", b"before")
    (path,) = store.files.iterdir()
    path.chmod(0o400)
    store.put("one.pdf", b"after", overwrite=True)
    assert (mode(path), store.read("one.pdf")) == (0o400, b"after")
    store.close()


@pytest.mark.parametrize("name", ["blobs", "index.sqlite3"])
@pytest.mark.parametrize("there", [True, False])
def test_a_local_blob_store_follows_no_link(tmp_path, name, there):
    elsewhere, place = tmp_path / "elsewhere", tmp_path / "store"
    place.mkdir()
    if there and name == "blobs":
        elsewhere.mkdir()
    elif there:
        elsewhere.write_bytes(b"")
    (place / name).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"index\.sqlite3|blobs"):
        BlobStore(place)
    assert not there or elsewhere.stat().st_size == (elsewhere.stat().st_size if elsewhere.is_dir() else 0)
    assert there or not elsewhere.exists()


def test_a_blob_s_file_that_is_a_link_is_neither_read_nor_written_through(tmp_path):
    store = BlobStore(tmp_path / "store")
    store.put("one.pdf", b"hers")
    (path,) = store.files.iterdir()
    path.unlink()
    path.symlink_to(tmp_path / "other")
    (tmp_path / "other").write_bytes(b"of somebody else")
    with pytest.raises(OSError, match=r"one\.pdf"):
        store.read("one.pdf")
    store.put("one.pdf", b"hers", overwrite=True)
    assert (store.read("one.pdf"), (tmp_path / "other").read_bytes()) == (b"hers", b"of somebody else")
    store.close()


def test_figures_for_a_collector_are_readable_by_all_unless_a_person_took_that_away(tmp_path):
    path, other = tmp_path / "lifecycle_job.prom", tmp_path / "other"
    other.write_text("of somebody else")
    figures = [Figure(next(iter(METRICS)), 1.0, {})]
    for before, after in ((None, 0o644), (0o600, 0o600), (0o666, 0o644)):
        if before is not None:
            path.chmod(before)
        TextfileSink(tmp_path).send("job", figures)
        assert mode(path) == after
    path.unlink()
    path.symlink_to(other)
    TextfileSink(tmp_path).send("job", figures)
    assert (path.is_symlink(), other.read_text()) == (False, "of somebody else")
