#!/usr/bin/env python3
"""Load production-like rows, at any size, the same ones for the same seed.

The server makes every row itself (INSERT ... SELECT over generate_series), and every choice is a hash of seed, table
and row number. Which quiz row is due is laid down here, in Python, so the counts are known without asking the rule
that is to be tested. Names, mailboxes and addresses are made up: Gmail allows no '_', the rest is for examples only.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import blake2b
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table

MIN_ROWS, CLI_MIN_ROWS, CLI_MAX_ROWS = 20, 1_000, 10_000_000
CHUNK = 250_000  # rows an INSERT: what it writes is still cached when the foreign key is checked
BLOCK = 1_000  # quiz rows after which the pattern of kinds repeats
ORDER_EVERY = 5  # of five quiz rows, the first has its meal plan and payment in the tables


class Kind(IntEnum):
    """What a quiz row is to the retention rules; an even number is past its 24 hours."""

    DELIVERED_DUE = 0
    DELIVERED_KEPT = 1
    ABANDONED_DUE = 2
    ABANDONED_KEPT = 3
    UNDELIVERED_DUE = 4
    UNDELIVERED_FRESH = 5


# Of 1,000 rows, how many of each kind: those that have an order in the tables, and the rest.
WITH_ORDER = {Kind.UNDELIVERED_DUE: 2, Kind.UNDELIVERED_FRESH: 8, Kind.DELIVERED_KEPT: 50, Kind.DELIVERED_DUE: 140}
WITHOUT_ORDER = {Kind.DELIVERED_DUE: 410, Kind.ABANDONED_DUE: 350, Kind.ABANDONED_KEPT: 40}

# The first 20 rows, each with the seconds by which it is past its 24 hours; None: anywhere in its range.
OPENING: tuple[tuple[Kind, int | None], ...] = (
    (Kind.UNDELIVERED_DUE, 1),
    (Kind.DELIVERED_DUE, 1),
    (Kind.DELIVERED_KEPT, 0),  # exactly 24 h is not more than 24 h
    (Kind.DELIVERED_KEPT, -1),
    (Kind.ABANDONED_DUE, 1),
    (Kind.UNDELIVERED_FRESH, 0),
    (Kind.ABANDONED_KEPT, 0),
    (Kind.ABANDONED_KEPT, -1),
    (Kind.DELIVERED_DUE, None),
    (Kind.ABANDONED_DUE, None),
    (Kind.UNDELIVERED_FRESH, -1),
    *(((Kind.DELIVERED_DUE, None), (Kind.ABANDONED_DUE, None)) * 2),
    (Kind.DELIVERED_KEPT, None),
    *(((Kind.DELIVERED_DUE, None), (Kind.ABANDONED_DUE, None)) * 2),
)

FIRST_NAMES: str = (
    "anna ben clara david elena felix greta hugo ines jonas karla liam mara nils olga paul "
    "quinn rosa simon tara uwe vera willem xenia yara zoe amir bianca carlos diana emil fatima"
)
LAST_NAMES: str = (
    "adler bauer costa dahl evans fischer garcia huber ivanov jensen keller lopez moreau novak olsen peters "
    "quast rossi silva tanaka ulrich vogel weber xu young ziegler andersen brandt castro dubois engel ferrari"
)

# What a visitor can answer, step by step; a number after the options is how many can be chosen at most.
STEPS: tuple[tuple[str, int], ...] = (
    ("female male prefer_not_to_say", 1),
    ("sedentary lightly_active moderately_active very_active athlete", 1),
    ("full_of_energy afternoon_slump tired_after_meals always_tired", 1),
    ("skips_breakfast three_meals three_meals_and_snacks intermittent_fasting_16_8", 1),
    ("chicken beef pork lamb turkey bacon duck no_meat", 3),
    ("salmon tuna cod sardines shrimp mackerel no_fish", 2),
    ("spinach broccoli cauliflower zucchini kale asparagus brussels_sprouts", 5),
    ("peppers tomatoes mushrooms aubergine cucumber cabbage", 4),
    ("avocado blueberries strawberries raspberries lemon coconut", 4),
    ("almonds walnuts macadamia pecans chia_seeds flax_seeds no_nuts", 4),
    ("hard_cheese cream_cheese greek_yoghurt butter double_cream no_dairy", 2),
    ("scrambled boiled omelette fried no_eggs", 2),
    ("water black_coffee green_tea sparkling_water herbal_tea", 2),
    ("olive_oil coconut_oil ghee avocado_oil lard", 2),
    ("olives liver blue_cheese cilantro anchovies nothing_disliked", 2),
    ("none lactose tree_nuts shellfish eggs gluten soy", 2),
    ("none type_2_diabetes high_blood_pressure hypothyroidism pcos gallbladder_removed", 2),
    ("less_than_5_hours 5_to_6_hours 7_to_8_hours more_than_8_hours", 1),
    ("under_15_minutes 15_to_30_minutes 30_to_60_minutes weekend_meal_prep", 1),
)
ANSWER_SHEETS = 256  # variants of steps 1-7, of 8-13 and of 14-19; a set of answers combines one of each


@dataclass(frozen=True)
class SampleCounts:
    """What was loaded; the kinds of quiz rows are known by construction, `as_of` is the instant that they refer to."""

    as_of: datetime
    total: int
    delivered_due: int
    delivered_kept: int
    abandoned_due: int
    abandoned_kept: int
    undelivered_due: int
    undelivered_fresh: int
    users: int
    meal_plans: int
    payment_transactions: int
    magic_link_tokens: int
    email_blacklist: int
    manual_resolution: int
    refund_counts: int


# Kind, person and dates of the visits n, and whether the tables hold the order that the visit itself led to.
# OFFSET 0 keeps the planner from working an expression out once per use.
VISITS: LiteralString = """
SELECT n, kind, person, h1, h2,
       mod(n, 5) = 1 AND (n + 4) / 5 NOT BETWEEN 5 AND 10 AND (n + 4) / 5 <= %(orders)s
           AND (kind <> 0 OR h2 >> 40 & 1 = 0) AS recent,
       anchor - CASE WHEN kind IN (0, 1)
                     THEN interval '1 microsecond' * (600000000 + mod(h2, CASE WHEN h2 >> 33 & 7 = 0 THEN 259200000000
                                                                               ELSE 7200000000 END))
                     ELSE interval '0' END AS created_at,
       CASE WHEN kind IN (0, 1) THEN anchor END AS delivered_at
  FROM (SELECT n, kind, person, h1, h2,
               %(as_of)s::timestamp - interval '1 microsecond' * CASE
                   WHEN edge IS NOT NULL THEN 86400000000 + edge * 1000000::bigint
                   WHEN kind IN (0, 2, 4) THEN 86402000000 + mod(h1, (%(spans)s::bigint[])[(h2 & 3) + 1])
                   ELSE 2000000 + mod(h1, 86396000000) END AS anchor
          FROM (SELECT n,
                       CASE WHEN n <= %(opening)s THEN (%(opening_kinds)s::int[])[n]
                            ELSE (%(block_kinds)s::int[])[mod(n, %(block)s) + 1] END AS kind,
                       CASE WHEN n <= %(opening)s THEN (%(opening_edges)s::int[])[n] END AS edge,
                       1 + mod(hashint8extended(n, %(draw)s) & 9223372036854775807, %(people)s) AS person,
                       hashint8extended(n, %(draw)s + 1) & 9223372036854775807 AS h1,
                       hashint8extended(n, %(draw)s + 2) & 9223372036854775807 AS h2
                  FROM generate_series(%(first)s::bigint, %(last)s::bigint, %(step)s::bigint) AS n
                OFFSET 0) AS drawn
        OFFSET 0) AS dated
