"""One canonical name of a blob: the same in Python and in PostgreSQL, and the same for every spelling of one blob."""

from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scripts.utils.blob_names import blob_name, doubt, meanings

OURS, OTHER = "abc123", "zzz999"
HOST = f"{OURS}.public.blob.vercel-storage.com"
PIECES = [
    *("d/a b.pdf", "plan", "a%20b", "%2525", "%", "%ff", "%C3%A9", "%E2%80%AF", "%00", "%2F", "%2e", "é", "e\u0301"),
    *("\u212a", "\u017f", "😀", "/", "//", ".", "..", "/./", "\\", "?", "?download=1", "#", "#top", " ", "\t", "\n"),
    *("\xa0", "\ufeff", "\u200b", "\x7f", "\x85", "@", ":", ":443", ":80", ":8443", "user@", "https://", "HTTP://"),
    *(
        '"',
        "'",
        "[",
        "](",
        ")",
        "{",
        "<",
        ">",
        "|",
        ",",
        "&w=640",
        "=",
        "/_next/image?url=",
        "*",
        "\u201c",
        "%22",
        "%5B",
    ),
    *("ftp://", "://", HOST, HOST.upper(), f"{HOST}.", HOST.replace("public", "private"), "cdn.example.com", OTHER),
    *(f"{OTHER}.public.blob.vercel-storage.com", f"https://{HOST}/", f"http://{HOST}:80/", f"//{HOST}/", "\u2028", "A"),
]
NAMES = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
)


@pytest.fixture
def link(database):
    return database.superuser()


def in_sql(link, name):
    return link.execute("SELECT store, pathname, certain, key FROM ops.blob_parts(%s)", (name,)).fetchone()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, prefix=st.sampled_from(["", "d/", "plan"]))
@example(name=f"https://\u212a{HOST[1:]}/x", prefix="")
@example(name=f"https://{HOST}/%C2%A0x", prefix="")
@example(name="", prefix="d/")
def test_python_and_postgresql_give_the_same_answer(link, name, prefix):
    found = blob_name(name)
    assert in_sql(link, name) == (found.store, found.pathname, found.certain, found.key)
    assert link.execute("SELECT ops.blob_doubt(%s)", (name,)).fetchone() == (doubt(name),)
    keys = link.execute("SELECT key FROM ops.blob_meanings(%s, %s)", (name, found.key)).fetchall()
    assert {key for (key,) in keys} == set(meanings(name))
    trouble = link.execute(
        "SELECT ops.blob_trouble(n.store, n.pathname, %s, %s) FROM ops.blob_parts(%s) n", (OURS, prefix, name)
    )
    assert trouble.fetchone() == (found.trouble(OURS, prefix),)


PATHNAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=8).filter(
        lambda segment: segment not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)


def octets(text):
    return "".join(f"%{octet:02x}" for octet in text.encode())


SPELLINGS = [
    lambda p: f"https://{HOST}/{quote(p)}",
    lambda p: f"https://{HOST}/{quote(p)}?download=1",
    lambda p: f"https://{HOST}/{quote(p)}#page=2",
    lambda p: f"HTTPS://{HOST.upper()}:443/{quote(p)}",
    lambda p: f"http://{HOST}:80/{quote(p)}",
    lambda p: f"https://{HOST}:/{quote(p)}",
    lambda p: f"https://{HOST}./{quote(p)}",
    lambda p: f"https://{HOST.replace('public', 'private')}/{octets(p)}",
    lambda p: f"https://{HOST}/{quote(p, safe='')}",
]


@settings(max_examples=200, deadline=None)
@given(pathname=PATHNAMES)
def test_every_spelling_of_a_blob_is_one_name(pathname):
    for spelling in SPELLINGS:
        found = blob_name(spelling(pathname))
        assert (found.store, found.pathname, found.certain) == (OURS, pathname, True)
        assert found.key == blob_name(pathname).key


CARRIERS = [
    lambda p: f'"{p}"',
    lambda p: f"'{p}'",
    lambda p: f'"https://{HOST}/{quote(p)}"',
    lambda p: f'{{"url": "https://{HOST}/{quote(p)}"}}',
    lambda p: f"[plan](https://{HOST}/{quote(p)})",
    lambda p: f"<https://{HOST}/{quote(p)}>",
    lambda p: f"https://files.example.com/delivery/{quote(p)}",
    lambda p: f"/_next/image?url={quote(f'https://{HOST}/{quote(p)}', safe='')}&w=640",
    lambda p: f"https://shop.example.com/_next/image?url={quote(f'https://{HOST}/{quote(p)}', safe='')}&w=640",
]


