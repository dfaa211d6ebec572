"""Who runs the cycle. Election saves work; safety comes from the term that every commit checks.

No two clocks are compared: a follower watches a counter in the database, and takes over when the counter has stood
still for `PATIENCE_S` on the follower's own clock.
"""

from sqlalchemy import Engine

from service.store import cycles as store

PATIENCE_S = 6.0
"""How long the leader's counter may stand still: three renewals. With a look each second a leader that is dead or
frozen is followed within 10 s, whatever it was doing."""

RENEW_S = 2.0
"""The leader renews at least this often, also while it solves."""


class Leadership:
    """One process's part in the election.

    Args:
        holder: name of this process, for people who look.
    """

    def __init__(self, engine: Engine, holder: str) -> None:
        self._engine = engine
        self._holder = holder
        self._term: int | None = None
        self._watched: tuple[int, int] | None = None
        self._watched_since = 0.0

    def lead(self, clock_s: float) -> int | None:
        """Renew, or try to take over. The term if this process leads now, else None.

        Args:
            clock_s: a clock of this process that never goes back, in s.
        """
        with self._engine.begin() as tx:
            if self._term is not None:
                if store.renew_leadership(tx, term=self._term):
                    return self._term
                self._term = None
            row = store.read_leadership(tx)
            if row is None:
                self._term = 1 if store.found_leadership(tx, self._holder) else None
                return self._term
            if row.holder and self._watched != (row.term, row.renewals):
                self._watched, self._watched_since = (row.term, row.renewals), clock_s
                return None
            if row.holder and clock_s - self._watched_since < PATIENCE_S:
                return None
            if store.take_leadership(tx, term=row.term, renewals=row.renewals, holder=self._holder):
                self._term = row.term + 1
            return self._term

    def keep(self) -> None:
        """Renew while `lead` cannot be called because the leader works. Any thread may."""
        if (term := self._term) is not None:
            with self._engine.begin() as tx:
                store.renew_leadership(tx, term=term)

    def resign(self) -> None:
        """Let another process take over at once."""
        if self._term is not None:
            with self._engine.begin() as tx:
                store.resign_leadership(tx, term=self._term)
            self._term = None
