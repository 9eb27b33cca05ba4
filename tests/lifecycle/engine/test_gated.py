"""A transaction behind the gate: the settings that it runs under."""

from __future__ import annotations

from scripts.lifecycle.engine.gated import GatedTransaction
from scripts.lifecycle.policy.policy_file import DEFAULT_POLICY_FILE, load_policies
from scripts.utils.db_utils import Database

PATHS = "SELECT current_setting('enable_seqscan'), current_setting('jit')"


def test_every_statement_behind_the_gate_takes_the_meant_path_and_is_not_compiled(database):
    database.superuser().execute(f"ALTER DATABASE {database.name} SET jit = on")
    gated = GatedTransaction(load_policies(DEFAULT_POLICY_FILE).policies["quiz_responses"].batch)
    pool = Database(database.url, application_name="test", max_size=1)
    pool.open()

    with gated.opened(pool) as connection:
        opened = connection.execute(PATHS).fetchone()
    with pool.connection() as connection:
        (sent,) = gated.send(connection, [(PATHS, {})])
        after = connection.execute(PATHS).fetchone()
    pool.close()

    assert opened == sent.fetchone() == ("off", "off")
    assert after == ("on", "on")