@pytest.mark.parametrize(
    "pathname", ["d/x.pdf", "d/a b.pdf", "d/plan (1).pdf", "keto-meal-plan-é/R&D [2], x.pdf", "d/a%20b"]
)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_value_that_carries_a_name_may_mean_its_blob_and_stands_under_one_of_its_keys(link, carrier, pathname):
    value = carrier(pathname)
    assert blob_name(pathname).key in meanings(value)
    found = link.execute(
        "SELECT ops.blob_key(%(value)s) = ANY(ops.blob_lookups(%(blob)s))"
        " AND ops.may_name_blob(%(value)s, %(store)s, %(blob)s)",
        {"value": value, "blob": pathname, "store": OURS},
    )
    assert found.fetchone() == (True,)


DOUBTFUL = [
    lambda p: f" {p}",
    lambda p: f"{p}\t",
    lambda p: f"\xa0{p}",
    lambda p: f"\ufeffhttps://{HOST}/{quote(p)}",
    lambda p: f" https://{HOST}/{quote(p)}",
    lambda p: f"https://{HOST}//{quote(p)}",
    lambda p: f"//{p}",
    lambda p: f"https://{HOST}:8443/{quote(p)}",
    lambda p: f"https://someone@{HOST}/{quote(p)}",
    lambda p: f"//{HOST}/{quote(p)}",
    lambda p: f"{HOST}/{quote(p)}",
    lambda p: f"ftp://{HOST}/{quote(p)}",
    lambda p: f"https://cdn.example.com/{quote(p)}",
    lambda p: f"x/../{p}",
    lambda p: f"{p}?download=1",
    octets,
]


@settings(max_examples=200, deadline=None)
@given(pathname=PATHNAMES)
def test_what_may_mean_a_blob_has_its_key_and_is_not_certain(pathname):
    for spelling in DOUBTFUL:
        found = blob_name(spelling(pathname))
        assert (found.key, found.certain) == (blob_name(pathname).key, False), spelling(pathname)


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("d/a.pdf", None),
        ("/d/a.pdf", None),
        (f"https://{HOST}/d/a.pdf", None),
        ("d/100%.pdf", None),
        ("d/a%20b.pdf", None),
        (" d/a.pdf", "bad_name"),
        ("", "bad_name"),
        ("d/a\tb.pdf", "bad_name"),
        (f"https://{HOST}/d/%zz.pdf", "bad_name"),
        (f"https://{HOST}/d/%ff.pdf", "bad_name"),
        (f"https://{HOST}/d/%00.pdf", "bad_name"),
        (f"https://{HOST}:8443/d/a.pdf", "bad_name"),
        (f"https://{OTHER}.public.blob.vercel-storage.com/d/a.pdf", "foreign_store"),
        ("https://example.com/d/a.pdf", "foreign_store"),
        ("://d/a.pdf", "foreign_store"),
        ("e/a.pdf", "outside_prefix"),
        ("d/../e/a.pdf", "outside_prefix"),
        ("d//a.pdf", "outside_prefix"),
    ],
)
def test_what_is_no_name_of_ours_says_why(name, trouble):
    assert blob_name(name).trouble(OURS, "d/") == trouble


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("d/a b.pdf", True),
        ("d/a%20b.pdf", True),
        (f"https://{HOST}/d/a%20b.pdf", True),
        (f"https://{HOST}/d/a%2520b.pdf", False),
        (f"https://{OTHER}.public.blob.vercel-storage.com/d/a%20b.pdf", False),
        ("https://cdn.example.com/d/a%20b.pdf", True),
        ("d/a b.pdf ", True),
        ('"d/a b.pdf"', True),
        ("https://cdn.example.com/files/d/a%20b.pdf", True),
        ("d/A b.pdf", False),
    ],
)
def test_which_values_may_name_a_blob(link, name, may):
    found = link.execute(
        "SELECT ops.blob_key(%(name)s) = ANY(ops.blob_lookups(%(blob)s)) AND ops.may_name_blob(%(name)s, %(store)s, %(blob)s)",
        {"name": name, "blob": "d/a b.pdf", "store": OURS},
    )
    assert found.fetchone() == (may,)


def test_a_key_can_be_indexed_whatever_the_length(link):
    link.execute("CREATE TABLE public.named (name text); CREATE INDEX ON public.named (ops.blob_key(name))")
    link.execute("INSERT INTO public.named SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n")
    assert link.execute("SELECT length(ops.blob_key(name)) FROM public.named").fetchone() == (32,)
