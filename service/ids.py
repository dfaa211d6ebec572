"""Identifiers of rows that people see. Unguessable order, short enough to type."""

import secrets
from collections.abc import Callable

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no letter that is read as a digit."""

LENGTH = 13

NewId = Callable[[str], str]
"""Makes a fresh id with the given prefix; use cases take it as an argument, so that tests can seed it."""


def new_id(prefix: str) -> str:
    """A fresh id such as `job-7g3k2m9qd4w1x`: 65 random bits."""
    return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
