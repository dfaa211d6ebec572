"""Clients that submit, cancel and ask again until they are answered, each request told to the history."""

import random
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.chaos.cluster import SLOTS
from tests.chaos.history import History

TIMEOUT_S = 4.0
PATIENCE_S = 0.3
MOST_OPEN = 14
"""Jobs of one client that it has not seen end."""
WORKS = ("sleep",) * 7 + ("exit", "exit", "train")
FINAL = frozenset({"succeeded", "failed", "cancelled"})


class Person:
    """One client, in a thread of its own."""

    def __init__(self, number: int, seed: int, url: str, token: str, history: History, rank: Sequence[str]) -> None:
        self.name = f"client-{number}"
        self.open: dict[str, str] = {}
        self._chance = random.Random(f"{seed}-{number}")
        self._history = history
        self._rank = list(rank)
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {token}"})
        self._asked = 0

    def live(self, storm_over: threading.Event, over: threading.Event) -> None:
        """Ask for this and that while the storm lasts, then only look until all jobs have ended."""
        while not over.is_set():
            if storm_over.is_set() or len(self.open) >= MOST_OPEN or self._chance.random() < 0.3:
                self._look()
                if storm_over.is_set() and not self.open:
                    return
            elif self.open and self._chance.random() < 0.15:
                job = self._chance.choice(sorted(self.open))
                self._until_answered("cancel", f"/v1/jobs/{job}/cancel", None, None, over, job=job)
            else:
                self._submit(over)
            over.wait(self._chance.uniform(0.1, 0.8))

    def _submit(self, over: threading.Event) -> None:
        self._asked += 1
        work = self._chance.choice(WORKS)
        key = f"{self.name}-{self._asked}"
        amount = self._chance.randint(5, 20) if work == "train" else round(self._chance.uniform(0.5, 4.0), 1)
        spec = {
            "name": key,
            "command": [sys.executable, *self._rank, str(SLOTS), work, str(amount)],
            "nodes": 2 if work == "train" else 1,
            "max_retries": 0 if work == "exit" else 100,
            "device_kinds": ["cpu"],
        }
        answer = self._until_answered("submit", "/v1/jobs", spec, key, over, work=work)
        if answer is not None:
            self.open[answer["id"]] = work
            if self._chance.random() < 0.2:  # and once more: it has to be the same job
                self._until_answered("submit", "/v1/jobs", spec, key, over, work=work)

    def _until_answered(self, verb: str, path: str, body: object, key: str | None, over: threading.Event, **facts: str):
        """The answer; None if it was refused or the run is over."""
        while not over.is_set():
            self._history.add(self.name, "invoke", verb, key=key, **facts)
            try:
                answer = self._http.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
            except httpx.HTTPError as error:
                self._history.add(self.name, "info", verb, key=key, said=type(error).__name__, **facts)
                over.wait(PATIENCE_S)
                continue
            said = answer.json()
            if answer.is_success:
                self._history.add(self.name, "ok", verb, key=key, **{"job": said["id"], **facts})
                return said
            self._history.add(self.name, "info", verb, key=key, status=answer.status_code, said=said["type"], **facts)
            if answer.status_code != 503:
                if answer.status_code != 409:
                    self._history.add(self.name, "violation", verb, said=f"{answer.status_code}: {answer.text[:500]}")
                return None
            over.wait(PATIENCE_S)
        return None

    def _look(self) -> None:
        for job in list(self.open):
            try:
                answer = self._http.get(f"/v1/jobs/{job}")
            except httpx.HTTPError:
                return
            if answer.is_success and answer.json()["state"] in FINAL:
                del self.open[job]
            elif answer.status_code == 404:
                self._history.add(self.name, "violation", "look", said=f"job {job} is not known any more")
                del self.open[job]


def rank_command(folder: Path) -> list[str]:
    """What every rank is started with, less its own work."""
    return ["-I", str(Path(__file__).with_name("rank.py")), str(folder / "ranks.jsonl"), str(folder / "locks")]
