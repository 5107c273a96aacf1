"""Processes that are killed, tree and all, when something is there to be lost."""

import os
import signal
import subprocess
from collections.abc import Callable

_POLL_S = 0.02


def kill_after(process: "subprocess.Popen[bytes]", is_ready: Callable[[], bool], delay_s: float) -> None:
    """Kill its process group `delay_s` after `is_ready`, unless it ends before."""
    while process.poll() is None:
        ready = is_ready()
        try:
            process.wait(delay_s if ready else _POLL_S)
        except subprocess.TimeoutExpired:
            if ready:
                break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
