"""People, nodes' credentials, their tokens, and the join tokens with which agents become nodes."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, ScalarSelect, exists, func, insert, select, update

from protocol.states import Role
from service.db import Record
from service.models import join_tokens, tokens, users


def find_user(tx: Connection, name: str) -> Record | None:
    return tx.execute(select(users).where(users.c.name == name)).one_or_none()


def list_users(tx: Connection, *, after: str, limit: int) -> Sequence[Record]:
    """By name, with the number of tokens that are not revoked (`tokens`)."""
    query = select(users, _live_tokens().label("tokens")).where(users.c.name > after)
    return tx.execute(query.order_by(users.c.name).limit(limit)).all()


def count_tokens(tx: Connection, user_id: str) -> int:
    """Tokens of the person that are not revoked."""
    return tx.execute(select(_live_tokens()).where(users.c.id == user_id)).scalar_one()


def add_user(tx: Connection, *, user_id: str, name: str, role: Role, now: datetime) -> None:
    tx.execute(insert(users).values(id=user_id, name=name, role=role.value, created_at=now))


def change_role(tx: Connection, user_id: str, role: Role) -> None:
    tx.execute(update(users).where(users.c.id == user_id).values(role=role.value))


def lock_admins(tx: Connection) -> None:
    """Hold the rows of all administrators until the transaction ends; always locked in the same order."""
    query = select(users.c.id).where(users.c.role == Role.ADMIN.value).order_by(users.c.id)
    tx.execute(query.with_for_update()).all()


def an_admin_can_call(tx: Connection) -> bool:
    """Whether there is an administrator with a token that is not revoked."""
    live = exists().where(tokens.c.user_id == users.c.id, tokens.c.revoked_at.is_(None))
    return tx.execute(select(exists().where(users.c.role == Role.ADMIN.value, live))).scalar_one()


def add_token(
    tx: Connection,
    *,
    token_id: str,
    token_hash: bytes,
    ending: str | None,
    user_id: str | None = None,
    node_name: str | None = None,
    now: datetime,
) -> None:
    """A token of a person or of a node, one of the two."""
    values = {"id": token_id, "hash": token_hash, "ending": ending, "user_id": user_id, "node_name": node_name}
    tx.execute(insert(tokens).values(**values, created_at=now))


def find_token(tx: Connection, token_hash: bytes) -> Record | None:
    """The owner of a token that is not revoked: columns `user_id`, `user_name`, `role`, `node_name`."""
    query = (
        select(tokens.c.user_id, tokens.c.node_name, users.c.name.label("user_name"), users.c.role)
        .select_from(tokens.outerjoin(users, tokens.c.user_id == users.c.id))
        .where(tokens.c.hash == token_hash, tokens.c.revoked_at.is_(None))
    )
    return tx.execute(query).one_or_none()


def find_token_by_id(tx: Connection, token_id: str) -> Record | None:
    """The token, revoked or not, with the `role` of its owner if that is a person."""
    query = select(tokens, users.c.role).select_from(tokens.outerjoin(users, tokens.c.user_id == users.c.id))
    return tx.execute(query.where(tokens.c.id == token_id)).one_or_none()


def list_tokens(tx: Connection, *, user_id: str | None = None, node_name: str | None = None) -> Sequence[Record]:
    """Tokens of a person or of a node that are not revoked, oldest first."""
    owner = tokens.c.user_id == user_id if user_id is not None else tokens.c.node_name == node_name
    query = select(tokens).where(owner, tokens.c.revoked_at.is_(None))
    return tx.execute(query.order_by(tokens.c.created_at, tokens.c.id)).all()


def revoke_token(tx: Connection, token_id: str, *, now: datetime) -> None:
    """From now on nobody can call with it. The first time stays."""
    query = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
    tx.execute(query.values(revoked_at=now))


def lock_name(tx: Connection, kind: str, name: str) -> None:
    """Hold a name that may not exist yet until the transaction ends: one `user` or `node` is added at a time."""
    tx.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{kind}:{name}", 0))))


def add_join_token(
    tx: Connection,
    *,
    token_hash: bytes,
    node_name: str | None,
    replace: bool,
    created_by: str,
    now: datetime,
    expires_at: datetime,
) -> None:
    tx.execute(
        insert(join_tokens).values(
            hash=token_hash,
            node_name=node_name,
            replace=replace,
            created_by=created_by,
            created_at=now,
            expires_at=expires_at,
        )
    )


def lock_join_token(tx: Connection, token_hash: bytes) -> Record | None:
    """The join token's row, held until the transaction ends."""
    return tx.execute(select(join_tokens).where(join_tokens.c.hash == token_hash).with_for_update()).one_or_none()


def use_join_token(tx: Connection, token_hash: bytes, *, node_name: str, credential: bytes, now: datetime) -> None:
    query = update(join_tokens).where(join_tokens.c.hash == token_hash)
    tx.execute(query.values(used_at=now, used_by=node_name, used_hash=credential))


def _live_tokens() -> ScalarSelect[int]:
    """How many tokens of the person of the outer query are not revoked."""
    return (
        select(func.count())
        .select_from(tokens)
        .where(tokens.c.user_id == users.c.id, tokens.c.revoked_at.is_(None))
        .correlate(users)
        .scalar_subquery()
    )
