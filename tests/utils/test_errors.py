"""Which exit code stands for several, and what is said of the database's errors."""

import itertools

import psycopg
import pytest

from scripts.utils import errors
from scripts.utils.errors import ExitCode, describe_database_error, worst

EMAIL = "anna@example.com"
# As the runbooks have it: 2, 1, 143/130, 3, 4, (not run), 0.
ORDER = [2, 1, 143, 130, 3, 4, 75, 0]


def test_every_code_has_its_place_in_the_order():
    assert {int(code) for code in ExitCode} == set(ORDER)


@pytest.mark.parametrize(("stronger", "weaker"), list(itertools.combinations(ORDER, 2)))
def test_the_stronger_code_stands_for_both(stronger, weaker):
    pair = [ExitCode(stronger), ExitCode(weaker)]
    assert worst(pair) == worst(pair[::-1]) == stronger


def test_nothing_at_all_is_done():
    assert worst([]) is ExitCode.DONE
    assert worst([ExitCode.DONE, ExitCode.DONE]) is ExitCode.DONE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Misconfigured(""), 2),
        (errors.DatabaseRefused(""), 2),
        (errors.DatabaseUnavailable(""), 1),
        (errors.DatabaseFailed(""), 1),
        (errors.GateBusy(""), 1),
        (errors.PolicyFailed("cap_exceeded", ""), 1),
        (errors.PlanDrifted(""), 1),
        (errors.AuditBroken(""), 1),
        (errors.Unwell("", ExitCode.FAILED), 1),
        (errors.Unwell("", ExitCode.NEEDS_A_PERSON), 4),
        (errors.StoppedEarly("time_budget", ""), 3),
        (errors.StoppedEarly("sigterm", "", ExitCode.SIGTERM), 143),
        (errors.LockHeld(""), 75),
        (errors.SwitchedOff(""), 75),
    ],
)
def test_an_error_says_which_code_it_leads_to(error, code):
    assert error.exit_code == code
    assert isinstance(error, errors.OpsError)


def test_what_the_error_hierarchy_knows_is_in_the_table_above():
    named = {
        "Misconfigured",
        "DatabaseRefused",
        "DatabaseUnavailable",
        "DatabaseFailed",
        "GateBusy",
        "PlanDrifted",
        "PolicyFailed",
        "AuditBroken",
        "Unwell",
        "StoppedEarly",
    }
    known = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.OpsError)
    }
    assert known == named | {"OpsError", "NotRun", "LockHeld", "SwitchedOff"}


@pytest.fixture
def violation(database):
    """The error of a real unique violation on a column that holds an address."""
    link = database.superuser()
    insert = "INSERT INTO users VALUES (%s, %s, %s, NULL, now(), now())"
    link.execute(insert, ("1", EMAIL, EMAIL))
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        link.execute(insert, ("2", EMAIL, EMAIL))
    return caught.value


def test_the_description_leaves_out_what_the_server_quotes(violation):
    assert EMAIL in str(violation), "else this test shows nothing"
    assert EMAIL in violation.diag.message_detail
    assert describe_database_error(violation) == (
        "UniqueViolation (SQLSTATE 23505, schema public, table users, constraint users_email_key)"
    )


def test_a_column_is_named_where_the_server_names_one(database):
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        database.superuser().execute("INSERT INTO users VALUES ('1', %s, NULL, NULL, now(), now())", (EMAIL,))
    assert EMAIL in str(caught.value)
    assert describe_database_error(caught.value) == (
        "NotNullViolation (SQLSTATE 23502, schema public, table users, column normalized_email)"
    )


def test_a_message_that_a_trigger_raises_is_left_out(database):
    link = database.superuser()
    with pytest.raises(psycopg.Error) as caught:
        link.execute(f"DO $$ BEGIN RAISE EXCEPTION 'no: {EMAIL}' USING HINT = '{EMAIL}'; END $$")
    assert EMAIL in str(caught.value)
    assert describe_database_error(caught.value) == "RaiseException (SQLSTATE P0001)"


def test_an_error_without_an_answer_is_named_by_its_kind():
    assert describe_database_error(psycopg.OperationalError(f"connection for {EMAIL} failed")) == "OperationalError"
