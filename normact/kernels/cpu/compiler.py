"""Running compilers beside this process so that they end when it does, and when it is asked to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from types import FrameType
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence, Tuple

BUILD_TIMEOUT_SECONDS = 600.0
_PAUSE_SECONDS = 0.05
# Each command is a process group with a watcher in it, which reads a pipe that nobody writes to: its end is the end of
# this process, even by SIGKILL, and the watcher then ends the group: compilers start processes of their own.
_WATCHED = 'exec 3<&0 </dev/null; { cat <&3; kill -s KILL -- "-$$"; } >/dev/null 2>&1 & exec 3<&-; exec "$@"'


class BuildError(RuntimeError):
    """The library cannot be built on this machine; the message says why in one line."""


class StopRequests:
    """The signals that a program handles itself, noticed during a build.

    Its handler notes them for later, and the build, which may take a minute, ends now.
    """

    def __init__(self) -> None:
        self.number: Optional[int] = None

    def check(self) -> None:
        """Raise BuildError once a signal has come."""
        if self.number is not None:
            raise BuildError(f"the build was stopped by {signal.Signals(self.number).name}; the next start builds")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notices them inside; each still reaches its own handler."""
        handlers: Dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere, Python sets no handlers
            numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
            handlers = {number: signal.getsignal(number) for number in numbers}
            handlers = {number: found for number, found in handlers.items() if callable(found)}

        def note(number: int, frame: Optional[FrameType]) -> None:
            self.number = number
            handlers[number](number, frame)

        for number in handlers:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def run_all(commands: Sequence[Sequence[str]], stop: StopRequests) -> None:
    """Run commands side by side.

    Raises:
        BuildError: with the first line of the first error, or a signal's name.
    """
    reading, writing = os.pipe()
    started: List[Tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    end = time.monotonic() + BUILD_TIMEOUT_SECONDS
    try:
        for command in commands:
            errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed below
            watched = ["/bin/sh", "-c", _WATCHED, "sh", *command]
            options: Dict[str, Any] = {"stdin": reading, "stdout": subprocess.DEVNULL, "stderr": errors}
            process = subprocess.Popen(watched, start_new_session=True, **options)
            started.append((process, errors))
        while any(process.poll() is None for process, _ in started):
            stop.check()
            if time.monotonic() > end:
                raise BuildError(f"the compiler did not finish in {BUILD_TIMEOUT_SECONDS:.0f} s")
            time.sleep(_PAUSE_SECONDS)
        for process, errors in started:
            if process.returncode != 0:
                errors.seek(0)
                raise BuildError(f"the compiler failed: {_first_error(errors.read().decode(errors='replace'))}")
    finally:
        os.close(reading)
        os.close(writing)  # the watchers end what still runs
        for process, errors in started:
            process.wait()
            errors.close()


def _first_error(text: str) -> Optional[str]:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")
