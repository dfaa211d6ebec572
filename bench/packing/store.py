"""Results that are kept between runs, so that a benchmark that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Store:
    """One JSON line a result. A result belongs to the code and the lists it was made with: change one, and it is made
    again.
    """

    def __init__(self, path: Path, inputs: Iterable[Path]) -> None:
        self._path = path
        self._inputs = _digest(inputs)
        self._known: dict[str, Mapping[str, float]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["figures"]

    def get(
        self, name: str, seed: int, sources: Iterable[str], work: Callable[[], Mapping[str, float]]
    ) -> Mapping[str, float]:
        """The figures of a policy and seed: known ones, or what `work` finds. `sources` are the code they depend on."""
        key = f"{name} {seed} {self._inputs} {_code(sources)}"
        if key not in self._known:
            self._known[key] = work()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "figures": self._known[key]}) + "\n")
        return self._known[key]

    def text(self, name: str, sources: Iterable[str], work: Callable[[], str]) -> str:
        """The same for a text that all seeds need."""
        path = self._path.with_name(f"{self._path.stem}-{name}-{self._inputs}-{_code(sources)}.json")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(work(), encoding="utf-8")
        return path.read_text(encoding="utf-8")


def _code(sources: Iterable[str]) -> str:
    return _digest(path for source in sources for path in sorted(ROOT.glob(source)))


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
