"""Where the series of prices and CO2 comes from: a file, or a URL that is asked now and then. Nothing waits for it."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from service.settings import Settings, SettingsError
from service.tariffs import Step, Tariff, TariffError, parse_steps

log = logging.getLogger(__name__)

FETCH_EVERY_S = 900.0
FETCH_LIMIT_S = 20.0
MAX_BYTES = 16 << 20
CACHE = "tariff.csv"
"""In the data folder: what a URL answered last, for the next start."""


class TariffSource:
    """The tariff as it is now.

    A file is read again when it has changed; a URL is asked every FETCH_EVERY_S by a thread. Whatever cannot be used
    leaves what was known before, and `fault` says why.

    Args:
        clock_s: a clock that never goes back, in s.

    Raises SettingsError for a file that cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        fetch: Callable[[str], str] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fault: str | None = None
        self._settings = settings
        self._fetch = fetch or fetch_text
        self._clock_s = clock_s
        self._steps: tuple[Step, ...] = ()
        self._stamp: tuple[int, int] | None = None
        self._asked_s = float("-inf")
        self._asking: threading.Thread | None = None
        self._url = settings.tariff if settings.tariff and settings.tariff.startswith(("http://", "https://")) else None
        self._file = Path(settings.tariff) if settings.tariff and self._url is None else None
        if self._file is not None:
            self._look(self._file)
            if self.fault:
                raise SettingsError(f"ERGON_TARIFF: {self.fault}")
        elif self._url is not None:
            self._take_kept()

    def current(self) -> Tariff:
        """What is known now. Returns at once."""
        if self._file is not None:
            self._look(self._file)
        elif self._url is not None and self._clock_s() - self._asked_s >= FETCH_EVERY_S and not self._is_asking():
            self._asked_s = self._clock_s()
            self._asking = threading.Thread(target=self._ask, args=(self._url,), name="tariff", daemon=True)
            self._asking.start()
        return Tariff.of(self._settings, self._steps)

    def wait(self) -> None:
        """Until the question that is on its way, if any, has been answered."""
        if self._asking is not None:
            self._asking.join()

    def _is_asking(self) -> bool:
        return self._asking is not None and self._asking.is_alive()

    def _look(self, path: Path) -> None:
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            self._steps = parse_steps(path.read_text())
            self._stamp, self.fault = stamp, None
        except (OSError, ValueError) as error:
            self._fail(str(path), error)

    def _ask(self, url: str) -> None:
        import httpx  # noqa: PLC0415 - most have no URL, and the API and the cycle start faster

        try:
            text = self._fetch(url)
            self._steps, self.fault = parse_steps(text), None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            self._fail(url, error)
            return
        try:
            part = self._settings.data_dir / f"{CACHE}.{os.getpid()}"
            part.write_text(text)
            part.replace(self._settings.data_dir / CACHE)
        except OSError as error:
            log.warning("the tariff could not be kept for the next start: %s", error)

    def _take_kept(self) -> None:
        try:
            self._steps = parse_steps((self._settings.data_dir / CACHE).read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("the tariff of before cannot be used: %s", error)

    def _fail(self, where: str, error: Exception) -> None:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        said = f"{where}: {why}"
        if said != self.fault:
            log.warning("the tariff cannot be read, what was known stays: %s", said)
        self.fault = said


def fetch_text(url: str) -> str:
    """What the URL answers. Raises httpx.HTTPError and TariffError."""
    import httpx  # noqa: PLC0415 - as above

    with httpx.stream("GET", url, timeout=FETCH_LIMIT_S, follow_redirects=True) as answer:
        answer.raise_for_status()
        content = b""
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > MAX_BYTES:
                raise TariffError(f"the answer is longer than {MAX_BYTES} bytes")
    return content.decode("utf-8", "replace")