"""

# Rows that have a person and a draw h1, with that person's mailbox, spelled as people do: dots, +tag, capitals.
MAILBOXES: LiteralString = """
SELECT named.*,
       CASE WHEN box > 3 THEN CASE WHEN spelling = 2 THEN initcap(name) ELSE name END || '.' || mailbox
            WHEN spelling = 0 THEN name || '.' || person || '@gmail.com'
            WHEN spelling = 1 THEN name || '.' || person || '+keto@gmail.com'
            WHEN spelling = 2 THEN initcap(name) || person || '@GoogleMail.com'
            ELSE left(name, 1) || '.' || substr(name, 2) || person || '+meal.plan@googlemail.com' END AS email,
       CASE WHEN box > 3 THEN name || '.' || mailbox ELSE name || person || '@gmail.com' END AS normalized_email
  FROM (SELECT numbered.*, person || (%(domains)s::text[])[box - 3] AS mailbox
          FROM (SELECT hashed.*, who >> 10 & 7 AS box, (h1 >> 40 & 3) AS spelling,
                       ((%(first_names)s::text[])[(who & 31) + 1] || '_'
                        || (%(last_names)s::text[])[(who >> 5 & 31) + 1]) COLLATE "C" AS name
                  FROM (SELECT source.*, hashint8extended(person, %(draw)s + 3) AS who
                          FROM ({source}) AS source OFFSET 0) AS hashed
                OFFSET 0) AS numbered
        OFFSET 0) AS named
