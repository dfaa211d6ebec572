"""Who is calling."""

from protocol.base import View
from protocol.states import Role


class IdentityView(View):
    """The person a token belongs to."""

    user: str
    role: Role


class ServiceView(View):
    """What is listening."""

    name: str
    version: str
    protocol: int
