"""Rows as they stood in a database of each revision, written with the statements of that revision: what an upgrade has
to bring along. A released entry is never edited; whoever adds a revision that brings a table adds its rows here."""

BEGAN = "2026-01-01 00:00+00"
ALICE, ROOT, NODE = "ergon_user_alice", "ergon_user_root", "ergon_node_n1"
"""The tokens behind the hashes."""

_SPEC = (
    '{"name": "%s", "command": ["true"], "recipe": null, "env": {"A": "1"}, "queue": "default", "priority": %d, '
    '"nodes": %d, "devices_per_node": 1, "device_kinds": [], "ranks_per_node": null, "cpu_cores_per_node": null, '
    '"memory_bytes_per_node": 0, "time_limit_s": null, "expected_run_s": 600.0, "require_feasible": false}'
)
_EMPTY = "decode('789cabae0500017500f9', 'hex')"
"""`{}` as zlib packs it: the problem and the plan of a cycle."""

ROWS: dict[str, tuple[str, ...]] = {
    "0001": (
        f"INSERT INTO users VALUES ('u-root', 'root', 'admin', '{BEGAN}'), ('u-alice', 'alice', 'user', '{BEGAN}')",
        f"INSERT INTO tokens VALUES (sha256('{ALICE}'), 'u-alice', NULL, '{BEGAN}', NULL), "
        f"(sha256('{ROOT}'), 'u-root', NULL, '{BEGAN}', NULL), (sha256('{NODE}'), NULL, 'n1', '{BEGAN}', NULL), "
        f"(sha256('ergon_user_old'), 'u-alice', NULL, '{BEGAN}', '2026-01-01 01:00+00')",
        "INSERT INTO nodes VALUES "
        "('n1', 7, 'boot-1', 'ready', '10.0.0.1', 'A CPU', 2000, 2, 8589934592, '{\"rack\": \"a\"}', "
        f"'{BEGAN}', '2026-01-01 03:00+00'), "
        "('n2', 8, 'boot-2', 'ready', '10.0.0.2', 'A CPU', 2000, 2, 8589934592, '{}', "
        f"'{BEGAN}', '2026-01-01 03:00+00')",
        "INSERT INTO devices (id, node_id, kind, number, memory_bytes, power_limit_w, present) VALUES "
        "('cpu:n1:0', 'n1', 'cpu', 0, 0, NULL, true), ('cpu:n1:1', 'n1', 'cpu', 1, 0, NULL, true), "
        "('cpu:n2:0', 'n2', 'cpu', 0, 0, NULL, true), ('cpu:n2:1', 'n2', 'cpu', 1, 0, NULL, true)",
        "INSERT INTO node_sessions (node_id, devices, base_w, started_at, ended_at) VALUES "
        f"('n1', 2, 40.5, '{BEGAN}', NULL), ('n2', 2, 40.5, '{BEGAN}', NULL)",
        "INSERT INTO jobs (id, user_id, name, queue, priority, spec, state, reason, exit_code, epoch, version, "
        "cancel_requested, verdict, progress, submitted_at, started_at, ended_at) VALUES "
        f"('j-ended', 'u-alice', 'ended', 'default', 0, '{_SPEC % ('ended', 0, 1)}', 'succeeded', 'completed', 0, 1, "
        '5, false, \'{"outcome": "placed", "reasons": [], "cycle": 1}\', '
        '\'{"step": 9, "total_steps": 9, "epoch": null, "total_epochs": null, "metrics": {"loss": 0.25}}\', '
        f"'{BEGAN}', '2026-01-01 01:00+00', '2026-01-01 02:00+00'), "
        f"('j-runs', 'u-alice', 'runs', 'default', 0, '{_SPEC % ('runs', 0, 2)}', 'running', NULL, NULL, 2, 9, "
        f"false, NULL, NULL, '{BEGAN}', '2026-01-01 02:00+00', NULL), "
        f"('j-waits', 'u-alice', 'waits', 'default', 3, '{_SPEC % ('waits', 3, 2)}', 'queued', NULL, NULL, 0, 1, "
        'false, \'{"outcome": "waiting", "reasons": [{"code": "nodes_busy", "message": "busy"}], "cycle": 2}\', NULL, '
        "'2026-01-01 02:30+00', NULL, NULL)",
        "INSERT INTO attempts VALUES "
        f"('a-ended', 'j-ended', 1, 1, 'ended', 'run', 'completed', '10.0.0.1:4000', '{BEGAN}', "
        "'2026-01-01 01:00+00', '2026-01-01 02:00+00'), "
        f"('a-lost', 'j-runs', 1, 1, 'ended', 'stop', 'node_lost', NULL, '{BEGAN}', NULL, '2026-01-01 01:30+00'), "
        "('a-runs', 'j-runs', 2, 2, 'running', 'run', NULL, '10.0.0.1:4001', '2026-01-01 02:00+00', "
        "'2026-01-01 02:00+00', NULL)",
        "INSERT INTO members VALUES "
        f"('a-ended', 0, 'n1', 1000, 0, 'ended', 0, 'completed', NULL, '{BEGAN}', '2026-01-01 02:00+00'), "
        f"('a-lost', 0, 'n2', 1000, 0, 'ended', NULL, 'node_lost', 'gone', '{BEGAN}', '2026-01-01 01:30+00'), "
        "('a-runs', 0, 'n1', 1000, 0, 'running', NULL, NULL, NULL, '2026-01-01 02:00+00', NULL), "
        "('a-runs', 1, 'n2', 1000, 0, 'running', NULL, NULL, NULL, '2026-01-01 02:00+00', NULL)",
        "INSERT INTO allocations (attempt_id, member, device_id, span, granted_at, released_at) "
        "SELECT attempt_id, member, devices.id, int8range(seq * 1000, (seq + 1) * 1000), granted_at, released_at "
        "FROM members JOIN devices ON devices.node_id = members.node_id AND number = 0",
        'INSERT INTO chunks (attempt_id, rank, stream, "offset", data, received_at) VALUES '
        "('a-ended', 0, 'stdout', 0, 'hello\\012', '2026-01-01 01:30+00'), "
        "('a-ended', 0, 'stdout', 6, 'again\\012', '2026-01-01 01:31+00'), "
        "('a-runs', 1, 'stderr', 0, 'runs\\012', '2026-01-01 02:30+00')",
        "INSERT INTO metrics (job_id, epoch, rank, step, name, value, at) VALUES "
        "('j-ended', 1, 0, 9, 'loss', 0.25, '2026-01-01 01:59+00')",
        "INSERT INTO samples (node_id, device_id, started_at, ended_at, energy_j, busy_cores, utilisation, source) "
        "VALUES ('n1', NULL, '2026-01-01 01:00+00', '2026-01-01 01:00:05+00', 250.5, 1.0, NULL, 'rapl')",
        "INSERT INTO events (job_id, at, kind, data) VALUES "
        f"('j-ended', '{BEGAN}', 'submitted', '{{}}'), "
        "('j-ended', '2026-01-01 02:00+00', 'ended', '{\"state\": \"succeeded\", \"exit_code\": 0}'), "
        f"('j-runs', '{BEGAN}', 'submitted', '{{}}')",
        "INSERT INTO cycles (term, at, pending, placed, committed, objective_j, bound_j, gap, method, status, "
        "snapshot_s, solve_s, commit_s, problem, plan) VALUES "
        f"(1, '{BEGAN}', 2, 2, 2, 1000.5, 990.5, 0.01, 'cpsat', 'optimal', 0.1, 0.2, 0.1, {_EMPTY}, {_EMPTY})",
        "INSERT INTO leadership VALUES (1, 2, 'host:1', 100)",
        f"INSERT INTO idempotency VALUES ('u-alice', 'key-1', sha256('asked'), 'j-ended', '{BEGAN}')",
    ),
    "0002": (
        "INSERT INTO arrays VALUES ('r-1', 'u-alice', 2, 1, '2026-01-01 02:40+00')",
        "INSERT INTO jobs (id, user_id, name, queue, priority, spec, state, epoch, version, cancel_requested, "
        "submitted_at, array_id, array_index, hold, losses, faults) VALUES "
        f"('j-r0', 'u-alice', 'r', 'default', 0, '{_SPEC % ('r', 0, 1)}', 'held', 0, 1, false, "
        "'2026-01-01 02:40+00', 'r-1', 0, true, 0, 0), "
        f"('j-after', 'u-alice', 'after', 'default', 0, '{_SPEC % ('after', 0, 1)}', 'held', 0, 1, false, "
        "'2026-01-01 02:40+00', NULL, NULL, false, 0, 0)",
        "INSERT INTO dependencies VALUES ('j-after', 'j-runs', true, false)",
    ),
    "0003": (
        "INSERT INTO join_tokens VALUES "
        "(sha256('ergon_join_1'), 'n3', false, 'u-root', '2026-01-01 02:00+00', '2026-01-02 02:00+00', "
        "NULL, NULL, NULL)",
    ),
    "0004": (
        "INSERT INTO archives VALUES ('sha256:1', 100, 'archives/1', '2026-01-01 02:00+00')",
        "INSERT INTO archive_owners VALUES ('sha256:1', 'u-alice', '2026-01-01 02:00+00')",
        "INSERT INTO outputs VALUES ('a-ended', 0, 'sha256:2', 50, 'outputs/1', '2026-01-01 02:00+00')",
    ),
    "0014": (
        "INSERT INTO checkpoint_parts VALUES ('j-runs', 1, 10, 0, 2, '{\"state\": [3, \"sha256:3\"]}', true)",
        "INSERT INTO checkpoint_files VALUES ('j-runs', 'sha256:3', 3, 'blob-3')",
    ),
    "0007": ("INSERT INTO alarms VALUES ('node_closed', 'n9', 'nothing starts on n9', '2026-01-01 02:00+00')",),
    "0017": (
        "INSERT INTO power_spells (node_id, state, began_at, ended_at) VALUES "
        f"('n2', 'suspending', '{BEGAN}', '2026-01-01 00:10+00'), ('n2', 'off', '2026-01-01 00:10+00', NULL)",
    ),
    "0022": ("INSERT INTO node_cache VALUES ('n1', 'archives', '0123456789abcdef', 100)",),
    "0020": ("INSERT INTO kind_speeds VALUES ('a100', 0.9, 3), ('t4', -0.9, 3)",),
}