"""

# The orders of the visits n: meal plan and payment share their date. Numbers 5 to 10 lie at the edges of the periods.
ORDERS: LiteralString = """
SELECT visit.*,
       CASE WHEN number BETWEEN 5 AND 7
            THEN %(as_of)s::timestamp - interval '90 days' + interval '1 second' * (number - 6)
            WHEN number BETWEEN 8 AND 10
            THEN %(as_of)s::timestamp - interval '1 year' + interval '1 second' * (number - 9)
            WHEN recent THEN least(created_at + interval '4 minutes', %(as_of)s::timestamp)
            ELSE %(as_of)s::timestamp - interval '1 day' - interval '1 microsecond' * mod(h3, 39744000000000)
       END AS made_at,
       CASE WHEN recent AND kind = 5 THEN 'processing'
            WHEN recent AND kind = 4 THEN 'failed'
            WHEN recent OR number BETWEEN 5 AND 10 OR mod(h3, 100) > 3 THEN 'completed'
            WHEN mod(h3, 100) > 0 THEN 'refunded'
            ELSE 'failed' END AS state,
       number BETWEEN 5 AND 7 OR NOT recent AND number > 10 AND h3 >> 20 & 7 < 3 AS long_ago
  FROM (SELECT dated.*, (n + 4) / 5 AS number,
               hashint8extended(n, %(draw)s + 4) & 9223372036854775807 AS h3
          FROM ({visits}) AS dated OFFSET 0) AS visit
"""

INSERT_USERS: LiteralString = """
INSERT INTO public.users (id, email, normalized_email, password_hash, created_at, updated_at)
SELECT {id}, email, normalized_email, CASE WHEN h1 & 3 = 0 THEN 'sample$' || md5(n::text) END,
       made_at, made_at + (%(as_of)s::timestamp - made_at) * ((h1 >> 8 & 15) / 16.0)
  FROM (SELECT mailbox.*, %(as_of)s::timestamp - interval '1 microsecond' * mod(h1, 94608000000000) AS made_at
          FROM ({mailboxes}) AS mailbox) AS account
"""

# Parsing JSON would be a third of the work, so each chunk makes 4,096 sets of answers, which its rows share.
INSERT_QUIZ_RESPONSES: LiteralString = """
WITH answered AS MATERIALIZED (
    SELECT h & 4095 AS sheet,
           ('{{' || (%(sheets_one)s::text[])[1 + (h1 & 255)] || ',' || (%(sheets_two)s::text[])[1 + (h1 >> 8 & 255)]
            || ',' || (%(sheets_three)s::text[])[1 + (h1 >> 16 & 255)]
            || ',"step_20":{{"age":' || 18 + mod(h1 >> 3, 60)
            || ',"weight_kg":' || 48 + mod(h1 >> 9, 95) || '.' || mod(h1, 10)
            || ',"height_cm":' || 150 + mod(h1 >> 7, 48)
            || ',"goal":"' || (%(goals)s::text[])[1 + (h1 >> 24 & 3)] || '"}}}}')::jsonb AS answers
      FROM (SELECT h, hashint8extended(h, %(draw)s + 5) & 9223372036854775807 AS h1
              FROM generate_series(%(first)s::bigint, %(first)s::bigint + 4095) AS h OFFSET 0) AS hashed
)
INSERT INTO public.quiz_responses (id, user_id, email, normalized_email, quiz_data, calorie_target,
                                   created_at, updated_at, payment_id, pdf_delivered_at)
SELECT {id}, CASE WHEN person <= %(users)s AND h2 >> 5 & 1 = 1 THEN {user_id} END, email, normalized_email, answers,
       1200 + 10 * mod(h1 >> 17, 140), created_at, delivered_at, CASE WHEN kind NOT IN (2, 3) THEN {payment_id} END,
       CASE WHEN NOT recent THEN delivered_at END
  FROM ({mailboxes}) AS visit
  JOIN answered ON answered.sheet = h2 >> 20 & 4095
