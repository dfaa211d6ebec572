"""Nothing grows for ever: what is old loses its bulk first, and is forgotten in the end.

The bulk is what ranks wrote and reported, stored outputs and checkpoints, samples and recorded cycles. Reports need the
rest, and without samples they price the same hours by the power model, and say so.
"""

import logging
from datetime import datetime, timedelta

from sqlalchemy import Engine

from service.blobs import Blobs
from service.refusals import Unavailable
from service.settings import Settings
from service.store import retention as store

log = logging.getLogger(__name__)

JOBS_AT_ONCE = 100
ROWS_AT_ONCE = 10_000
KEYS_KEPT = timedelta(days=7)
"""A request that is sent again after so long is a new one."""


def sweep(engine: Engine, settings: Settings, blobs: Blobs, *, now: datetime) -> bool:
    """Delete some of what is too old; True if more may be left. Ended in the middle, it goes on where it was."""
    bulk, records = (now - timedelta(days=days) for days in (settings.keep_output_days, settings.keep_records_days))
    trimmed = _trim(engine, blobs, bulk)
    with engine.begin() as tx:
        forgotten = store.jobs_to_forget(tx, records, JOBS_AT_ONCE)
        store.forget_jobs(tx, forgotten)
    with engine.begin() as tx:
        rows = [
            store.forget_samples(tx, bulk, ROWS_AT_ONCE),
            store.forget_cycles(tx, bulk, JOBS_AT_ONCE),
            store.forget_sessions(tx, records, ROWS_AT_ONCE),
            store.forget_spells(tx, records, ROWS_AT_ONCE),
        ]
        store.forget_keys(tx, now - KEYS_KEPT)
    if trimmed or forgotten:
        log.info("deleted the output of %d old jobs, and forgot %d older ones", trimmed, len(forgotten))
    return JOBS_AT_ONCE in (trimmed, len(forgotten), rows[1]) or ROWS_AT_ONCE in rows


def _trim(engine: Engine, blobs: Blobs, before: datetime) -> int:
    """Delete the bulk of some old jobs; of how many. Blobs go first: a row without one can be deleted again."""
    with engine.begin() as tx:
        doomed = store.jobs_to_trim(tx, before, JOBS_AT_ONCE)
        stored = store.stored_blobs(tx, doomed)
    try:
        for row in stored:
            blobs.delete(row.blob)
    except Unavailable as error:
        log.warning("old outputs are not deleted now: %s", error)
        return 0
    with engine.begin() as tx:
        store.trim_jobs(tx, doomed)
    return len(doomed)
