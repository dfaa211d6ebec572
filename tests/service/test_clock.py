"""The service's wall clock is the database's, whatever the clock of the machine that asks shows."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, make_url, text

from service.db import Clock, connect

AHEAD = timedelta(hours=2)
NEAR = timedelta(minutes=1)


def set_ahead(engine: Engine) -> None:
    """From the next connection on the database's clock shows two hours more than this machine's."""
    name = make_url(str(engine.url)).database
    with engine.begin() as tx:
        tx.execute(text("CREATE SCHEMA ahead"))
        tx.execute(
            text(
                "CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
                "$$ SELECT pg_catalog.clock_timestamp() + interval '2 hours' $$"
            )
        )
        tx.execute(text(f'ALTER DATABASE "{name}" SET search_path = ahead, pg_catalog, public'))


def ahead_of_this_machine(clock: Clock) -> timedelta:
    return clock() - datetime.now(UTC)


def test_the_clock_is_the_databases_from_the_first_connection_on(engine: Engine, database_url: str) -> None:
    set_ahead(engine)
    asking = connect(database_url, pool_size=1)
    clock = Clock(asking)
    assert abs(ahead_of_this_machine(clock)) < NEAR
    with asking.connect() as tx:
        assert abs(ahead_of_this_machine(clock) - AHEAD) < NEAR
        assert not tx.connection.dbapi_connection.info.transaction_status  # type: ignore[union-attr]
    asking.dispose()


def test_a_clock_that_was_set_is_followed_with_the_next_connection(engine: Engine, database_url: str) -> None:
    asking = connect(database_url, pool_size=1)
    clock = Clock(asking)
    with asking.connect():
        assert abs(ahead_of_this_machine(clock)) < NEAR
    set_ahead(engine)
    asking.dispose()
    with asking.connect():
        assert abs(ahead_of_this_machine(clock) - AHEAD) < NEAR
    asking.dispose()