"""

INSERT_MEAL_PLANS: LiteralString = """
INSERT INTO public.meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,
                               preferences_summary, ai_model, status, refund_count, created_at, email_sent_at)
SELECT {id}, paid_by, email, normalized_email,
       CASE WHEN names_pdf
            THEN %(blob_store)s || 'keto-meal-plan-' || paid_by || '-' || left(md5({id}), 8) || '.pdf' ELSE '' END,
       1200 + 10 * mod(h1 >> 17, 140),
       jsonb_build_object('excluded', (%(excluded)s::text[])[1 + (h3 >> 8 & 3)], 'meals_per_day', 2 + (h3 >> 12 & 1)),
       (%(models)s::text[])[1 + (h3 >> 16 & 1)], state, CASE WHEN state = 'refunded' THEN 1 ELSE 0 END, made_at,
       CASE WHEN made_pdf THEN CASE WHEN recent THEN delivered_at ELSE made_at + interval '2 minutes' END END
  FROM (SELECT mailbox.*, CASE WHEN recent THEN {payment_id} ELSE {past_payment_id} END AS paid_by,
               state IN ('completed', 'refunded') AS made_pdf,
               state IN ('completed', 'refunded') AND number NOT BETWEEN 8 AND 10
               AND (number <= 7 OR made_at > %(as_of)s::timestamp - interval '90 days' OR h3 & 1 = 1) AS names_pdf
          FROM ({mailboxes}) AS mailbox OFFSET 0) AS plan
"""

# Payments outlive their meal plans: those of long ago name none.
INSERT_PAYMENTS: LiteralString = """
INSERT INTO public.payment_transactions (id, payment_id, meal_plan_id, amount, currency, payment_method, payment_status,
                                         paddle_created_at, webhook_received_at, customer_email, normalized_email,
                                         created_at, updated_at)
SELECT {id}, CASE WHEN long_ago THEN {old_payment_id} WHEN recent THEN {payment_id} ELSE {past_payment_id} END,
       CASE WHEN NOT long_ago THEN {meal_plan_id} END,
       (%(amounts)s::numeric[])[1 + (h3 >> 24 & 3)], (%(currencies)s::text[])[1 + (h3 >> 26 & 3)],
       (%(methods)s::text[])[1 + (h3 >> 28 & 3)],
       CASE WHEN NOT long_ago AND state = 'refunded' THEN 'refunded'
            WHEN long_ago AND h3 >> 30 & 127 = 0 THEN 'chargeback' ELSE 'succeeded' END::public.payment_status_type,
       paid_at, paid_at + interval '2 seconds', email, normalized_email, paid_at + interval '3 seconds',
       paid_at + interval '3 seconds'
  FROM (SELECT mailbox.*, CASE
                   WHEN number BETWEEN 5 AND 7
                   THEN %(as_of)s::timestamp - interval '7 years' + interval '1 second' * (number - 6)
                   WHEN long_ago
                   THEN %(as_of)s::timestamp - interval '400 days' - interval '1 microsecond' * mod(h3, 198720000000000)
                   ELSE made_at - interval '2 minutes' END AS paid_at
          FROM ({mailboxes}) AS mailbox OFFSET 0) AS payment
"""

INSERT_TOKENS: LiteralString = """
INSERT INTO public.magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, used_at,
                                      generation_ip, usage_ip)
SELECT {id}, encode(sha256(convert_to({id}, 'UTF8')), 'hex'), email, normalized_email,
       ends_at - interval '1 day', ends_at,
       CASE WHEN h2 & 3 > 0 THEN least(ends_at - interval '1 day' + interval '1 second' * (20 + (h2 >> 4 & 511)),
                                       %(as_of)s::timestamp) END,
       '198.51.100.' || (h2 >> 16 & 255),
       CASE WHEN h2 & 3 = 1 THEN '2001:db8::' || to_hex(h2 >> 24 & 65535)
            WHEN h2 & 3 > 1 THEN '198.51.100.' || (h2 >> 16 & 255) END
  FROM (SELECT mailbox.*, %(as_of)s::timestamp + CASE
                   WHEN n <= 3 THEN interval '1 second' * (n - 2)
                   WHEN mod(h2, 5) = 0 THEN interval '1 microsecond' * (2000000 + mod(h1, 86396000000))
                   ELSE interval '-1 microsecond' * (2000000 + mod(h1, 1209600000000)) END AS ends_at
          FROM ({mailboxes}) AS mailbox OFFSET 0) AS token
