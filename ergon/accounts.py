"""The part of the SDK for people, tokens and the joining of nodes: `Client.accounts`."""

import hashlib
from collections.abc import Iterator
from typing import TypeVar

from pydantic import ValidationError

from ergon.connection import Connection, ViewT, parse, segment
from ergon.errors import ErgonError
from protocol.accounts import (
    DEFAULT_JOIN_S,
    JoinRequest,
    JoinResponse,
    JoinTokenView,
    NewJoinToken,
    NewTokenView,
    NewUser,
    TokenList,
    TokenView,
    UserChange,
    UserPage,
    UserView,
)
from protocol.base import Message
from protocol.faults import in_words
from protocol.states import Role
from protocol.version import PROTOCOL_VERSION

RequestT = TypeVar("RequestT", bound=Message)


class Accounts:
    """People, their tokens, and how nodes join. Raises what `Client` raises, and ErgonError for a value that no
    service would take.

    A token is in the answer to the call that makes it and nowhere else. If that answer is lost, the call is repeated,
    and the token nobody knows stays listed until it is revoked; a join token nobody knows expires.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def users(self) -> Iterator[UserView]:
        """People by name. Administrators only."""
        cursor: str | None = None
        while True:
            page = parse(UserPage, self._connection.get("/v1/users", {"cursor": cursor}))
            yield from page.items
            if (cursor := page.next) is None:
                return

    def add_user(self, name: str, role: Role = Role.USER) -> UserView:
        """Make a person known. Administrators only.

        Raises RequestRefused with type `urn:ergon:user-exists` for a person who is known with another role.
        """
        return self._post(UserView, "/v1/users", _made(NewUser, name=name, role=role))

    def change_role(self, name: str, role: Role) -> UserView:
        """Give a person another role. Administrators only.

        Raises RequestRefused with type `urn:ergon:last-admin` if no administrator could call any more.
        """
        answer = self._connection.change("PATCH", f"/v1/users/{segment(name)}", UserChange(role=role).model_dump_json())
        return parse(UserView, answer)

    def new_token(self, user: str) -> NewTokenView:
        """One more token of a person: one's own, or anybody's for an administrator."""
        return self._post(NewTokenView, f"/v1/users/{segment(user)}/tokens", None)

    def tokens(self, user: str) -> list[TokenView]:
        """Tokens of a person that are not revoked."""
        return self._tokens(f"/v1/users/{segment(user)}/tokens")

    def node_tokens(self, node: str) -> list[TokenView]:
        """Credentials of a node that are not revoked. Administrators only."""
        return self._tokens(f"/v1/nodes/{segment(node)}/tokens")

    def revoke(self, token_id: str) -> None:
        """Make a token worth nothing, at once.

        Raises NotFound for one that does not exist or is somebody else's, RequestRefused with type
        `urn:ergon:last-admin` if no administrator could call any more.
        """
        self._connection.change("DELETE", f"/v1/tokens/{segment(token_id)}")

    def new_join_token(
        self, *, node: str | None = None, valid_s: float = DEFAULT_JOIN_S, replace: bool = False
    ) -> JoinTokenView:
        """Leave for one agent to become a node within `valid_s`. Administrators only.

        Raises RequestRefused with type `urn:ergon:node-taken` for a node that has a credential, unless `replace` says
        that it is to be revoked.
        """
        request = _made(NewJoinToken, node=node, valid_s=valid_s, replace=replace)
        return self._post(JoinTokenView, "/v1/join-tokens", request)

    def join(self, node: str, credential: str) -> JoinResponse:
        """Become a node: the client's token is the join token, `credential` a fresh token of the caller's own making.

        The same call may be repeated. Raises Unauthorised for a join token that never was or is for another node,
        RequestRefused with type `urn:ergon:join-token-spent` or `urn:ergon:node-taken`.
        """
        digest = hashlib.sha256(credential.encode()).hexdigest()
        request = _made(JoinRequest, protocol=PROTOCOL_VERSION, node=node, credential_hash=digest)
        return self._post(JoinResponse, "/v1/agent/join", request)

    def _post(self, view: type[ViewT], path: str, request: Message | None) -> ViewT:
        body = request.model_dump_json(exclude_defaults=True) if request else None
        return parse(view, self._connection.change("POST", path, body))

    def _tokens(self, path: str) -> list[TokenView]:
        return parse(TokenList, self._connection.get(path)).items


def _made(request: type[RequestT], **values: object) -> RequestT:
    """Raises ErgonError that names the value at fault."""
    try:
        return request.model_validate(values)
    except ValidationError as error:
        faults = (
            f"{fault['loc'][0]} {fault['input']!r}: {in_words(fault)}" for fault in error.errors(include_url=False)
        )
        raise ErgonError("; ".join(faults)) from error
