"""Read by Python before anything else: under libfaketime `time.sleep` of Python 3.11 fails, so it waits otherwise."""

import threading
import time


def sleep(seconds: float) -> None:
    threading.Event().wait(seconds)


time.sleep = sleep
