"""What is an address, and which two are one mailbox: Python and PostgreSQL give the same answer."""

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from scripts.utils.addresses import Address, NoAddress, normal_form
from scripts.utils.errors import ExitCode

ADDRESSES = {
    "Anna@Example.COM": "anna@example.com",
    "  anna@example.com\n": "anna@example.com",
    "a.n.n.a@gmail.com": "anna@gmail.com",
    "Anna+diet@gmail.com": "anna@gmail.com",
    "an.na+a+b@GoogleMail.com": "anna@gmail.com",
    "an.na+diet@example.com": "an.na+diet@example.com",
    "anna@mail.gmail.com": "anna@mail.gmail.com",
    '"quoted name"@x.example': '"quoted name"@x.example',
    '"Quoted@Name"@x.example': '"quoted@name"@x.example',
    '"needless"@x.example': "needless@x.example",
    "o'brien@x.example": "o'brien@x.example",
    "jürgen@x.example": "jürgen@x.example",
    "Straße@x.example": "straße@x.example",
    "\u0131@x.example": "\u0131@x.example",
    "anna@corp.local": "anna@corp.local",
}
NONE = (
    "",
    "anna",
    "anna@",
    "@example.com",
    "anna@localhost",
    "an na@example.com",
    "+x@gmail.com",
    ".@gmail.com",
    ".anna@example.com",
    "an..na@example.com",
    "<plain2@hotmail.com>",
    "mailto:plain2@hotmail.com",
    "plain2@hotmail.com.",
    "plain2@hotmail.com,",
    "plain2@hotmail.com;",
    "plain2@hotmail.com?subject=x",
    "a@x.example,b@y.example",
    "a@x.example;b@y.example",
    "a@x.example b@y.example",
    "a@x.example\nb@y.example",
    "a@x.example\r\nbcc: b@y.example",
    "%0d%0abcc:b@y.example",
    "a@x.example%0d%0abcc:b@y.example",
    "a@b@x.example",
    "Anna <a@x.example>",
    '"Anna" <a@x.example>',
    "a(comment)@x.example",
    "a@(comment)x.example",
    "@relay.example:a@x.example",
    "<@relay.example:a@x.example>",
    "friends: a@x.example;",
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "a@192.0.2.1",
    "a@x.1",
    "a\0@x.example",
    "a\u202eb@x.example",
    "a\u200b@x.example",
    "a\u00a0@x.example",
    "\u3000a@x.example",
    "a\uff20x.example",
    "a@x_y.example",
    "a@-x.example",
    '"a\\"b"@x.example',
    '"a\nb"@x.example',
    '"open@x.example',
    '""@x.example',
    '"a.b"@gmail.com',
    "\u212aelvin@x.example",
    "ju\u0308rgen@x.example",
    "J\u00dcRGEN@x.example",
    "\uff21nna@x.example",
    "\u0130@x.example",
    "\u1e9e@x.example",
    "anna@stra\u00dfe.example",
    "anna@\uff58.example",
    "anna@xn--strae-oqa.example",
    "\ud800@x.example",
    "=?utf-8?q?x?=@x.example",
    "a" * 321 + "@x.example",
)


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_is_normalized_as_the_application_does(text):
    address = Address.parse(text)

    assert (address.raw, address.normalized) == (text.strip(), ADDRESSES[text])
    assert "@" not in repr(address)


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_address_is_refused_without_repeating_it(text):
    with pytest.raises(NoAddress) as refusal:
        Address.parse(text)

    assert str(refusal.value).startswith("that is not an e-mail address")
    assert "@" not in str(refusal.value)
    assert refusal.value.exit_code is ExitCode.MISCONFIGURED


ODD_LETTERS = [
    chr(letter) for letter in (0x212A, 0x131, 0x130, 0xDF, 0x1E9E, 0xFF21, 0xFC, 0xDC, 0x308, 0x3A3, 0xA0, 0x1C)
]
WORDS = [
    "anna",
    "A.n",
    "+tag",
    "@",
    "@gmail.com",
    "@GoogleMail.com",
    "@x.example",
    '"',
    '"a b"',
    " ",
    "\n",
    "\t",
    "kKuI",
]
PIECES = st.sampled_from(WORDS + ODD_LETTERS)
TEXTS = st.lists(PIECES, max_size=6).map("".join) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20
)


@pytest.fixture(params=["template", "C", "C.UTF-8", "PG_UNICODE_FAST"])
def server(request, stack, database, administrator):
    """A connection to a database that has the suite's rule, and folds letters in its own way."""
    if request.param == "template":
        yield database.superuser()
        return
    name = f"{database.name}_folding"
    kind = (
        "LC_COLLATE 'C' LC_CTYPE 'C'"
        if request.param == "C"
        else f"LOCALE_PROVIDER builtin BUILTIN_LOCALE '{request.param}'"
    )
    administrator.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' " + kind).format(sql.Identifier(name))
    )
    (rule,) = database.superuser().execute("SELECT pg_get_functiondef('ops.normal_address'::regproc)").fetchone()
    with psycopg.connect(database.superuser_url.replace(database.name, name), autocommit=True) as link:
        link.execute("CREATE SCHEMA ops")
        link.execute(rule)
        yield link
    administrator.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))


def test_two_spellings_are_one_mailbox_for_python_and_for_every_database_or_for_neither(server):
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(TEXTS)
    @example("\u212aelvin@x.example")
    @example(" \u00a0A.b+c@GoogleMail.com\v")
    @example('"Needless"@X.example')
    @example('"a.b"@gmail.com')
    @example("a@b@gmail.com")
    @example("a@gmail.com\n@gmail.com")
    def same(text):
        (answer,) = server.execute("SELECT ops.normal_address(%s)", (text,)).fetchone()
        assert answer == normal_form(text)
        assert normal_form(answer) == answer

    same()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_whatever_is_typed_it_is_one_mailbox_or_refused(text):
    try:
        address = Address.parse(text)
    except NoAddress:
        return
    assert normal_form(address.raw) == address.normalized == normal_form(address.normalized)
    assert Address.parse(address.normalized).normalized == address.normalized
    assert address.raw.count("@") == 1 or '"' in address.raw
    assert not set(address.raw) & set("\r\n\0<>(),;:") or '"' in address.raw