"""

# The first three end at the edge; the next two have no end, each in one of the two ways of the application.
INSERT_BLACKLIST: LiteralString = """
INSERT INTO public.email_blacklist (id, normalized_email, reason, created_at, expires_at)
SELECT {id}, normalized_email, (%(reasons)s::text[])[1 + (h2 >> 8 & 3)], ends_at - interval '90 days',
       CASE WHEN n = 4 OR n > 5 AND mod(h2, 40) = 0 THEN timestamp 'infinity'
            WHEN n = 5 OR n > 5 AND mod(h2, 40) = 1 THEN timestamp '9999-12-31 23:59:59' ELSE ends_at END
  FROM (SELECT mailbox.*, %(as_of)s::timestamp + CASE
                   WHEN n <= 3 THEN interval '1 second' * (n - 2)
                   WHEN n <= 5 THEN interval '-30 days'
                   ELSE interval '90 days' - interval '1 microsecond' * (2000000 + mod(h1, 11232000000000))
               END AS ends_at
          FROM ({mailboxes}) AS mailbox OFFSET 0) AS entry
"""

# The application's own cases. The first three were resolved at the edge of a year, the fourth is old and still open.
INSERT_CASES: LiteralString = """
INSERT INTO public.manual_resolution (id, payment_id, user_email, normalized_email, issue_type, status, sla_deadline,
                                      created_at, resolved_at, assigned_to, resolution_notes)
SELECT {id}, {payment_id}, email, normalized_email,
       (enum_range(NULL::public.issue_type))[1 + (h2 >> 8 & 3)],
       CASE WHEN resolved_at IS NOT NULL THEN 'resolved' WHEN h2 & 1 = 0 THEN 'in_progress' ELSE 'pending' END,
       opened_at + interval '4 hours', opened_at, resolved_at, CASE WHEN h2 & 1 = 0 THEN 'support' END,
       CASE WHEN resolved_at IS NOT NULL THEN 'sent again to ' || email END
  FROM (SELECT dated.*, least(resolved_at, dated.made_at) - interval '3 hours' AS opened_at
          FROM (SELECT mailbox.*, %(as_of)s::timestamp - interval '1 microsecond' * mod(h1, 63072000000000) AS made_at,
                       CASE WHEN n <= 3 THEN %(as_of)s::timestamp - interval '1 year' + interval '1 second' * (n - 2)
                            WHEN n > 4 AND mod(h2, 5) > 0
                            THEN %(as_of)s::timestamp - interval '1 microsecond' * mod(h1, 63072000000000)
                       END AS resolved_at
                  FROM ({mailboxes}) AS mailbox OFFSET 0) AS dated
        OFFSET 0) AS case_
"""

# One row a mailbox; the first three lie at the edge of a year.
INSERT_REFUND_COUNTS: LiteralString = """
INSERT INTO public.refund_counts (normalized_email, refund_count, updated_at)
SELECT normalized_email, 1 + (h2 >> 8 & 1),
       (CASE WHEN n <= 3 THEN %(as_of)s::timestamp - interval '1 year' + interval '1 second' * (n - 2)
             ELSE %(as_of)s::timestamp - interval '1 microsecond' * mod(h1, 63072000000000) END) AT TIME ZONE 'UTC'
  FROM ({mailboxes}) AS mailbox
"""

NUMBERED: LiteralString = """
SELECT n, {person} AS person, hashint8extended(n, %(draw)s + {table}) & 9223372036854775807 AS h1,
       hashint8extended(n, %(draw)s + {table} + 1) & 9223372036854775807 AS h2
  FROM generate_series(%(first)s::bigint, %(last)s::bigint, %(step)s::bigint) AS n
