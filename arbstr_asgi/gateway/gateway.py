"""The gateway: its parts, their life, and the calls that are running."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING

import databases
import httpx
from starlette.types import Receive, Scope, Send

from arbstr_asgi._utils import is_installed, new_request_id
from arbstr_asgi.config.config import Config
from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.errors import ArbstrError, ConfigError, LedgerError, ServerError
from arbstr_asgi.gateway.attempt import ProviderAttempt
from arbstr_asgi.gateway.auth import Authenticator, Caller, Identify, check_names
from arbstr_asgi.gateway.call import Call, CallDependencies
from arbstr_asgi.gateway.deadline import DeadlineTimer
from arbstr_asgi.gateway.disconnects import DrainLimiter
from arbstr_asgi.gateway.estimator import Estimator
from arbstr_asgi.gateway.record import Stopwatch
from arbstr_asgi.gateway.request_body import BodyChunks, BodyReader, ClientDisconnected, check_headers
from arbstr_asgi.gateway.responses import our_headers, send_error
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.ledger.status import QueueLimits
from arbstr_asgi.protocols.chat import ChatRequest, parse
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.api_keys import ApiKeys
from arbstr_asgi.providers.circuit_breaker import CircuitBreakers
from arbstr_asgi.providers.client import HttpClient
from arbstr_asgi.providers.routing import PolicyMatcher
from arbstr_asgi.providers.stream_options import StreamOptionsSupport
from arbstr_asgi.telemetry.access_log import AccessLog
from arbstr_asgi.telemetry.observer import CallObserver

if TYPE_CHECKING:
    from arbstr_asgi.protocols.tokenizer import Tokenizer
    from arbstr_asgi.telemetry.prometheus import Metrics

logger = logging.getLogger("arbstr_asgi")
START_TIMEOUT = 5.0  # seconds for the ledger's database at start
REQUEST_START_TIMEOUT = 0.5  # the same when nobody has opened it before the first one
SECONDS_UNTIL_RETRY = 1.0  # those who waited for an opening that failed share its failure
SECONDS_BETWEEN_GAUGES = 1.0
STOP_SECONDS = 1.0  # for calls that were told to end, before the ledger closes


class ActiveCalls:
    """The calls that are running, from `add` to `discard`."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}  # in the order in which they began
        self._none: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        """Those that go on now, whatever becomes of them meanwhile."""
        return iter(list(self._calls))

    def add(self, call: Call) -> None:
        """It goes on from now on."""
        self._calls[call] = None

    def discard(self, call: Call) -> None:
        """It goes on no more."""
        del self._calls[call]
        if self._none is not None and not self._calls:
            self._none.set()

    def stop(self) -> None:
        """Tell all of them to end."""
        for call in self:
            call.stop()

    async def wait_ended(self, timeout: float) -> None:
        """Return when none goes on, or after `timeout` seconds."""
        if self._calls:
            self._none = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._none.wait()
            except TimeoutError:
                pass
            finally:
                self._none = None

    @property
    def streams(self) -> int:
        """How many of them have begun to stream."""
        return sum(call.streams for call in self._calls)


