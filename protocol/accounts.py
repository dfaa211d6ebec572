"""People and their tokens, and how a node gets its own."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from protocol.base import Message, Name, View, example
from protocol.states import Role

DEFAULT_JOIN_S = 3_600.0
LONGEST_JOIN_S = 7 * 86_400.0


class IdentityView(View):
    """The person a token belongs to."""

    user: str
    role: Role


class ServiceView(View):
    """What is listening."""

    name: str
    version: str
    protocol: int


class NewUser(Message):
    """A person to be known from now on."""

    model_config = example(name="alice", role="user")

    name: Name
    role: Role = Field(default=Role.USER, strict=False)


class UserChange(Message):
    """What an administrator may change of a person."""

    role: Role = Field(strict=False)


class UserView(View):
    """A person. `tokens` counts those that are not revoked: somebody with none cannot call."""

    name: str
    role: Role
    created_at: datetime
    tokens: int


class UserPage(View):
    items: list[UserView]
    next: str | None = None


class TokenView(View):
    """A token without the token itself, which is shown once, when it is made."""

    id: str
    owner: str = Field(description="Name of the user, or of the node.")
    created_at: datetime
    ending: str | None = Field(default=None, description="Its last four characters; absent for tokens of old versions.")


class TokenList(View):
    """Tokens that are not revoked, oldest first."""

    items: list[TokenView]


class NewTokenView(TokenView):
    """A token that was just made. Nobody can show it again."""

    token: str


class NewJoinToken(Message):
    """Leave for one agent to become a node, once."""

    node: Name | None = Field(default=None, description="The one name it is good for; any new name if absent.")
    valid_s: float = Field(
        default=DEFAULT_JOIN_S, ge=1, le=LONGEST_JOIN_S, description="How long it may be used, in s."
    )
    replace: bool = Field(
        default=False,
        description="Let it take the name of a node that has a credential: that is revoked. Needs `node`.",
    )


class JoinTokenView(View):
    """A join token that was just made. Nobody can show it again."""

    token: str
    node: str | None = None
    expires_at: datetime


CredentialHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of a token in hexadecimal digits."""


class JoinRequest(Message):
    """An agent becomes a node. Its credential is a token of its own making, of which the service learns the hash only;
    so the same request may be sent again when the answer was lost."""

    protocol: int
    node: Name
    credential_hash: CredentialHash


class JoinResponse(View):
    """The credential is good from now on, for this node and nothing else."""

    node: str
