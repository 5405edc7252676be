"""Estimates the tokens of calls that have ended without usage, in a thread of its own, from bounded samples."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple, Protocol

import msgspec

from arbstr_asgi._utils import Throttle
from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.protocols import token_estimate
from arbstr_asgi.protocols.meter import Meter
from arbstr_asgi.protocols.usage import Usage

logger = logging.getLogger("arbstr_asgi")
MAX_REQUEST_BYTES = 1024 * 1024  # of a request; a larger one isn't kept
MAX_STREAM_BYTES = 64 * 1024  # the beginning of a stream, from which the rest is told
MAX_PLAIN_BYTES = 1024 * 1024  # of a reply that is one document; of a larger one nothing can be told
MAX_BYTES = 64 * 1024 * 1024  # over all calls; beyond it they aren't kept
MAX_WAITING = 1000  # calls; what more there are stay without an estimate
SECONDS_TO_CLOSE = 2.0
SECONDS_BETWEEN_COMPLAINTS = 60.0


class SampleBudget:
    """Limits how many bytes are held in the samples of all calls. Used from several threads."""

    def __init__(self) -> None:
        self.size = 0
        self._lock = threading.Lock()

    def acquire(self, size: int) -> bool:
        """Whether there is room for so much more; it is then taken."""
        with self._lock:
            fits = self.size + size <= MAX_BYTES
            self.size += size if fits else 0
        return fits

    def release(self, size: int) -> None:
        """So many bytes are no longer held."""
        with self._lock:
            self.size -= size


class ReplySample:
    """The request and the beginning of the reply of one call. `drop` it in the end."""

    __slots__ = ("__weakref__", "_budget", "_room", "_taken", "reply", "request", "whole")

    def __init__(self, budget: SampleBudget, request: bytes, *, streaming: bool) -> None:
        fits = len(request) <= MAX_REQUEST_BYTES and budget.acquire(len(request))
        self.request: bytes | None = request if fits else None
        self.reply = bytearray()
        self.whole = True
        """Whether the reply, as far as it came, is kept to its end."""
        self._budget = budget
        self._room = MAX_STREAM_BYTES if streaming else MAX_PLAIN_BYTES
        self._taken = len(request) if fits else 0

    def add(self, chunk: bytes) -> None:
        """The next bytes of the reply, as they come from the provider."""
        if not self.whole:
            return
        size = min(len(chunk), self._room)
        if size < len(chunk) or not self._budget.acquire(size):
            self.whole = False
            if not size or not self._budget.acquire(size):
                return
        self.reply += chunk[:size]
        self._room -= size
        self._taken += size

    def drop(self) -> None:
        """Forget all of it."""
        self._budget.release(self._taken)
        self._taken = 0
        self.request = None
        self.reply = bytearray()


class SampledMeter:
    """A meter that keeps what it is fed as a sample."""

    def __init__(self, meter: Meter, sample: ReplySample) -> None:
        self.summary = meter.summary
        self.edits = meter.edits
        self.finish = meter.finish
        self.abandon = meter.abandon
        self.resume = meter.resume
        self._meter = meter
        self._feed = meter.feed
        self._add = sample.add

    @property
    def pending(self) -> bool:
        """Whether part of what it was fed is still to be read."""
        return self._meter.pending

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`."""
        self._add(chunk)
        return self._feed(chunk)


Price = Callable[[Usage], Decimal | None]


class Counts(Protocol):
    """Counts the tokens of a text; raises when `stopped` says so."""

    def count(self, text: str, stopped: Callable[[], bool]) -> int: ...


class _Job(NamedTuple):
    sample: ReplySample
    entry: LedgerEntry
    events: int
    price: Price

    def __repr__(self) -> str:
        return "<job>"


class Estimator:
    """Takes in calls that have ended, and records those again for which it finds something to count.

    `record` is called from its thread. `load` makes the tokenizer there.
    """

    def __init__(self, record: Callable[[LedgerEntry], None], load: Callable[[], Counts]) -> None:
        self._record = record
        self._load = load
        self.budget = SampleBudget()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._recording = threading.Lock()
        self._stopped = False
        self._quiet = Throttle(SECONDS_BETWEEN_COMPLAINTS)
        self._thread = threading.Thread(target=self._run, name="arbstr-estimates", daemon=True)
        self._thread.start()

    def sample(self, request: bytes, *, streaming: bool) -> ReplySample:
        """The sample of a call whose reply has begun."""
        return ReplySample(self.budget, request, streaming=streaming)

    def submit(self, sample: ReplySample, entry: LedgerEntry, events: int, price: Price) -> None:
        """A call has ended: its last state, the events of its reply, and what so much usage costs. Never waits."""
        if entry.usage_source != "none" or not sample.reply or self._stopped:
            sample.drop()
        elif self._jobs.qsize() >= MAX_WAITING:
            sample.drop()
            if self._quiet.allow():
                logger.warning("more calls end without usage than can be estimated; some stay without it")
        else:
            self._jobs.put(_Job(sample, entry, events, price))

    async def close(self, timeout: float = SECONDS_TO_CLOSE) -> None:
        """Estimate what waits, for at most `timeout` seconds; the rest stays without."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, timeout)
        self.stop()

    def stop(self) -> None:
        """Record nothing more from now on."""
        with self._recording:
            self._stopped = True
        self._jobs.put(None)

    def _run(self) -> None:
        try:
            tokenizer = self._load()
        except Exception as error:  # noqa: BLE001 - whatever keeps it from loading, calls go on
            logger.critical("estimates: the tokenizer can't be loaded (%s); there will be none", type(error).__name__)
            self._stopped = True
            tokenizer = None
        while (job := self._jobs.get()) is not None:
            try:
                if tokenizer is not None and not self._stopped:
                    self._estimate(tokenizer, job)
            except Exception as error:  # noqa: BLE001 - without its message, which may quote the texts
                if not self._stopped and self._quiet.allow():
                    logger.error("an estimate failed with %s", type(error).__name__)  # noqa: TRY400
            finally:
                job.sample.drop()
                del job

    def _estimate(self, tokenizer: Counts, job: _Job) -> None:
        sample, answered = job.sample, token_estimate.reply_texts(bytes(job.sample.reply), whole=job.sample.whole)
        if answered is None:
            return
        output = sum(self._count(tokenizer, text) for text in answered.texts)
        if not sample.whole:
            output = round(output * max(job.events, answered.events) / answered.events)
        asked = None if sample.request is None else token_estimate.prompt_texts(sample.request)
        given = None if asked is None else asked.overhead + sum(self._count(tokenizer, text) for text in asked.texts)
        usage = Usage(input_tokens=given, output_tokens=output)
        entry = msgspec.structs.replace(
            job.entry,
            revision=job.entry.revision + 1,
            input_tokens=given,
            output_tokens=output,
            cost_sats=job.price(usage),
            usage_source="estimated",
        )
        with self._recording:
            if not self._stopped:
                self._record(entry)

    def _count(self, tokenizer: Counts, text: str) -> int:
        return tokenizer.count(text, lambda: self._stopped)
