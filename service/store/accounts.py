"""People, nodes' credentials, and their tokens."""

from datetime import datetime

from sqlalchemy import Connection, insert, select

from protocol.states import Role
from service.db import Record
from service.models import tokens, users


def find_user(tx: Connection, name: str) -> Record | None:
    return tx.execute(select(users).where(users.c.name == name)).one_or_none()


def add_user(tx: Connection, *, user_id: str, name: str, role: Role, now: datetime) -> None:
    tx.execute(insert(users).values(id=user_id, name=name, role=role.value, created_at=now))


def add_token(
    tx: Connection, *, token_hash: bytes, user_id: str | None = None, node_name: str | None = None, now: datetime
) -> None:
    tx.execute(insert(tokens).values(hash=token_hash, user_id=user_id, node_name=node_name, created_at=now))


def find_token(tx: Connection, token_hash: bytes) -> Record | None:
    """The owner of a token that is not revoked: columns `user_id`, `user_name`, `role`, `node_name`."""
    query = (
        select(tokens.c.user_id, tokens.c.node_name, users.c.name.label("user_name"), users.c.role)
        .select_from(tokens.outerjoin(users, tokens.c.user_id == users.c.id))
        .where(tokens.c.hash == token_hash, tokens.c.revoked_at.is_(None))
    )
    return tx.execute(query).one_or_none()
