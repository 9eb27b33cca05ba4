"""The run record of a job that carries out no policy, so that its missed, killed and failed runs are seen too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg

from scripts.lifecycle.jobs import runs
from scripts.lifecycle.jobs.results import PolicyResult
from scripts.lifecycle.jobs.run import Run
from scripts.lifecycle.jobs.runs import NO_POLICY
from scripts.utils.db_utils import connection_lost, explained
from scripts.utils.errors import DatabaseUnavailable, ExitCode, OpsError, StoppedEarly
from scripts.utils.logging_utils import get_logger
from scripts.utils.retry_utils import retry


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Open the run's record, and close it with the result of the work, also after an error.

    Raises:
        OpsError: As the work raises it.
        psycopg.Error: As the work raises it.
    """
    run_id = uuid4()
    run.writer.write(
        lambda connection: runs.open_run(
            connection,
            run_id,
            script=run.script,
            policy=NO_POLICY,
            correlation_id=run.correlation_id,
            cutoff=run.cutoff,
            policy_hash=run.policies.hash,
            fencing_token=run.lock.fencing_token,
            budget_seconds=run.budget_seconds,
            version=run.settings.render_git_commit,
            trace_id=run.trace.trace_id,
        )
    )
    ending = PolicyResult(NO_POLICY, "failed", "bug", ExitCode.FAILED)
    try:
        yield
        partial = run.ending is ExitCode.STOPPED_EARLY
        ending = PolicyResult(NO_POLICY, "partial" if partial else "completed", "done", run.ending)
    except StoppedEarly as stop:
        by_signal = stop.exit_code in (ExitCode.SIGTERM, ExitCode.SIGINT)
        ending = PolicyResult(NO_POLICY, "interrupted" if by_signal else "partial", stop.stop_reason, stop.exit_code)
        raise
    except OpsError as error:
        ending = _failed(error)
        raise
    except psycopg.Error as error:
        ending = _failed(explained(error))
        raise
    finally:
        try:
            retry(lambda: runs.close_run(run.writer, run_id, ending), on=connection_lost, attempts=4, seconds=10.0)
        except (psycopg.Error, DatabaseUnavailable) as error:
            get_logger().error("run_record_not_closed", error=type(error).__name__)


def _failed(error: OpsError) -> PolicyResult:
    return PolicyResult(NO_POLICY, "failed", error.stop_reason, error.exit_code, error=str(error))
