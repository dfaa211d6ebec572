"""Routes for agents. The token says which node is calling: an agent cannot speak for another."""

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from protocol.accounts import JoinRequest, JoinResponse
from protocol.sync import RegisterRequest, RegisterResponse, SyncRequest, SyncResponse
from service import auth, joining, nodes, sync
from service.api.deps import JoinTokenDep, NodeDep, NodesToken, PartsDep
from service.api.errors import RESPONSES, refused
from service.refusals import (
    AnotherMachine,
    DeviceTaken,
    JoinTokenSpent,
    NodeTaken,
    ProtocolMismatch,
    StaleIncarnation,
    StaleReport,
    UnknownIncarnation,
)

router = APIRouter(prefix="/v1/agent", tags=["agent"], responses=RESPONSES)

MAX_WAIT_S = 30.0


@router.post("/join", responses=refused(JoinTokenSpent, NodeTaken, ProtocolMismatch))
def join(request: JoinRequest, parts: PartsDep, token_hash: JoinTokenDep) -> JoinResponse:
    """Become a node: the token is a join token, and the credential is good from now on."""
    with parts.engine.begin() as tx:
        return joining.join(tx, token_hash, request, now=parts.now())


@router.post("/register", responses=refused(AnotherMachine, DeviceTaken, ProtocolMismatch))
def register(request: RegisterRequest, parts: PartsDep, node: NodeDep) -> RegisterResponse:
    """Present the node and its inventory. An earlier agent of the same node is refused from now on."""
    with parts.engine.begin() as tx:
        return nodes.register(
            tx,
            node,
            request,
            lease_s=parts.settings.lease_s,
            max_attempts=parts.settings.max_attempts,
            now=parts.now(),
        )


@router.post("/sync", responses=refused(StaleIncarnation, StaleReport, UnknownIncarnation, ProtocolMismatch))
async def exchange(request: SyncRequest, parts: PartsDep, node: NodeDep, authorization: NodesToken) -> SyncResponse:
    """Tell what the node observes; get what it should hold, at once or as soon as that differs from `version`."""
    topic = f"node:{node}"
    ticket = parts.hub.ticket(topic)

    def take_and_answer() -> SyncResponse:
        with parts.engine.begin() as tx:
            sync.take(tx, node, request, max_attempts=parts.settings.max_attempts, now=parts.now())
            return _answer(tx)

    def look() -> SyncResponse:
        with parts.engine.begin() as tx:
            auth.identify_node(tx, authorization)  # the credential may have been revoked while we waited
            sync.check_latest(tx, node, request.incarnation)  # what is new is for who came after
            return _answer(tx)

    def _answer(tx: Connection) -> SyncResponse:
        return sync.answer(tx, node, stop_grace_s=parts.settings.stop_grace_s, lease_s=parts.settings.lease_s)

    answer = await run_in_threadpool(take_and_answer)
    if answer.version == request.version and request.wait_s > 0:
        await parts.hub.wait(topic, ticket, min(request.wait_s, MAX_WAIT_S))
        answer = await run_in_threadpool(look)
    return answer
