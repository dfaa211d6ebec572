"""How an agent becomes a node: an administrator makes a join token, the agent trades it for a credential, once."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from protocol.accounts import JoinRequest, JoinResponse, JoinTokenView, NewJoinToken
from protocol.errors import FieldError
from service import auth, nodes
from service.auth import Person
from service.refusals import Forbidden, Invalid, JoinTokenSpent, NodeTaken, Unauthorised
from service.store import accounts as store

MAKE_ONE = "an administrator makes one with `ergon join-token new`"


def new_join_token(tx: Connection, person: Person, request: NewJoinToken, *, now: datetime) -> JoinTokenView:
    """Leave for one agent to become a node.

    Raises:
        Invalid: it should replace a node's credential and does not say which node's.
        NodeTaken: the node has a credential, and it should not be replaced.
    """
    if request.replace and request.node is None:
        message = "needs `node`: the name of the node whose credential is replaced"
        raise Invalid(f"replace {message}", errors=[FieldError(field="replace", message=message)])
    if request.node is not None and not request.replace:
        _check_name_free(tx, request.node)
    token, expires_at = auth.fresh_token(auth.JOIN_PREFIX), now + timedelta(seconds=request.valid_s)
    store.add_join_token(
        tx,
        token_hash=auth.hash_token(token),
        node_name=request.node,
        replace=request.replace,
        created_by=person.id,
        now=now,
        expires_at=expires_at,
    )
    return JoinTokenView(token=token, node=request.node, expires_at=expires_at)


def join(tx: Connection, token_hash: bytes, request: JoinRequest, *, now: datetime) -> JoinResponse:
    """Take in an agent's credential for the node it names. Sent again by the same agent, it changes nothing.

    Args:
        token_hash: of the join token that the agent shows.

    Raises:
        Unauthorised: there never was such a join token.
        ProtocolMismatch: agent and service do not speak the same version.
        JoinTokenSpent: another agent has used it, or its time is over.
        Forbidden: it is for another node.
        NodeTaken: the node has a credential, and the join token may not replace it.
    """
    credential = bytes.fromhex(request.credential_hash)
    leave = store.lock_join_token(tx, token_hash)
    if leave is None:
        raise Unauthorised(f"the join token is not valid; {MAKE_ONE}")
    nodes.check_protocol(request.protocol)
    if leave.used_at is not None:
        if leave.used_hash == credential and leave.used_by == request.node:
            return JoinResponse(node=request.node)
        raise JoinTokenSpent(f"node {leave.used_by!r} has joined with this token, which is good once; {MAKE_ONE}")
    if leave.expires_at <= now:
        raise JoinTokenSpent(f"the join token was good until {leave.expires_at:%Y-%m-%d %H:%M:%S} UTC; {MAKE_ONE}")
    if leave.node_name not in (None, request.node):
        raise Forbidden(
            f"this join token is for node {leave.node_name!r}, not {request.node!r}; start the agent with "
            f"--name {leave.node_name}"
        )
    store.lock_name(tx, "node", request.node)
    if leave.replace:
        for old in store.list_tokens(tx, node_name=request.node):
            store.revoke_token(tx, old.id, now=now)
    else:
        _check_name_free(tx, request.node)
    if known := store.find_token_by_id(tx, auth.token_id(credential)):
        raise NodeTaken(
            f"this agent has joined as {known.node_name or 'a person'!r} before; empty its state folder and join again"
        )
    store.add_token(
        tx, token_id=auth.token_id(credential), token_hash=credential, ending=None, node_name=request.node, now=now
    )
    store.use_join_token(tx, token_hash, node_name=request.node, credential=credential, now=now)
    return JoinResponse(node=request.node)


def _check_name_free(tx: Connection, name: str) -> None:
    if store.list_tokens(tx, node_name=name):
        raise NodeTaken(
            f"node {name!r} has a credential; choose another name, or let the newcomer take its place with "
            f"`ergon join-token new --node {name} --replace`"
        )
