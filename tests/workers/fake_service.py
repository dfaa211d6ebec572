"""A service of two calls on a real socket, with the promises of the real one: it stores a chunk only where it joins,
lets states only move forward, and lists an attempt until its end was told and is clean."""

import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from protocol.checkpoints import ExpiredFolders, KeptFolders
from protocol.errors import PROBLEM_MEDIA_TYPE, ErrorBody
from protocol.states import AttemptState, Desired
from protocol.sync import RegisterRequest, RegisterResponse, SyncRequest, SyncResponse

ORDER = list(AttemptState)
PATIENCE_S = 30.0
"""Longest wait for an expected event: only a test that fails waits so long."""


class FakeService:
    """State, and the server thread that serves it. `changed` guards all of it and is notified at each change."""

    def __init__(self, node="n1", token="secret", lease_s=60.0):
        self.node = node
        self.token = token
        self.lease_s = lease_s
        self.patience_s = PATIENCE_S
        self.changed = threading.Condition()
        self.incarnation = 0
        self.assignments = {}
        self.streams = defaultdict(bytearray)
        self.reports = defaultdict(list)
        self.samples = []
        self.numbered = []  # number and length of every sample that came, again those that came again
        self.numbers_reports = True
        self.knows_checkpoints = True
        self.knows_state_folders = True
        self.knows_limits = True
        self.knows_caps = True
        self.knows_caches = True
        self.expired = set()
        self.seq = 0
        self.unfit = {}
        self.limits = []  # every time they were told
        self.caps = []
        self.caches = []
        self.registrations = []
        self._highest = 0  # no incarnation is given twice, not even after `go_back`
        self.bodies = []
        self.syncs = 0
        self.drop_answers = 0
        self.refusals = []
        self.down = False
        self.left = False
        self.hold_polls = False
        self.closing = False
        service = self

        class Call(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service._handle(self, body)

            def log_message(self, *_args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, _request, _address):
                pass  # a client that was killed, or an answer dropped on purpose

        self.server = Server(("127.0.0.1", 0), Call)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self):
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    # -- what a test does

    def grant(self, assignment):
        self.change(lambda: self.assignments.update({assignment.attempt: assignment}))

    def ask_stop(self, attempt):
        self.update(attempt, desired=Desired.STOP)

    def unlist(self, attempt):
        self.change(lambda: self.assignments.pop(attempt))

    def update(self, attempt, **values):
        self.change(lambda: self.assignments.update({attempt: self.assignments[attempt].model_copy(update=values)}))

    def change(self, action):
        with self.changed:
            action()
            self.changed.notify_all()

    def set(self, **values):
        """Such as `down=True`, `drop_answers=2`, `lease_s=1.0`."""
        self.change(lambda: self.__dict__.update(values))

    def wait(self, what):
        """Until `what()` is true, and what it is then. What is on disk is looked at although nobody tells of it."""
        until = time.monotonic() + self.patience_s
        with self.changed:
            while not (found := what()):
                assert time.monotonic() < until, f"waited in vain; reports: {dict(self.reports)}"
                self.changed.wait(0.02)
            return found

    def wait_state(self, attempt, state):
        """Until the agent reported the state; the report."""
        return self.wait(lambda: next((item for item in self.reports[attempt] if item.state == state), None))

    def wait_forgotten(self, attempt):
        """Until the end was told and is clean; the last report."""
        self.wait(lambda: attempt not in self.assignments)
        return self.reports[attempt][-1]

    def wait_syncs(self, total):
        """Until the agent has called `total` times, long polls included."""
        self.wait(lambda: self.syncs >= total)

    def text(self, attempt, rank=0, stream="stdout"):
        with self.changed:
            return bytes(self.streams[attempt, rank, stream]).decode()

    def go_back(self, *forgotten):
        """Restored from a backup: it knows neither the registration nor these attempts, nor any output."""

        def forget():
            self.incarnation = 0
            self.streams.clear()
            for attempt in forgotten:
                del self.assignments[attempt]

        self.change(forget)

    # -- what the agent gets

    def _handle(self, call, body):
        with self.changed:
            self.bodies.append((call.path, json.loads(body)))
            status, answer = self._refusal(call.headers)
            if answer is None and call.path == "/v1/agent/register":
                answer = self._register(RegisterRequest.model_validate_json(body))
            elif answer is None and call.path == "/v1/agent/checkpoint-folders":
                asked = KeptFolders.model_validate_json(body).jobs
                answer = ExpiredFolders(jobs=[job for job in asked if job in self.expired])
            elif answer is None:
                status, answer = self._sync(SyncRequest.model_validate_json(body))
            drop = self.drop_answers > 0 and status == 200
            self.drop_answers -= drop
        if drop:
            call.close_connection = True
            return
        data = answer.model_dump_json().encode()
        call.send_response(status)
        call.send_header("Content-Type", "application/json" if status == 200 else PROBLEM_MEDIA_TYPE)
        call.send_header("Content-Length", str(len(data)))
        if status == 503:
            call.send_header("Retry-After", "0")
        call.end_headers()
        call.wfile.write(data)

    def _refusal(self, headers):
        if self.refusals:
            return self.refusals[0]
        if headers["Authorization"] != f"Bearer {self.token}":
            return problem(401, "unauthenticated", "the token is not known")
        if self.down:
            return problem(503, "unavailable", "the database is away")
        return 200, None

    def _register(self, request):
        self.incarnation = self._highest = max(self.incarnation, self._highest) + 1
        self.seq = 0
        self.registrations.append(request.report)
        self.changed.notify_all()
        return RegisterResponse(
            node=self.node,
            incarnation=self.incarnation,
            lease_s=self.lease_s,
            numbered_reports=self.numbers_reports,
            checkpoints=self.knows_checkpoints,
            state_folders=self.knows_state_folders,
            knows_out_of_memory=True,
            knows_limits=self.knows_limits,
            knows_caps=self.knows_caps,
            knows_caches=self.knows_caches,
        )

    def _sync(self, request):
        if request.incarnation > self.incarnation:
            return problem(410, "unknown-incarnation", "restored from a backup; register again")
        stale = problem(409, "stale-incarnation", f"incarnation {request.incarnation} is not the latest")
        if request.incarnation != self.incarnation:
            return stale
        self.syncs += 1
        self.left = request.leaving
        if request.seq is not None:
            if request.seq <= self.seq:
                return problem(410, "stale-report", "a later report has arrived")
            self.seq = request.seq
        for number, sample in enumerate(request.samples, start=request.first_sample or 0):
            self.numbered.append((number, sample.seconds))
        self.samples += request.samples
        self.unfit = self.unfit if request.unfit is None else request.unfit
        self.limits += [] if request.limits is None else [request.limits]
        self.caps += [] if request.caps is None else [request.caps]
        self.caches += [] if request.cache is None else [request.cache]
        for chunk in request.chunks:
            stream = self.streams[chunk.attempt, chunk.rank, chunk.stream]
            if chunk.offset == len(stream):
                stream += chunk.data
        for report in request.members:
            self._take(report)
        self.changed.notify_all()
        until = time.monotonic() + request.wait_s
        while self._version() == request.version and time.monotonic() < until and not (self.closing or self.down):
            self.changed.wait(until - time.monotonic())
            if request.incarnation != self.incarnation:
                return self._sync(request)
        status, refusal = self._refusal({"Authorization": f"Bearer {self.token}"})
        if refusal is not None:
            return status, refusal
        assignments = [
            item.model_copy(update={"offsets": self._offsets(item.attempt)}) for item in self.assignments.values()
        ]
        answer = SyncResponse(assignments=assignments, version=self._version(), lease_s=self.lease_s)
        while request.wait_s and self.hold_polls and not self.closing:
            self.changed.wait()  # as if the answer were long under way
        return 200, answer

    def _take(self, report):
        if report.attempt not in self.assignments:
            return
        if not self.reports[report.attempt] or self.reports[report.attempt][-1] != report:
            self.reports[report.attempt].append(report)
        held = self.assignments[report.attempt]
        values = {}
        if ORDER.index(report.state) > ORDER.index(held.observed):
            values["observed"] = report.state
        if report.rendezvous and held.rendezvous is None:
            values["rendezvous"] = report.rendezvous
        self.assignments[report.attempt] = held.model_copy(update=values)
        if report.state == AttemptState.ENDED and report.clean:
            del self.assignments[report.attempt]

    def _version(self):
        return str(hash(json.dumps([item.model_dump_json(exclude={"observed"}) for item in self.assignments.values()])))

    def _offsets(self, attempt):
        return {f"{rank}/{name}": len(data) for (of, rank, name), data in self.streams.items() if of == attempt}


def problem(status, kind, detail):
    return status, ErrorBody(type=f"urn:ergon:{kind}", title=kind, status=status, detail=detail)