class Gateway:
    """Answers chat completions: an ASGI application for that one path.

    Nothing is opened before `open`, or before the first request if nobody calls it.
    """

    def __init__(
        self,
        config: Config,
        *,
        identify: Identify | None = None,
        database: databases.Database | None = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
        measured: bool = False,
    ) -> None:
        """`measured` says that somebody may ask for `metrics`, which are None where they can't be kept."""
        _check_extras(config)
        self.config = config
        settings = config.database
        self.ledger = Ledger(
            None if database is not None else settings.resolved_url,
            database=database,
            table_prefix=settings.table_prefix if table_prefix is None else table_prefix,
            migrate=migrate,
            spill=settings.spill,
            durable=settings.durability == "strict",
            bounds=QueueLimits(settings.max_queued, settings.max_queued_bytes, settings.on_full == "refuse"),
            retention_days=settings.retention_days,
        )
        self.drains = DrainLimiter()
        self.metrics = _create_metrics(config) if measured else None
        self._observers: list[CallObserver] = []
        if self.metrics is not None:
            self._observers.append(self.metrics)
        if config.logging.log_requests:
            self._observers.append(AccessLog())
        self._measuring: asyncio.Task[None] | None = None
        self._estimator: Estimator | None = None
        self._stream_options = StreamOptionsSupport()
        self.matcher = PolicyMatcher(config.policies)
        self.breakers = CircuitBreakers(provider.name for provider in config.providers)
        self._api_keys = ApiKeys()
        self._refuses = settings.on_full == "refuse"
        self._authenticator = Authenticator(config.server, identify)
        self._bodies = BodyReader(config.limits)
        self._client = HttpClient(config.providers, transport=transport, client=client)
        self._deps: CallDependencies | None = None
        self._active = ActiveCalls()
        self._opening: asyncio.Lock | None = None
        self._try_again = 0.0
        self._on_loop_end: asyncio.Task[None] | None = None

    async def open(self, patience: float = START_TIMEOUT) -> None:
        """Open the ledger, unless a request has; its database may come later if it takes longer than `patience`.

        Raises ConfigError or LedgerError, having left nothing open.
        """
        if self._deps is not None:
            return
        self._client.open()
        await self.ledger.open(patience)
        self._estimator = _create_estimator(self.config, self.ledger.record, self.metrics)
        policies = {provider.name: h.HeaderPolicy(provider) for provider in self.config.providers}
        require = self.config.metering == "require"
        self._deps = CallDependencies(
            config=self.config,
            attempt=ProviderAttempt(self._client, self._stream_options, self._api_keys, policies, require=require),
            drains=self.drains,
            matcher=self.matcher,
            breakers=self.breakers,
            header_policies=policies,
            record_started=self.ledger.record_started,
            record=self.ledger.record,
            commit=self.ledger.commit if self.config.database.durability == "strict" else None,
            worker_id=self.ledger.worker_id,
            estimator=self._estimator,
            observers=self._observers,
            timer=DeadlineTimer(asyncio.get_running_loop()),
        )
        if self.metrics is not None and self.metrics.shared:
            self._measuring = asyncio.create_task(self._update_gauges_often(), context=contextvars.Context())
        if not self._authenticator.guarded:
            logger.warning(
                "nobody guards the chat completions path: whoever reaches it spends on your provider keys. "
                "Give identify=…, set server.auth_token, or say server.public = true"
            )

    async def close(self) -> None:
        """End what still runs, write every row, and close what is ours."""
        deps, self._deps = self._deps, None
        self._active.stop()
        await self._active.wait_ended(STOP_SECONDS)
        if deps is not None:
            deps.timer.close()
        if self._measuring is not None:
            self._measuring.cancel()
            self._measuring = None
        if self._estimator is not None:
            await self._estimator.close()
            self._estimator = None
        await self.ledger.close()
        self.update_gauges()
        await self._client.close()
        if self._on_loop_end is not None:
            self._on_loop_end.cancel()
            self._on_loop_end = None

    def wind_down(self, grace: float) -> None:
        """The server has begun to stop: end the reading-on for clients that have left, and the rest in `grace` seconds.

        Servers don't tell an app, but who starts one may know.
        """
        self.drains.close()
        for call in self._active:
            if call.draining:
                call.stop()
        asyncio.get_running_loop().call_later(grace, self._active.stop)

    def update_gauges(self) -> None:
        """Let the metrics know how things stand; the calls they know already."""
        if self.metrics is not None:
            states = self.breakers.states(asyncio.get_running_loop().time())
            self.metrics.state(self.ledger.snapshot(), self._active.streams, self.drains.by_provider, states)

    async def _update_gauges_often(self) -> None:
        """For those who read what this process has left in a file for them."""
        while True:
            self.update_gauges()
            await asyncio.sleep(SECONDS_BETWEEN_GAUGES)

    def uninjected(self) -> list[dict[str, str]]:
        """The pairs of provider and model that refuse `stream_options`, so that somebody's streams have no usage."""
        return self._stream_options.unsupported(monotonic())

    async def ready(self) -> None:
        """Open the ledger if nobody has. Raises ServerError where that is impossible."""
        if self._deps is None:
            await self._open_lazily()

    async def identify(self, scope: Scope) -> Caller:
        """Who sent a request. Raises ArbstrError where they are not let in."""
        return await self._authenticator.identify(scope)

    @asynccontextmanager
    async def read_request(self, scope: Scope, receive: Receive) -> AsyncIterator[ChatRequest]:
        """The chat completion in a request's body, for a block; it is not sent to anybody.

        Raises RequestError, ServerError and ClientDisconnected as for a call.
        """
        client_headers = h.Headers(scope["headers"])
        check_headers(client_headers)
        body = await self._bodies.read(BodyChunks(receive), client_headers.get(b"content-length"))
        size = len(body)
        try:
            yield parse(body)
        finally:
            self._bodies.release(size)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one POST of a chat completion."""
        return self.answer(scope, receive, send, BodyChunks(receive), None)

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, chunks: AsyncIterator[bytes], caller: Caller | None
    ) -> None:
        """Answer one request whose body is `chunks`; a `caller` that is given has been let in already."""
        arrival, clock = datetime.now(UTC), asyncio.get_running_loop().time
        stopwatch, correlation_id = Stopwatch(clock(), clock), new_request_id()
        body = None
        try:
            deps = self._deps or await self._open_lazily()
            if self._refuses and not self.ledger.has_room(len(self._active) + 1):
                raise ServerError(
                    "Usage can't be recorded at this moment. Please retry.", code="ledger_full", retry_after=5
                )
            caller = await self.identify(scope) if caller is None else check_names(caller)
            client_headers = h.Headers(scope["headers"])
            check_headers(client_headers)
            body = await self._bodies.read(chunks, client_headers.get(b"content-length"), deps.timer)
            call = Call(deps, parse(body), caller, correlation_id, arrival, stopwatch)
        except ClientDisconnected:
            return
        except ArbstrError as error:
            if body is not None:
                self._bodies.release(len(body))
            for observer in self._observers:
                observer.on_refused(error.status_code)
            await send_error(send, error, our_headers(correlation_id))
            return
        release_body = self._bodies.held(len(body))
        del body
        self._active.add(call)
        try:
            await call.handle(client_headers, receive, send, release_body)
        finally:
            release_body()
            self._active.discard(call)

    async def _open_lazily(self) -> CallDependencies:
        """For hosts that don't run a lifespan."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._deps is None:
                clock = asyncio.get_running_loop().time
                try:
                    if clock() < self._try_again:
                        raise ServerError("The usage ledger is not available.", code="ledger_unavailable")
                    await self.open(REQUEST_START_TIMEOUT)
                except (ConfigError, LedgerError) as error:
                    logger.critical("the ledger can't be opened: %s", error)
                    self._try_again = clock() + SECONDS_UNTIL_RETRY
                    raise ServerError("The usage ledger is not available.", code="ledger_unavailable") from None
                self._on_loop_end = asyncio.create_task(self._close_with_loop(), context=contextvars.Context())
        assert self._deps is not None
        return self._deps

    async def _close_with_loop(self) -> None:
        """Nobody tells us of the end, but a loop that closes cancels what runs; the ledger's writer does it alike."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._deps = self._opening = self._on_loop_end = None  # the next loop opens it anew
            if self._estimator is not None:
                self._estimator.stop()
                self._estimator = None
            self._try_again = 0.0
            await self._client.close()


def _create_metrics(config: Config) -> "Metrics | None":
    """The metrics of a gateway, where prometheus-client is installed."""
    if not is_installed("prometheus_client"):
        return None
    from arbstr_asgi.telemetry.prometheus import Metrics

    return Metrics(config)


def _check_extras(config: Config) -> None:
    """Raises ConfigError where the configuration asks for what is not installed."""
    if config.estimates and not is_installed("bpe_openai"):
        raise ConfigError('estimates: needs bpe-openai: pip install "arbstr-asgi[estimate]"')


def _create_estimator(
    config: Config, record: Callable[[LedgerEntry], None], metrics: "Metrics | None"
) -> Estimator | None:
    """What estimates the tokens of calls without usage, if the configuration wants that; its thread has begun to load.

    It hands what it finds to `record`, and to the metrics where there are any.
    """
    if not config.estimates:
        return None

    def estimated(entry: LedgerEntry) -> None:
        record(entry)
        if metrics is not None:
            metrics.estimated(entry)

    return Estimator(estimated, _tokenizer)


def _tokenizer() -> "Tokenizer":
    from arbstr_asgi.protocols.tokenizer import Tokenizer

    return Tokenizer()
