"""Keeps worker processes running until it is told to end. Plain code without an event loop, for POSIX systems."""

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

logger = logging.getLogger("arbstr_asgi")

TOLD = (signal.SIGTERM, signal.SIGINT)
SAME = 0.5  # seconds in which a second signal is an echo: `timeout`, for one, signals its child and then the group
YOUNG = 10.0  # seconds; a worker that ends before has failed to start
ATTEMPTS = 3  # failures of each worker to start, in a row, before the whole is given up
FIRST_PAUSE = 0.5  # seconds until a worker is replaced, doubled with each failure to start
LONGEST_PAUSE = 30.0


class WorkerSlot:
    """A worker's place: the process that fills it, or the moment from which another may. Seconds are monotonic."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.due = 0.0
        self.failures = 0  # to start, in a row

    def hopeless(self, now: float) -> bool:
        """Whether it has failed often enough, and nothing says that it is over."""
        return self.failures >= ATTEMPTS and (self.process is None or now - self.since < YOUNG)


class Supervisor:
    """Runs `count` processes of `command`, all of which accept from `listener`, until SIGTERM or SIGINT.

    Two file descriptors are added to the command: the listener's, and one that reads as ended when this process has
    gone, however it went. SIGTERM and SIGINT are blocked in a new worker until it unblocks them, so that none strikes
    before it can hear. The first signal is passed on as SIGTERM; a second one, or a worker that is still there
    `patience` seconds after the first, ends the rest at once. A worker that ends unasked is replaced.

    `environ` gives the environment of the worker in a place, of which there are `count`; `ended` is told of each place
    whose worker has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        count: int,
        patience: float,
        *,
        environ: Callable[[int], Mapping[str, str]] = lambda place: os.environ,
        ended: Callable[[int], None] = lambda place: None,
    ) -> None:
        self._command = command
        self._listener = listener
        self._places = [WorkerSlot(number) for number in range(count)]
        self._patience = patience
        self._environ = environ
        self._place_ended = ended
        self._ending: float | None = None  # since when
        self._clean = True
        self._alive = -1

    def run(self) -> int:
        """Returns the exit status: 0 if it was told to end and every worker then ended with 0. Leaves no worker."""
        self._alive, held = os.pipe()
        try:
            with _hearing() as hear:
                while self._ending is None or self._processes():
                    self._start_due()
                    for number in hear(self._timeout()):
                        self._heard(number)
                    self._reap()
        finally:
            self._kill()
            os.close(self._alive)
            os.close(held)
        return 0 if self._clean else 1

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        return [place.process for place in self._places if place.process is not None]

    def _timeout(self) -> float | None:
        """Seconds until something has to be done unasked."""
        if self._ending is not None:
            moments = [self._ending + self._patience]
        else:
            moments = [place.due for place in self._places if place.process is None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if self._ending is None and place.process is None and place.due <= now:
                self._start(place, now)

    def _start(self, place: WorkerSlot, now: float) -> None:
        fds = (self._listener.fileno(), self._alive)
        place.since = now
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
        try:
            command = [*self._command, *map(str, fds)]
            place.process = subprocess.Popen(command, pass_fds=fds, env=self._environ(place.number))  # noqa: S603 - ours
        except OSError as error:
            self._failed(place, f"a worker can't be started ({error.strerror})")
        else:
            logger.info("worker %d started", place.process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _heard(self, number: int) -> None:
        if number not in TOLD:
            return
        if self._ending is None:
            self._end()
        elif time.monotonic() - self._ending >= SAME:
            self._clean = False
            logger.warning("%s again: %d worker(s) ended at once", signal.Signals(number).name, self._kill())

    def _end(self) -> None:
        self._ending = time.monotonic()
        self._listener.close()  # with the workers' own, so that new clients are refused and don't wait
        for process in self._processes():
            process.terminate()

    def _reap(self) -> None:
        for place in self._places:
            if place.process is not None and (status := place.process.poll()) is not None:
                pid, place.process = place.process.pid, None
                self._place_ended(place.number)
                if self._ending is None:
                    self._failed(place, f"worker {pid} {_ended(status)} unasked")
                elif status != 0:
                    self._clean = False
                    logger.warning("worker %d %s", pid, _ended(status))
        now = time.monotonic()
        if self._ending is None and all(place.hopeless(now) for place in self._places):
            self._clean = False
            logger.critical("giving up: no worker lasts, each has failed to start %d times in a row", ATTEMPTS)
            self._end()
        elif self._ending is not None and now - self._ending >= self._patience and self._processes():
            self._clean = False
            logger.warning("%d worker(s) had not ended in %.0f s and were killed", self._kill(), self._patience)

    def _failed(self, place: WorkerSlot, what: str) -> None:
        now = time.monotonic()
        place.failures = place.failures + 1 if now - place.since < YOUNG else 0
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(place.failures, 10))  # it may fail for months
        place.due = now + pause
        logger.warning("%s; the next start is in %.1f s", what, pause)

    def _kill(self) -> int:
        """End the workers that are left, and return how many there were."""
        processes = self._processes()
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for place in self._places:
            place.process = None
        return len(processes)


def _ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"


@contextmanager
def _hearing() -> Iterator[Callable[[float | None], bytes]]:
    """Gives a function that waits, for so many seconds, for signals that concern us; a byte is a signal's number."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def hear(timeout: float | None) -> bytes:
        ready, _, _ = select.select([reader], [], [], timeout)
        return reader.recv(4096) if ready else b""

    with reader, writer:
        noted = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda *_: None) for number in (*TOLD, signal.SIGCHLD)}
        try:
            yield hear
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(noted)