"""

BLOB_STORE = "https://samplestore.public.blob.vercel-storage.com/"


def load(
    connection: psycopg.Connection[Any], *, rows: int, seed: int = 1, as_of: datetime | None = None
) -> SampleCounts:
    """Fill the application's empty tables, in one transaction: an interrupted fill leaves them empty.

    Args:
        connection: to a database that has the application's tables.
        rows: how many quiz_responses; the other tables are in proportion.
        seed: the same seed, rows and as_of give the same rows, on any server.
        as_of: the instant that ages count from; by default the database's now, cut to the second.
    """
    if rows < MIN_ROWS:
        raise ValueError(f"rows must be at least {MIN_ROWS}, not {rows}")
    if as_of is not None and as_of.tzinfo is None:
        raise ValueError("as_of needs a time zone: a date without one means another instant on every machine")
    utc = _database_now(connection) if as_of is None else as_of.astimezone(UTC)
    sizes = {
        "users": max(4, rows // 10),
        "quiz_responses": rows,
        "meal_plans": max(12, rows // ORDER_EVERY),
        "payment_transactions": max(12, rows // ORDER_EVERY),
        "magic_link_tokens": max(8, rows // 2),
        "email_blacklist": max(8, rows // 50),
        "manual_resolution": max(8, rows // 100),
        "refund_counts": max(8, rows // 100),
    }
    block = _block_of_kinds(seed)
    parameters = _parameters(seed, rows, sizes["users"], utc, block) | {"orders": sizes["meal_plans"]}
    with connection.transaction(), _indexes_put_aside(connection, list(sizes)):
        for table, statement in _statements().items():
            step = ORDER_EVERY if table in {"meal_plans", "payment_transactions"} else 1
            for first, last in _chunks(sizes[table]):
                span = {"first": (first - 1) * step + 1, "last": (last - 1) * step + 1, "step": step}
                # prepare=False: a plan for these very arrays, and nothing left for a transaction pooler to trip over
                connection.execute(statement, parameters | span, prepare=False)
    for table in sizes:
        connection.execute(sql.SQL("ANALYZE public.{}").format(sql.Identifier(table)))
    kinds = _count_kinds(rows, block)
    return SampleCounts(
        as_of=utc,
        total=rows,
        **{kind.name.lower(): kinds[kind] for kind in Kind},
        **{table: size for table, size in sizes.items() if table != "quiz_responses"},
    )


@contextmanager
def _indexes_put_aside(connection: psycopg.Connection[Any], tables: list[str]) -> Iterator[None]:
    """Drop what no constraint needs and build it afterwards.

    Row by row, indexes on dates and people in random order cost more than the rows do. The caller's transaction brings
    them back should the load fail.
    """
    found = connection.execute(
        "SELECT format('DROP INDEX %%s', indexrelid::regclass), pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY (%s::regclass[]) AND NOT indisunique ORDER BY indexrelid",
        [[f"public.{table}" for table in tables]],
    ).fetchall()
    for drop, _ in found:
        connection.execute(sql.SQL(drop))
    yield
    for _, create in found:
        connection.execute(sql.SQL(create))


def _database_now(connection: psycopg.Connection[Any]) -> datetime:
    # statement_timestamp: in a caller's long transaction now() would be the past
    row = connection.execute("SELECT date_trunc('second', statement_timestamp() AT TIME ZONE 'UTC')").fetchone()
    if row is None:
        raise AssertionError("a SELECT without FROM returns one row")
    now: datetime = row[0]
    return now.replace(tzinfo=UTC)


def _statements() -> dict[str, sql.Composed]:
    """Every table's INSERT, in an order that the foreign keys accept."""
    visits = sql.SQL(VISITS)
    orders = sql.SQL(ORDERS).format(visits=visits)
    payment_ids = {
        "payment_id": _payment_id("order"),
        "past_payment_id": _payment_id("past"),
        "old_payment_id": _payment_id("old"),
    }
    return {
        "users": sql.SQL(INSERT_USERS).format(id=_uuid("user", "n"), mailboxes=_mailboxes(_numbered("n", 10))),
        "quiz_responses": sql.SQL(INSERT_QUIZ_RESPONSES).format(
            id=_uuid("quiz", "n"), user_id=_uuid("user", "person"), mailboxes=_mailboxes(visits), **payment_ids
        ),
        "meal_plans": sql.SQL(INSERT_MEAL_PLANS).format(
            id=_uuid("plan", "number"), mailboxes=_mailboxes(orders), **payment_ids
        ),
        "payment_transactions": sql.SQL(INSERT_PAYMENTS).format(
            id=_uuid("payment", "number"),
            meal_plan_id=_uuid("plan", "number"),
            mailboxes=_mailboxes(orders),
            **payment_ids,
        ),
        "magic_link_tokens": sql.SQL(INSERT_TOKENS).format(
            id=_uuid("token", "n"),
            mailboxes=_mailboxes(_numbered("1 + mod(hashint8extended(n, %(draw)s + 20) & 2147483647, %(people)s)", 22)),
        ),
        "email_blacklist": sql.SQL(INSERT_BLACKLIST).format(
            id=_uuid("blacklist", "n"), mailboxes=_mailboxes(_numbered("10 * n", 30))
        ),
        "manual_resolution": sql.SQL(INSERT_CASES).format(
            id=_uuid("case", "n"), payment_id=_payment_id("case"), mailboxes=_mailboxes(_numbered("10 * n + 3", 40))
        ),
        "refund_counts": sql.SQL(INSERT_REFUND_COUNTS).format(mailboxes=_mailboxes(_numbered("10 * n + 7", 50))),
    }


