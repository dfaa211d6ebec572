"""The number of the wire protocol between the service, its agents and its clients."""

PROTOCOL_VERSION = 1
"""Raised when a message changes in a way that an older reader would misunderstand. Additions do not raise it."""

PROTOCOL_HEADER = "Ergon-Protocol"
"""With it a client says which protocol it speaks. Agents say so in the body; programs of others need not say it."""


def why_mismatched(who: str, version: int) -> str | None:
    """What to do about `who`, a client or an agent, that speaks `version` to a service of ours; None if they match."""
    if version == PROTOCOL_VERSION:
        return None
    older = who if version < PROTOCOL_VERSION else "service"
    return f"the {who} speaks protocol {version}, the service {PROTOCOL_VERSION}: upgrade the {older}"
