"""An object that is not what was written: found, named, and never half restored. In a folder and in a bucket."""

import pytest

from tests.lifecycle.archives.payments import MASTER_KEY

pytestmark = pytest.mark.soak

RESTORE = ("restore", "--policy", "payment_transactions")


class Place:
    """Where the objects are, whichever it is."""

    def __init__(self, settings, names, read, write):
        self.settings, self.names, self.read, self.write = settings, names, read, write


@pytest.fixture(params=["folder", "bucket"])
def place(request, folder):
    if request.param == "folder":
        return Place(
            {},
            lambda: [str(path.relative_to(folder)) for path in folder.rglob("*.archive")],
            lambda name: (folder / name).read_bytes(),
            lambda name, data: (folder / name).write_bytes(data),
        )
    bucket = request.getfixturevalue("bucket")
    return Place(bucket.settings(), bucket.names, bucket.read, bucket.write)


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "flipped in a frame": lambda data: flipped(data, len(data) - 30),
    "flipped in the header": lambda data: flipped(data, 20),
    "flipped in the magic": lambda data: flipped(data, 0),
    "cut off": lambda data: data[:-40],
    "cut off at the beginning": lambda data: data[:6],
    "empty": lambda data: b"",
    "something added": lambda data: data + b"more",
    "written twice": lambda data: data + data,
}


def test_round_trip(run, payments, place):
    payments.fill(50)
    assert run("--batch-size", "20", **place.settings).code == 0
    payments.balance()
    assert len(place.names()) == 3
    assert run("verify", **place.settings).code == 0
    assert run(*RESTORE, **place.settings).code == 0
    assert payments.rows() == payments.due | payments.survivors


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_named_and_not_restored(run, payments, place, damage):
    payments.fill(20)
    run("--batch-size", "10", **place.settings)
    broken, whole = place.names()
    place.write(broken, DAMAGES[damage](place.read(broken)))

    done = run("verify", **place.settings)
    assert done.code == 1
    assert done.event("archive_broken")["object"] in broken
    assert done.event("archive_intact")["object"] in whole
    (archive,) = [str(each) for (each,) in payments.catalogue("id") if str(each) in broken]
    restored = run(*RESTORE, "--archive", archive, **place.settings)
    assert (restored.code, restored.closing["exit_code"]) == (1, 1)
    assert payments.rows() == payments.survivors


def test_frames_cannot_be_moved_between_objects(run, payments, place):
    payments.fill(20)
    run("--batch-size", "10", **place.settings)
    one, other = place.names()
    data = place.read(one)
    place.write(one, place.read(other))
    place.write(other, data)
    done = run("verify", **place.settings)
    assert (done.code, len(done.events("archive_broken"))) == (1, 2)


def test_an_object_that_is_gone_is_named(run, payments, folder):
    payments.fill(20)
    run("--batch-size", "10")
    path, _ = folder.rglob("*.archive")
    path.unlink()
    done = run("verify")
    assert (done.code, done.event("archive_broken")["kind"]) == (1, "missing")
    assert path.name in done.event("archive_broken")["object"]


def test_an_object_that_nobody_knows_is_told(run, payments, place):
    payments.fill(5)
    run(**place.settings)
    (name,) = place.names()
    stranger = name.replace(".archive", "x.archive")
    place.write(stranger, b"?")
    done = run("verify", **place.settings)
    assert (done.code, done.event("archive_unknown")["object"] in stranger) == (0, True)


def test_a_lost_key_is_named(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("DELETE FROM ops.archive_keys WHERE kind = 'object'")
    done = run("verify")
    assert (done.code, done.event("archive_broken")["kind"]) == (1, "key_lost")
    assert done.closing["error"].startswith("1 of 1")


def test_a_lost_person_key_is_no_erasure(run, payments):
    payments.fill(5)
    run()
    payments.link.execute("DELETE FROM ops.archive_keys WHERE kind = 'person'")
    assert run("verify").event("archive_broken")["kind"] == "key_lost"
    assert run(*RESTORE).code == 1
    assert payments.rows() == payments.survivors


def test_the_master_key_is_never_in_the_database(run, payments):
    payments.fill(5)
    run()
    (text,) = payments.link.execute("SELECT string_agg(t::text, '') FROM ops.archive_keys t").fetchone()
    assert MASTER_KEY.partition(":")[2] not in text