def _mailboxes(source: sql.Composable) -> sql.Composed:
    return sql.SQL(MAILBOXES).format(source=source)


def _numbered(person: LiteralString, table: int) -> sql.Composed:
    return sql.SQL(NUMBERED).format(person=sql.SQL(person), table=sql.Literal(table))


def _uuid(what: LiteralString, number: LiteralString) -> sql.Composed:
    """The UUID (version 4 by its looks) of one row, as text."""
    digest: LiteralString = "md5(%(seed)s::text || {what} || {number})"
    return sql.SQL("overlay(overlay(" + digest + " placing '4' from 13) placing 'a' from 17)::uuid::text").format(
        what=sql.Literal(f":{what}:"), number=sql.SQL(number)
    )


def _payment_id(what: LiteralString) -> sql.Composed:
    """The id of visit n's payment, in the form that Paddle gives a transaction."""
    return sql.SQL("'txn_01' || left(md5(%(seed)s::text || {what} || n), 24)").format(what=sql.Literal(f":{what}:"))


def _parameters(seed: int, rows: int, users: int, as_of: datetime, block: list[int]) -> dict[str, Any]:
    day = 86_400_000_000
    return {
        "seed": str(seed),
        "draw": _number(seed, "draw") >> 16,
        "as_of": as_of.replace(tzinfo=None),
        "people": max(10, rows * 3 // 5),
        "users": users,
        "spans": [day, day, 7 * day, 30 * day],  # how far past its date a due row may be
        "opening": len(OPENING),
        "opening_kinds": [int(kind) for kind, _ in OPENING],
        "opening_edges": [edge for _, edge in OPENING],
        "block": BLOCK,
        "block_kinds": block,
        "first_names": FIRST_NAMES.split(),
        "last_names": LAST_NAMES.split(),
        "domains": ["@example.com", "@example.org", "@mail.example.net", "+keto@example.com"],
        "goals": ["lose_weight", "maintain_weight", "build_muscle", "more_energy"],
        "sheets_one": _answer_sheets(seed, 1, 7),
        "sheets_two": _answer_sheets(seed, 8, 13),
        "sheets_three": _answer_sheets(seed, 14, 19),
        "blob_store": BLOB_STORE,
        "excluded": ["nothing", "dairy", "nuts", "fish"],
        "models": ["gpt-4o", "gemini-pro"],
        "amounts": ["19.99", "29.99", "39.99", "49.99"],
        "currencies": ["USD", "USD", "EUR", "GBP"],
        "methods": ["card", "card", "paypal", "apple_pay"],
        "reasons": ["chargeback", "abuse", "refund_abuse", "disposable_email"],
    }


def _number(seed: int, *what: object) -> int:
    # not `random`: its shuffles and choices may differ from one Python to the next
    return int.from_bytes(blake2b(repr((seed, *what)).encode(), digest_size=8).digest(), "big")


def _block_of_kinds(seed: int) -> list[int]:
    """The kind of a quiz row by its number modulo 1,000; rows that have an order hold every fifth place."""
    with_order = _shuffled(seed, "with order", WITH_ORDER)
    without = _shuffled(seed, "without", WITHOUT_ORDER)
    return [with_order.pop() if place % ORDER_EVERY == 1 else without.pop() for place in range(BLOCK)]


def _shuffled(seed: int, name: str, shares: dict[Kind, int]) -> list[int]:
    kinds = [int(kind) for kind, share in shares.items() for _ in range(share)]
    return [kind for _, kind in sorted((_number(seed, name, place), kind) for place, kind in enumerate(kinds))]


def _count_kinds(rows: int, block: list[int]) -> Counter[int]:
    whole, rest = divmod(rows, BLOCK)
    kinds = Counter({kind: share * whole for kind, share in Counter(block).items()})
    kinds.update(block[n % BLOCK] for n in range(1, rest + 1))
    kinds.subtract(block[n % BLOCK] for n in range(1, len(OPENING) + 1))
    kinds.update(int(kind) for kind, _ in OPENING)
    return kinds


def _answer_sheets(seed: int, first: int, last: int) -> list[str]:
    """Variants of the answers to some steps, as the inside of a JSON object."""
    return [
        ",".join(f'"step_{step}":{_answer(seed, step, sheet)}' for step in range(first, last + 1))
        for sheet in range(ANSWER_SHEETS)
    ]


def _answer(seed: int, step: int, sheet: int) -> str:
    text, most = STEPS[step - 1]
    options = text.split()
    draw = _number(seed, step, sheet)
    if most == 1:
        return json.dumps(options[draw % len(options)])
    start, count = draw % len(options), (most + 1) // 2 + (draw >> 32) % (most // 2 + 1)
    return json.dumps([options[(start + 2 * place) % len(options)] for place in range(count)])


def _chunks(size: int) -> Iterator[tuple[int, int]]:
    for first in range(1, size + 1, CHUNK):
        yield first, min(first + CHUNK - 1, size)


def main(arguments: list[str] | None = None) -> int:
    """Load sample rows into an empty database, and say what they are."""
    options = _parse(arguments)
    console, errors = Console(), Console(stderr=True, soft_wrap=True)
    names = [options.database_url_from] if options.database_url_from else ["MIGRATION_DATABASE_URL", "DATABASE_URL"]
    url = next(filter(None, map(os.environ.get, names)), None)  # noqa: TID251 - a tool for a terminal, not a job
    if not url:
        errors.print(f"sample_data: set {' or '.join(names)}", markup=False)
        return 1
    try:
        with psycopg.connect(url, autocommit=True, application_name="sample_data") as connection:  # noqa: TID251 - as above
            row = connection.execute("SELECT EXISTS (SELECT FROM public.quiz_responses)").fetchone()
            if row is None or row[0]:
                errors.print("sample_data: quiz_responses has rows already: refused")
                return 1
            counts = load(connection, rows=options.rows, seed=options.seed, as_of=options.as_of)
    except psycopg.errors.UndefinedTable:
        errors.print("sample_data: the application's tables are missing: run backend/migrate.py --sample-app first")
        return 1
    except psycopg.Error as error:
        errors.print(f"sample_data: {error}", markup=False)
        return 1
    console.print(_as_table(counts))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load production-like rows into an empty database.")
    parser.add_argument("--rows", type=_row_count, default=100_000, help="quiz_responses to make (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same rows (default: 1)")
    parser.add_argument(
        "--as-of", type=_instant, help="ISO 8601; the instant that ages count from (default: the database's now)"
    )
    parser.add_argument(
        "--database-url-from",
        metavar="VARIABLE",
        help="the environment variable to read (default: MIGRATION_DATABASE_URL, else DATABASE_URL)",
    )
    return parser.parse_args(arguments)


def _row_count(text: str) -> int:
    rows = int(text.replace("_", "").replace(",", ""))
    if not CLI_MIN_ROWS <= rows <= CLI_MAX_ROWS:
        raise argparse.ArgumentTypeError(f"must be {CLI_MIN_ROWS:,} to {CLI_MAX_ROWS:,}")
    return rows


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)  # as the tables hold it


def _as_table(counts: SampleCounts) -> Table:
    table = Table(title=f"Sample data as of {counts.as_of:%Y-%m-%d %H:%M:%S} UTC")
    table.add_column("rows")
    table.add_column("number", justify="right")
    table.add_row("quiz_responses", f"{counts.total:,}")
    for kind in Kind:
        table.add_row(f"  {kind.name.lower().replace('_', ', ')}", f"{getattr(counts, kind.name.lower()):,}")
    for name in [each.name for each in fields(counts)][-7:]:
        table.add_row(name, f"{getattr(counts, name):,}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
