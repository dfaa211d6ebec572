"""Every environment variable that any part of Ergon reads. A name with our prefix that is not here is a mistake."""

import difflib
from collections.abc import Mapping

PREFIX = "ERGON_"

CLIENT_VARIABLES = {
    "ERGON_SERVER": "Address of the service, such as http://127.0.0.1:8765.",
    "ERGON_TOKEN": "The token of the person who calls.",
    "ERGON_JOIN_TOKEN": "The join token with which `ergon agent` makes this machine a node.",
}
CONNECTION_VARIABLES = {
    "ERGON_CA": "File with the certificate (PEM) that vouches for the service's; those the system trusts if unset.",
}
SERVICE_VARIABLES = {
    "ERGON_DATA_DIR": "Folder for the embedded PostgreSQL and its logs.",
    "ERGON_DATABASE_URL": "PostgreSQL to use instead of the embedded one (postgresql://user:password@host/name).",
    "ERGON_HOST": "Address the API listens on; loopback unless told otherwise.",
    "ERGON_PORT": "Port the API listens on.",
    "ERGON_TLS_CERT": "File with the certificate of the API, and those it rests on (PEM); with it the API speaks TLS.",
    "ERGON_TLS_KEY": "File with the private key to it (PEM, no passphrase).",
    "ERGON_INSECURE": "1 lets the API listen beyond loopback without TLS, in a network where nobody can listen in.",
    "ERGON_QUEUES": "Names of the queues jobs may be submitted to, separated by commas.",
    "ERGON_PUE": "Power usage effectiveness of the site, at least 1.",
    "ERGON_PRICE_PER_KWH": "Price of a kWh at the site's meter where ERGON_TARIFF says none, for reports.",
    "ERGON_CURRENCY": "Currency of that price, three letters.",
    "ERGON_CARBON_G_PER_KWH": "CO2 equivalent of a kWh in g where ERGON_TARIFF says none, for reports.",
    "ERGON_TARIFF": "CSV of prices and CO2 over time, a file or an http(s) URL: for reports and jobs with --may-wait.",
    "ERGON_WAIT_FOR": "What jobs with --may-wait wait for where ERGON_TARIFF says both: price or carbon.",
    "ERGON_LEASE_S": "How long an agent may run ranks without hearing from the service, in s.",
    "ERGON_TICK_S": "Longest time between two planning cycles while jobs wait, in s.",
    "ERGON_STOP_GRACE_S": "From the polite signal to the final one when a job is stopped, in s.",
    "ERGON_MAX_ATTEMPTS": "Attempts a job gets in all when nodes are lost under it.",
    "ERGON_OVERTAKEN_S": "How long others of its priority may overtake a job; then nodes are kept for it, in s.",
    "ERGON_MOVES_PER_JOB": "Moves of running jobs for each that comes; 0: no resizes either. Only with --may-move.",
    "ERGON_POWER_POOLS": "TOML file that says which nodes are switched off and on, and by which commands.",
    "ERGON_POWER_BUDGETS": "TOML file that says how many watts groups of nodes may draw together.",
    "ERGON_KEEP_OUTPUT_DAYS": "Days that output and checkpoints of ended jobs are kept; samples and cycles too.",
    "ERGON_KEEP_RECORDS_DAYS": "Days that ended jobs are kept, and what reports are made of.",
    "ERGON_CHECKPOINT_QUOTA_BYTES": "Bytes that the checkpoints of one user's jobs may take in the store.",
    "ERGON_STORE_URL": "Where code, outputs, checkpoints lie: any fsspec URL; `store` in the data folder by default.",
    "ERGON_POSTGRES_USER": "System user that runs the embedded PostgreSQL when Ergon is started by root.",
}
RANK_VARIABLES = {
    "ERGON_CHECKPOINT_LOCAL": "Set for ranks: only those of their own node save in ERGON_CHECKPOINT_DIR.",
    "ERGON_JOB_ID": "Set for ranks: the job.",
    "ERGON_ATTEMPT": "Set for ranks: the attempt, unique for each try.",
    "ERGON_EPOCH": "Set for ranks: the number of the attempt.",
    "ERGON_ARRAY_INDEX": "Set for ranks of a job that is part of an array: its number, from 0.",
    "ERGON_OUTPUT": "Set for ranks: folder whose content is stored when the job has ended.",
    "ERGON_CHECKPOINT_DIR": "Set for ranks: folder with the job's checkpoints, where the node keeps any.",
    "ERGON_CHECKPOINT_LATEST": "Set for ranks: epoch/step of the latest checkpoint that the service knows of.",
    "ERGON_DUMP_SIGNAL": "Set for ranks: number of the signal that asks for the stacks of all threads.",
    "ERGON_PROGRESS": "Set for ranks: file that takes progress, one JSON object a line.",
}
DATASET_PREFIX = "ERGON_DATASET_"
"""Set for ranks: where each dataset of the job is, the name in capitals."""

BENCH_VARIABLES = {
    "ERGON_BENCH_DATA": "Folder with the public traces that benchmarks read.",
    "ERGON_FUZZ_SEED": "Number that the made-up requests of `make fuzz` follow from.",
    "ERGON_FUZZ_EXAMPLES": "Made-up requests of `make fuzz` for each operation; 0 for the short round of `make test`.",
    "ERGON_CHROMIUM": "Chromium for the browser tests, where it is not on the path.",
}
VARIABLES = CLIENT_VARIABLES | CONNECTION_VARIABLES | SERVICE_VARIABLES | RANK_VARIABLES | BENCH_VARIABLES


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """One sentence for every variable with our prefix that nothing reads, with the nearest name that something does."""
    complaints: list[str] = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in VARIABLES and not name.startswith(DATASET_PREFIX):
            near = difflib.get_close_matches(name, VARIABLES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(VARIABLES))}"
            complaints.append(f"unknown environment variable {name}{hint}")
    return complaints
