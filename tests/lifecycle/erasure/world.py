"""A person with something of hers everywhere, her neighbours, and a search that overlooks nothing."""

import json
import re

import psycopg
from psycopg import sql

from scripts.lifecycle.archives.format import ObjectReader, open_sealed
from scripts.lifecycle.archives.keys import ArchiveKeys
from scripts.utils.archive_store import FolderStore
from tests.lifecycle.archives.valve import Valve

ADDRESS = "Anne.Gret+plan@GoogleMail.com"
PERSON = "annegret@gmail.com"
NAME = "Annegret Musterfrau"
NEEDLES = ("anne.gret+plan@googlemail.com", PERSON, "annegret musterfrau")
# Their rows, their PDFs and their archives are nobody's to touch.
NEIGHBOURS = ("annegret@example.com", "xannegret@gmail.com", "annegret2@gmail.com", "annegret@gmail.com.au")

_TABLES = (
    "users",
    "quiz_responses",
    "meal_plans",
    "payment_transactions",
    "magic_link_tokens",
    "email_blacklist",
    "manual_resolution",
    "refund_counts",
)


class World(Valve):
    """Everything that there is about people: rows, blobs, archives, the queue."""

    def __init__(self, database, blobs, blob_folder, folder, settings, jobs_database):
        self._blob_folder = blob_folder
        self.link = database.superuser()
        self.link.cursor_factory = psycopg.ClientCursor  # one parameter for columns of different text types
        self.blobs = blobs
        self.folder = folder
        self._settings = settings
        self._database = jobs_database
        self._number = 0

    def leave(self):
        """Let go of the database: a template may have no sessions."""
        self.link.close()
        self._database.close()

    def move_to(self, database, jobs_database):
        """Look at another database from now on."""
        self.link = database.superuser()
        self.link.cursor_factory = psycopg.ClientCursor
        self._database = jobs_database

    def _id(self):
        self._number += 1
        return f"{self._number:08x}-0000-4000-8000-000000000000"

    def add(self, person, *, address=None, name="Somebody", years=0, permanent=True, open_order=False):
        """Put one row into every table; return the ids by table. With years, the payment is that old."""
        address = address or person
        ids = {table: self._id() for table in _TABLES} | {"refund_counts": person}
        at = {"id": None, "email": address, "person": person, "name": name}
        self._insert("users", ids["users"], at, "email, normalized_email", "%(email)s, %(person)s", updated=True)
        self.link.execute(
            "INSERT INTO quiz_responses (id, user_id, email, normalized_email, quiz_data, calorie_target, created_at,"
            " payment_id, pdf_delivered_at) VALUES (%(id)s, %(user)s, %(email)s, %(person)s,"
            " jsonb_build_object('name', %(name)s::text, 'mail', %(email)s::text), 1800, timezone('UTC', now()), 'p',"
            " CASE WHEN NOT %(open)s THEN timezone('UTC', now()) END)",
            at | {"id": ids["quiz_responses"], "user": ids["users"], "open": open_order},
        )
        path = f"keto-meal-plan-{ids['meal_plans']}.pdf"
        self.blobs.put(path, f"%PDF-1.7 for {name}, {address}".encode(), overwrite=True)
        self.link.execute(
            "INSERT INTO meal_plans (id, payment_id, email, normalized_email, pdf_blob_path, calorie_target,"
            " preferences_summary, ai_model, status, created_at) VALUES (%(id)s, 'pay-' || %(id)s, %(email)s, %(person)s,"
            " %(path)s, 1800, jsonb_build_object('for', %(name)s::text), 'model', 'completed', timezone('UTC', now()))",
            at | {"id": ids["meal_plans"], "path": path},
        )
        plan = None if years else ids["meal_plans"]
        self.payment(person, address=address, years=years, plan=plan, key=ids["payment_transactions"])
        self.link.execute(
            "INSERT INTO magic_link_tokens (id, token_hash, email, normalized_email, created_at, expires_at, generation_ip)"
            " VALUES (%(id)s, md5(%(id)s), %(email)s, %(person)s, timezone('UTC', now()),"
            " timezone('UTC', now()) + interval '1 day', '192.0.2.1')",
            at | {"id": ids["magic_link_tokens"]},
        )
        self.link.execute(
            "INSERT INTO email_blacklist (id, normalized_email, reason, created_at, expires_at)"
            " VALUES (%(id)s, %(person)s, 'chargeback', timezone('UTC', now()), CASE WHEN %(permanent)s"
            " THEN 'infinity' ELSE timezone('UTC', now()) + interval '90 days' END)",
            at | {"id": ids["email_blacklist"], "permanent": permanent},
        )
        self.link.execute(
            "INSERT INTO manual_resolution (id, payment_id, user_email, normalized_email, issue_type, status, sla_deadline,"
            " created_at, resolved_at, resolution_notes) SELECT %(id)s, 'pay-' || %(id)s, %(email)s, %(person)s,"
            " 'email_delivery_failed', 'resolved', at, at, at, 'wrote to ' || %(email)s FROM timezone('UTC', now()) at",
            at | {"id": ids["manual_resolution"]},
        )
        self.link.execute(
            "INSERT INTO refund_counts (normalized_email, refund_count, updated_at) VALUES (%(person)s, 1, now())"
            " ON CONFLICT DO NOTHING",
            at,
        )
        return ids

    def payment(self, person, *, address=None, years=8, plan=None, key=None):
        """Put one payment of an age there, and return its id."""
        key = key or self._id()
        self.link.execute(
            "INSERT INTO payment_transactions (id, payment_id, meal_plan_id, amount, currency, payment_method,"
            " payment_status, paddle_created_at, webhook_received_at, customer_email, normalized_email, created_at,"
            " updated_at) SELECT %(id)s, 'pay-' || %(id)s, %(plan)s, 29.90, 'EUR', 'card',"
            " 'succeeded', at, at, %(email)s, %(person)s, at, at"
            " FROM (SELECT timezone('UTC', now()) - make_interval(years => %(years)s)) x (at)",
            {"id": key, "plan": plan, "years": years, "email": address or person, "person": person},
        )
        return key

    def _insert(self, table, key, at, columns, values, *, updated):
        moments = ", created_at" + (", updated_at" if updated else "")
        now = ", timezone('UTC', now())" * (1 + updated)
        self.link.execute(
            f"INSERT INTO {table} (id, {columns}{moments}) VALUES (%(id)s, {values}{now})", at | {"id": key}
        )

    def queue_item(self, table, key, *, item_type="retention_exception", status="pending"):
        """An item about a row, with everything that must not stay on it."""
        self.link.execute(
            "INSERT INTO ops.manual_resolution_queue (item_type, resource_type, resource_id, priority, status, reason,"
            " context, raised_by, deadline_at, resolved_at, justification) VALUES (%(type)s, %(table)s, %(key)s, 'medium',"
            " %(status)s, %(who)s, jsonb_build_object('mail', %(mail)s::text, 'name', %(name)s::text), 'operator:test',"
            " now() + interval '1 day', CASE WHEN %(status)s = 'resolved' THEN now() END, %(who)s)",
            {
                "type": item_type,
                "table": table,
                "key": key,
                "status": status,
                "mail": ADDRESS,
                "name": NAME,
                "who": f"{NAME} <{ADDRESS}> called",
            },
        )

    def rows(self, table, columns="*", where="true"):
        return self.link.execute(f"SELECT {columns} FROM {table} WHERE {where} ORDER BY 1").fetchall()

    def of(self, person):
        """Everything that the application's tables hold of somebody, to compare before and after."""
        query = sql.SQL("SELECT to_jsonb(t) FROM {} t WHERE normalized_email = %s ORDER BY to_jsonb(t)::text")
        return {
            table: [row for (row,) in self.link.execute(query.format(sql.Identifier(table)), (person,))]
            for table in _TABLES
        }

    def where(self, needles=NEEDLES):
        """Every place in which one of these can be read: tables, blobs, archives with all the keys there are."""
        # As whole addresses: a neighbour's contains hers.
        found = re.compile(
            "|".join(rf"(?<![\w.+-]){re.escape(each)}(?![\w-]|\.\w)" for each in needles).encode()
        ).search
        places = {f"table {table}" for table, text in self._texts() if found(text.encode())}
        for kind, folder in (("blob", self._blob_folder), ("object", self.folder)):
            for path in folder.rglob("*"):
                text = path.read_bytes() if path.is_file() else b""
                if found(text.lower()):
                    places.add(kind)
        if found(self._decrypted().lower()):
            places.add("archives")
        return places

    def _texts(self):
        tables = self.link.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
        ).fetchall()
        for schema, table in tables:
            for (row,) in self.link.execute(
                sql.SQL("SELECT to_jsonb(t)::text FROM {} t").format(sql.Identifier(schema, table))
            ):
                yield f"{schema}.{table}", json.dumps(json.loads(row), ensure_ascii=False).lower()

    def _decrypted(self):
        keys = ArchiveKeys(self._database, self._settings)
        text = b""
        for archive, name in self.link.execute("SELECT id, object FROM ops.archives WHERE status = 'sealed'"):
            reader = ObjectReader(name, FolderStore(self.folder).read(name))
            for block in reader.blocks(keys.object_key(archive)):
                for sealed in getattr(block, "people", ()):
                    (key,) = self._database.read(
                        lambda connection, key_id=sealed.key_id: keys.opened(connection, {key_id})
                    ).values()
                    text += b"" if key is None else b"\n".join(open_sealed(key, archive.bytes, sealed, name))
                text += getattr(block, "rest", b"") + getattr(block, "own", b"")
        return text
