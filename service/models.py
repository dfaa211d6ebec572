"""The tables. Their constraints forbid what must never be; see the comments at each.

Times are UTC and passed in by the caller: no SQL statement asks the database for the time.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8RANGE, JSONB, ExcludeConstraint

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _time(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    _time("created_at"),
    CheckConstraint("role IN ('admin', 'user')", name="role"),
)

# Only the SHA-256 of a token is kept, and its last characters, by which its owner tells it from others. A token belongs
# to one person or to one node, never to both.
tokens = Table(
    "tokens",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("ending", Text, nullable=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=True),
    Column("node_name", Text, nullable=True),
    _time("created_at"),
    _time("revoked_at", nullable=True),
    CheckConstraint("(user_id IS NULL) <> (node_name IS NULL)", name="one_owner"),
)

# With a join token an agent becomes a node, once. `used_hash` is the credential it chose: it may say so again when the
# answer was lost, and nobody else may.
join_tokens = Table(
    "join_tokens",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    # The one name it is good for; any new one if there is none.
    Column("node_name", Text, nullable=True),
    # Whether it may take the name from a node that has a credential.
    Column("replace", Boolean, nullable=False),
    Column("created_by", Text, ForeignKey("users.id"), nullable=False),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
    Column("used_by", Text, nullable=True),
    Column("used_hash", LargeBinary, nullable=True),
    CheckConstraint("num_nulls(used_at, used_by, used_hash) IN (0, 3)", name="used"),
)

# A node is its name: the id.
nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    # Rises at each registration; a sync with an older one is refused.
    Column("incarnation", Integer, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("cpu_model", Text, nullable=False),
    Column("millicores", Integer, nullable=False),
    Column("cpu_threads", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("labels", JSONB, nullable=False),
    # How its agent keeps the processes of an attempt together; null if it is of before and does not say.
    Column("containment", Text, nullable=True),
    # What the kernel limits there; null if its agent has not said so since it registered.
    Column("limits", JSONB, nullable=True),
    # What runs containers there, or why nothing does; neither for a node whose agent does not say.
    Column("container_runtime", Text, nullable=True),
    Column("container_fault", Text, nullable=True),
    # An administrator's word, which outlives registrations: nothing new goes there.
    Column("cordoned", Boolean, nullable=False),
    # Why the service itself closed it; an administrator who opens it again takes that back.
    Column("closed_because", Text, nullable=True),
    # What the present incarnation has told: the number of its latest report, and how many samples.
    Column("report_seq", BigInteger, nullable=False, server_default="0"),
    Column("samples_taken", BigInteger, nullable=False, server_default="0"),
    # The memory of the agent that told it; null if that is of before and does not say.
    Column("state_folder", Text, nullable=True),
    # Its latest fetches, by source: bytes, wait and transfer of each (s); null before the first.
    Column("links", JSONB, nullable=True),
    # When what runs there is stopped; only on a node that is cordoned, and never after it is opened again.
    _time("drain_at", nullable=True),
    # Whether it is switched on, as far as the service switches it, and since when; null for one never switched.
    Column("power", Text, nullable=False, server_default="on"),
    _time("power_since", nullable=True),
    # An administrator's word, which outlives all plans: it stays on, or it stays off.
    Column("power_kept", Text, nullable=True),
    # The command that switches it: while it runs; once it ended well in the present state; when it is tried again.
    _time("hook_began_at", nullable=True),
    _time("hook_ended_at", nullable=True),
    _time("hook_retry_at", nullable=True),
    # Failures in a row, and what the latest said.
    Column("hook_failures", Integer, nullable=False, server_default="0"),
    Column("hook_error", Text, nullable=True),
    _time("registered_at"),
    _time("last_seen_at"),
    CheckConstraint("power IN ('on', 'suspending', 'off', 'booting')", name="power"),
    CheckConstraint("power_kept IN ('on', 'off')", name="power_kept"),
    CheckConstraint("drain_at IS NULL OR cordoned", name="drain"),
    CheckConstraint("closed_because IS NULL OR cordoned", name="closed_because"),
    CheckConstraint("state IN ('ready', 'lost')", name="state"),
)

# What nodes keep of code and data, as far as their agents say so, with what it takes of the disk.
node_cache = Table(
    "node_cache",
    metadata,
    Column("node_id", Text, ForeignKey("nodes.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Index("node_cache_key_idx", "key"),
)

# `seq` numbers devices for the ranges in `allocations`; it never changes and is never reused.
devices = Table(
    "devices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("power_limit_w", Float, nullable=True),
    # The lowest limit that its agent can set; null if it can set none, or has not said so since it registered.
    Column("least_cap_w", Float, nullable=True),
    # False once the node's agent no longer offers it.
    Column("present", Boolean, nullable=False),
    # Why its agent says that it must not get work; null if it may.
    Column("unfit_reason", Text, nullable=True),
)

# When a node was on and heard of, and with how many devices: the denominator of every idle figure.
node_sessions = Table(
    "node_sessions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=False),
    Column("devices", Integer, nullable=False),
    Column("base_w", Float, nullable=False),
    _time("started_at"),
    _time("ended_at", nullable=True),
    Index("node_sessions_open_key", "node_id", unique=True, postgresql_where=text("ended_at IS NULL")),
)

# When a node was not on: on its way off, off, on its way on. Reports price it, and boots are counted by it.
power_spells = Table(
    "power_spells",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=False),
    Column("state", Text, nullable=False),
    _time("began_at"),
    _time("ended_at", nullable=True),
    CheckConstraint("state IN ('suspending', 'off', 'booting')", name="state"),
    Index("power_spells_open_key", "node_id", unique=True, postgresql_where=text("ended_at IS NULL")),
    Index("power_spells_began_at_idx", "began_at"),
)

# What an administrator should look at, as long as it lasts. `subject` is a node, or empty.
alarms = Table(
    "alarms",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("message", Text, nullable=False),
    _time("raised_at"),
)

# Jobs submitted as one; `limit` is how many of them may have devices at a time.
arrays = Table(
    "arrays",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("count", Integer, nullable=False),
    Column("limit", Integer, nullable=True),
    _time("submitted_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    # Order of arrival: the planner's order within a priority, and the cursor of listings.
    Column("seq", BigInteger, Identity(always=True), nullable=False, unique=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", JSONB, nullable=False),
    # Which of its user's jobs do the same work (`service.run_times.signature`); null for a job of before.
    Column("signature", Text, nullable=True),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=True),
    Column("exit_code", Integer, nullable=True),
    # The fencing number of the latest attempt.
    Column("epoch", Integer, nullable=False),
    # Rises with every change of state; a plan made from an older version is refused.
    Column("version", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("array_id", Text, ForeignKey("arrays.id"), nullable=True),
    # Kept by a job that was resubmitted alone from an array.
    Column("array_index", Integer, nullable=True),
    Column("origin_id", Text, ForeignKey("jobs.id"), nullable=True),
    # Somebody asked for it to wait. A job is `held` if so, or if a dependency is not met. Only a restore asks it of one
    # that has devices, which is held when it goes back to the queue.
    Column("hold", Boolean, nullable=False),
    # Attempts that were repeated: because a node was lost, and because of the job's own fault.
    Column("losses", Integer, nullable=False),
    Column("faults", Integer, nullable=False),
    # The next attempt starts at this time or later.
    _time("not_before", nullable=True),
    # Output, metrics and stored output of an old job are gone.
    Column("trimmed", Boolean, nullable=False, server_default="false"),
    Column("verdict", JSONB(none_as_null=True), nullable=True),
    Column("progress", JSONB(none_as_null=True), nullable=True),
    # How fast it gets on (`scheduler.pace.Pace`), and the attempt that this is about.
    Column("pace", JSONB(none_as_null=True), nullable=True),
    # The latest checkpoint that was reported, and when. It only moves to a later attempt, or a later step of the same.
    Column("checkpoint_epoch", Integer, nullable=True),
    Column("checkpoint_step", BigInteger, nullable=True),
    _time("checkpoint_at", nullable=True),
    # The service holds its files: nodes that share no folder fetch them.
    Column("checkpoint_stored", Boolean, nullable=False, server_default="false"),
    _time("submitted_at"),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    CheckConstraint(
        "state IN ('queued', 'held', 'starting', 'running', 'succeeded', 'failed', 'cancelled')", name="state"
    ),
    CheckConstraint("num_nulls(checkpoint_epoch, checkpoint_step, checkpoint_at) IN (0, 3)", name="checkpoint"),
    CheckConstraint("checkpoint_epoch <= epoch", name="checkpoint_epoch"),
    Index("jobs_user_id_seq_idx", "user_id", "seq"),
    Index(
        "jobs_past_runs_idx",
        "user_id",
        "signature",
        "ended_at",
        postgresql_where=text("state = 'succeeded' AND signature IS NOT NULL"),
    ),
    Index(
        "jobs_past_estimates_idx",
        "user_id",
        "ended_at",
        postgresql_where=text("state = 'succeeded' AND (spec ->> 'expected_run_s') IS NOT NULL"),
    ),
    Index("jobs_ended_at_idx", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    Index("jobs_queued_idx", "priority", "seq", postgresql_where=text("state = 'queued'")),
    Index("jobs_array_key", "array_id", "array_index", unique=True, postgresql_where=text("array_id IS NOT NULL")),
    Index(
        "jobs_array_live_idx",
        "array_id",
        postgresql_where=text("array_id IS NOT NULL AND state IN ('starting', 'running')"),
    ),
)

# `job_id` waits for `parent_id`. A job with a dependency that is not met must be `held`.
dependencies = Table(
    "dependencies",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("parent_id", Text, ForeignKey("jobs.id"), primary_key=True),
    # True if the parent must succeed, false if any end of it will do.
    Column("on_success", Boolean, nullable=False),
    Column("met", Boolean, nullable=False),
    Index("dependencies_open_idx", "parent_id", postgresql_where=text("NOT met")),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    # Written by the service only; `state` follows from what agents report.
    Column("desired", Text, nullable=False),
    # Why it was told to stop, or why it ended.
    Column("reason", Text, nullable=True),
    Column("rendezvous", Text, nullable=True),
    # The power limit of its devices, if it has one of its own, and how many times as long it runs for that, expected.
    Column("cap_w", Float, nullable=True),
    Column("slower", Float, nullable=False, server_default="1"),
    _time("granted_at"),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    UniqueConstraint("job_id", "epoch"),
    CheckConstraint("state IN ('granted', 'starting', 'running', 'stopping', 'ended')", name="state"),
    CheckConstraint("desired IN ('run', 'stop')", name="desired"),
    # Two live attempts of one job must never be.
    Index("attempts_live_key", "job_id", unique=True, postgresql_where=text("state <> 'ended'")),
)

# One node's part of an attempt. CPU and memory are held until `released_at`.
members = Table(
    "members",
    metadata,
    Column("attempt_id", Text, ForeignKey("attempts.id"), primary_key=True),
    Column("member", Integer, primary_key=True),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=False),
    Column("millicores", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("exit_code", Integer, nullable=True),
    Column("reason", Text, nullable=True),
    Column("message", Text, nullable=True),
    # Its ranks have written nothing for the job's `stall_timeout_s`.
    Column("quiet", Boolean, nullable=False, server_default=text("false")),
    # What meters counted of its whole devices while the attempt ran, in J, and over how many device-seconds.
    Column("metered_j", Float, nullable=False, server_default="0"),
    Column("metered_s", Float, nullable=False, server_default="0"),
    _time("granted_at"),
    _time("released_at", nullable=True),
    UniqueConstraint("attempt_id", "node_id"),
    CheckConstraint("state IN ('granted', 'starting', 'running', 'stopping', 'ended')", name="state"),
    Index("members_held_idx", "node_id", postgresql_where=text("released_at IS NULL")),
    Index("members_released_at_idx", "released_at"),
)

# A hold on thousandths of a device: `span` is [1000 * seq + first, 1000 * seq + last). The exclusion constraint makes
# two live holds on the same share impossible, whatever any program does.
allocations = Table(
    "allocations",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("attempt_id", Text, nullable=False),
    Column("member", Integer, nullable=False),
    Column("device_id", Text, ForeignKey("devices.id"), nullable=False),
    Column("span", INT8RANGE, nullable=False),
    _time("granted_at"),
    _time("released_at", nullable=True),
    ForeignKeyConstraint(["attempt_id", "member"], ["members.attempt_id", "members.member"]),
    CheckConstraint("NOT isempty(span) AND NOT lower_inf(span) AND NOT upper_inf(span)", name="span"),
    ExcludeConstraint(
        ("span", "&&"), where=text("released_at IS NULL"), using="gist", name="allocations_one_holder_excl"
    ),
    Index("allocations_attempt_id_idx", "attempt_id"),
    Index("allocations_released_at_idx", "released_at"),
)

# Output of ranks. The key makes storing idempotent: the same bytes sent twice are kept once.
chunks = Table(
    "chunks",
    metadata,
    Column("attempt_id", Text, ForeignKey("attempts.id"), primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    # Arrival order over all streams of a job: what a follower reads along.
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("data", LargeBinary, nullable=False),
    _time("received_at"),
    CheckConstraint("stream IN ('stdout', 'stderr', 'progress')", name="stream"),
    CheckConstraint("octet_length(data) BETWEEN 1 AND 262144", name="data"),
    Index("chunks_attempt_id_seq_idx", "attempt_id", "seq"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger, nullable=True),
    Column("name", Text, nullable=False),
    Column("value", Float, nullable=False),
    _time("at"),
    Index("metrics_job_id_seq_idx", "job_id", "seq"),
)

# Raw measurements as agents sent them; `scheduler/power.py` prices them when a report is made.
samples = Table(
    "samples",
    metadata,
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=False),
    Column("device_id", Text, nullable=True),
    _time("started_at"),
    _time("ended_at"),
    Column("energy_j", Float, nullable=True),
    Column("busy_cores", Float, nullable=True),
    Column("utilisation", Float, nullable=True),
    Column("source", Text, nullable=False),
    Index("samples_node_id_ended_at_idx", "node_id", "ended_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    _time("at"),
    Column("kind", Text, nullable=False),
    Column("data", JSONB, nullable=False),
    Index("events_job_id_seq_idx", "job_id", "seq"),
)

cycles = Table(
    "cycles",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("term", BigInteger, nullable=False),
    _time("at"),
    Column("pending", Integer, nullable=False),
    Column("placed", Integer, nullable=False),
    Column("committed", Integer, nullable=False),
    Column("objective_j", Float, nullable=False),
    Column("bound_j", Float, nullable=False),
    Column("gap", Float, nullable=False),
    Column("method", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("snapshot_s", Float, nullable=False),
    Column("solve_s", Float, nullable=False),
    Column("commit_s", Float, nullable=False),
    # The codec's bytes, compressed with zlib: the cycle can be solved again, offline, to the same plan.
    Column("problem", LargeBinary, nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Index("cycles_at_idx", "at"),
)

# One row. `renewals` rises while the holder lives; who sees it stand still on its own clock may raise `term`. Epochs
# under `least_epoch` may have been given to attempts that a restore from a backup has forgotten.
leadership = Table(
    "leadership",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("term", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("renewals", BigInteger, nullable=False),
    Column("least_epoch", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("id = 1", name="one_row"),
)

# The answer to a request, kept so that the same request sent again gets the same answer.
idempotency = Table(
    "idempotency",
    metadata,
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    # Ids of the jobs and arrays that the request made, in its order.
    Column("ids", ARRAY(Text), nullable=False),
    _time("created_at"),
)

# Code that was uploaded, by its SHA-256. The row is written after the blob, so that whoever sees it finds it whole.
archives = Table(
    "archives",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    # Its name in the store.
    Column("blob", Text, nullable=False, unique=True),
    _time("created_at"),
)

# Who has uploaded an archive: nobody else may name it. The oldest make room for new ones.
archive_owners = Table(
    "archive_owners",
    metadata,
    Column("digest", Text, ForeignKey("archives.digest"), primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), primary_key=True),
    _time("used_at"),
    Index("archive_owners_user_id_used_at_idx", "user_id", "used_at"),
)

# What a member left in $ERGON_OUTPUT, stored once.
outputs = Table(
    "outputs",
    metadata,
    Column("attempt_id", Text, primary_key=True),
    Column("member", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("blob", Text, nullable=False, unique=True),
    _time("stored_at"),
    ForeignKeyConstraint(["attempt_id", "member"], ["members.attempt_id", "members.member"]),
)

# What one rank has saved at one step, by path: size and digest. `arrived` once every file of it is here.
checkpoint_parts = Table(
    "checkpoint_parts",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("world_size", Integer, nullable=False),
    Column("files", JSONB, nullable=False),
    Column("arrived", Boolean, nullable=False),
    CheckConstraint("rank < world_size", name="rank"),
)

# How fast kinds of devices are beside each other, learned from works that ran on several.
kind_speeds = Table(
    "kind_speeds",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("log_speed", Float, nullable=False),
    # How many works say so.
    Column("works", Integer, nullable=False),
)

# Files of a job's checkpoints, each once however many checkpoints have it.
checkpoint_files = Table(
    "checkpoint_files",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("digest", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    # Its name in the store.
    Column("blob", Text, nullable=False, unique=True),
)
