"""The supervisor: keeps worker processes running until it is stopped. Synchronous, for POSIX systems."""

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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_SECONDS = 0.5  # a second signal within this time is ignored: `timeout` signals its child, then its group
MIN_UPTIME = 10.0  # seconds; a worker that ends earlier has failed to start
MAX_START_FAILURES = 3  # of each worker in a row, before the supervisor gives up
MIN_RESTART_PAUSE = 0.5  # seconds, doubled with each failure to start
MAX_RESTART_PAUSE = 30.0


class WorkerSlot:
    """One worker: its process, or the time from which another may start. Seconds are monotonic."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.start_at = 0.0
        self.failures = 0  # consecutive failures to start

    def is_hopeless(self, now: float) -> bool:
        """Whether it has failed to start MAX_START_FAILURES times, and not run for MIN_UPTIME since."""
        return self.failures >= MAX_START_FAILURES and (self.process is None or now - self.since < MIN_UPTIME)


class Supervisor:
    """Runs `count` processes of `command`, which all accept from `listeners`, until SIGTERM or SIGINT.

    Two arguments are appended to the command: the file descriptors of the listeners, with commas between them, and that
    of a pipe that is closed when this process ends in any way. SIGTERM and SIGINT are blocked in a new worker until it
    unblocks them, so that none is lost before it has a handler. The first signal is forwarded as SIGTERM; a second one,
    or a worker that still runs `stop_timeout` seconds after the first, kills the rest. A worker that ends by itself is
    replaced.

    `environ` returns the environment for the worker with a number below `count`; `on_ended` is called with the number
    of each worker that has ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        listeners: Sequence[socket.socket],
        count: int,
        stop_timeout: float,
        *,
        environ: Callable[[int], Mapping[str, str]] = lambda slot: os.environ,
        on_ended: Callable[[int], None] = lambda slot: None,
    ) -> None:
        self._command = command
        self._listeners = listeners
        self._slots = [WorkerSlot(number) for number in range(count)]
        self._stop_timeout = stop_timeout
        self._environ = environ
        self._on_ended = on_ended
        self._ending: float | None = None  # monotonic seconds
        self._clean = True
        self._alive = -1

    def run(self) -> int:
        """Returns 0 if it was stopped and every worker then ended with 0, else 1. Leaves no worker running."""
        self._alive, held = os.pipe()
        try:
            with _signal_waiter() as wait_for_signals:
                while self._ending is None or self._processes():
                    self._start_due()
                    for number in wait_for_signals(self._timeout()):
                        self._on_signal(number)
                    self._reap()
        finally:
            self._kill()
            os.close(self._alive)
            os.close(held)
        return 0 if self._clean else 1

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        return [slot.process for slot in self._slots if slot.process is not None]

    def _timeout(self) -> float | None:
        """Seconds until the next restart or kill."""
        if self._ending is not None:
            deadlines = [self._ending + self._stop_timeout]
        else:
            deadlines = [slot.start_at for slot in self._slots if slot.process is None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if self._ending is None and slot.process is None and slot.start_at <= now:
                self._start(slot, now)

    def _start(self, slot: WorkerSlot, now: float) -> None:
        listening = [listener.fileno() for listener in self._listeners]
        slot.since = now
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            command = [*self._command, ",".join(map(str, listening)), str(self._alive)]
            fds = (*listening, self._alive)
            slot.process = subprocess.Popen(command, pass_fds=fds, env=self._environ(slot.number))  # noqa: S603 - ours
        except OSError as error:
            self._schedule_restart(slot, f"a worker can't be started ({error.strerror})")
        else:
            logger.info("worker %d started", slot.process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _on_signal(self, number: int) -> None:
        if number not in STOP_SIGNALS:
            return
        if self._ending is None:
            self._end()
        elif time.monotonic() - self._ending >= ECHO_SECONDS:
            self._clean = False
            logger.warning("%s again: %d worker(s) ended at once", signal.Signals(number).name, self._kill())

    def _end(self) -> None:
        self._ending = time.monotonic()
        for listener in self._listeners:  # as the workers do, so that new clients are refused
            listener.close()
        for process in self._processes():
            process.terminate()

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.process is not None and (status := slot.process.poll()) is not None:
                pid, slot.process = slot.process.pid, None
                self._on_ended(slot.number)
                if self._ending is None:
                    self._schedule_restart(slot, f"worker {pid} {_describe_status(status)} unasked")
                elif status != 0:
                    self._clean = False
                    logger.warning("worker %d %s", pid, _describe_status(status))
        now = time.monotonic()
        if self._ending is None and all(slot.is_hopeless(now) for slot in self._slots):
            self._clean = False
            logger.critical(
                "giving up: no worker lasts, each has failed to start %d times in a row", MAX_START_FAILURES
            )
            self._end()
        elif self._ending is not None and now - self._ending >= self._stop_timeout and self._processes():
            self._clean = False
            logger.warning("%d worker(s) had not ended in %.0f s and were killed", self._kill(), self._stop_timeout)

    def _schedule_restart(self, slot: WorkerSlot, what: str) -> None:
        now = time.monotonic()
        slot.failures = slot.failures + 1 if now - slot.since < MIN_UPTIME else 0
        pause = min(MAX_RESTART_PAUSE, MIN_RESTART_PAUSE * 2 ** min(slot.failures, 10))  # it may fail for months
        slot.start_at = now + pause
        logger.warning("%s; the next start is in %.1f s", what, pause)

    def _kill(self) -> int:
        """Kill the remaining workers; returns their number."""
        processes = self._processes()
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for slot in self._slots:
            slot.process = None
        return len(processes)


def _describe_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"


@contextmanager
def _signal_waiter() -> Iterator[Callable[[float | None], bytes]]:
    """Yields a function that waits up to `timeout` seconds for signals, and returns their numbers as bytes."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def wait_for_signals(timeout: float | None) -> bytes:
        ready, _, _ = select.select([reader], [], [], timeout)
        return reader.recv(4096) if ready else b""

    with reader, writer:
        noted = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda *_: None) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
        try:
            yield wait_for_signals
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(noted)
