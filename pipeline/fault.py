"""Fault points: named places at which a test can kill or stall the process.

Armed by `VISIONBAKE_FAULT=NAME[:kill|:exit|:sleep=SECONDS][@FILE|@+FILE]`. With `@FILE` the fault fires once in all
processes together: the file is created when it fires, which is also how a test sees that it did. With `@+FILE` it fires
every time, and adds a byte to the file. Several are set apart by commas.
"""

from __future__ import annotations

import os
import signal
import time

VARIABLE = "VISIONBAKE_FAULT"


def fault_point(name: str) -> None:
    """Does nothing, unless the environment arms this name."""
    for armed in os.environ.get(VARIABLE, "").split(","):
        what, _, marker = armed.partition("@")
        point, _, action = what.rpartition(":") if ":" in what else (what, "", "kill")
        if point == name:
            _fire(action, marker)


def _fire(action: str, marker: str) -> None:
    if marker.startswith("+"):
        with open(marker[1:], "ab") as stream:
            stream.write(b".")
    elif marker:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if action.startswith("sleep="):
        time.sleep(float(action.removeprefix("sleep=")))
    elif action == "exit":
        os._exit(3)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
