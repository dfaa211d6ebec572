"""Migrations: they lead to the schema of the models, in one line, and applying them again or together does no harm."""

import os
import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

import migrations
from service import migrate
from service.db import connect
from service.models import metadata


def shape(url: str) -> list[tuple[str, ...]]:
    """Every column, index and constraint of the schema."""
    engine = connect(url, pool_size=1)
    with engine.connect() as tx:
        found = tx.execute(
            text(
                "SELECT 'column', table_name || '.' || column_name, data_type || is_nullable "
                "FROM information_schema.columns WHERE table_schema = 'public' "
                "UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' "
                "UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2, 3"
            )
        ).all()
    engine.dispose()
    return [tuple(row) for row in found]


def test_there_is_one_line_of_revisions_from_nothing_to_the_newest() -> None:
    scripts = ScriptDirectory(migrations.__path__[0])
    assert len(scripts.get_bases()) == len(scripts.get_heads()) == 1
    line = [script.revision for script in scripts.walk_revisions()]
    assert sorted(line, reverse=True) == line, "numbered in their order"


def test_the_migrations_lead_to_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata) == []
        found = inspect(connection)
        for table in metadata.sorted_tables:
            named = {str(constraint.name) for constraint in table.constraints if constraint.name}
            checks = {str(check["name"]) for check in found.get_check_constraints(table.name)}
            others = set(connection.execute(text("SELECT conname FROM pg_constraint")).scalars())
            assert named <= checks | others, "comparing does not see checks and exclusions"


def test_applying_them_again_changes_nothing(empty_url: str) -> None:
    assert not migrate.is_current(empty_url)
    migrate.upgrade(empty_url)
    assert migrate.is_current(empty_url)
    before = shape(empty_url)
    migrate.upgrade(empty_url)
    assert migrate.is_current(empty_url)
    assert shape(empty_url) == before


@pytest.mark.system
def test_processes_that_migrate_at_once_do_not_get_in_each_others_way(empty_url: str, database_url: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ERGON_")}
    environment["ERGON_DATABASE_URL"] = empty_url
    command = [sys.executable, "-P", "-m", "service", "migrate"]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ['{"ready": "migrate"}\n'] * 3
    assert shape(empty_url) == shape(database_url)


def test_job_control_keeps_the_jobs_and_answers_that_are_there(empty_url: str) -> None:
    """From revision 0001 to 0002, with a job on its third attempt and the answer to its submission."""
    migrate.upgrade(empty_url, "0001")
    engine = connect(empty_url, pool_size=1)
    with engine.begin() as tx:
        tx.execute(text("INSERT INTO users VALUES ('u', 'alice', 'user', now())"))
        tx.execute(
            text(
                "INSERT INTO jobs (id, user_id, name, queue, priority, spec, state, epoch, version, cancel_requested, "
                "submitted_at) VALUES ('j', 'u', 'n', 'q', 0, '{}', 'queued', 3, 7, false, now())"
            )
        )
        tx.execute(text("INSERT INTO idempotency VALUES ('u', 'k', 'hash', 'j', now())"))
    migrate.upgrade(empty_url, "0002")
    with engine.connect() as tx:
        job = tx.execute(text("SELECT hold, losses, faults, version FROM jobs")).one()
        assert tuple(job) == (False, 2, 0, 7)
        assert tx.execute(text("SELECT ids FROM idempotency")).scalar_one() == ["j"]
    engine.dispose()
