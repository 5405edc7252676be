"""When a client hangs up: how it is noticed, what is done with the provider's reply, how many are drained."""

import asyncio
from collections import Counter
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Self

from starlette.types import Receive

from arbstr_asgi.config.provider import Drain
from arbstr_asgi.gateway.deadline import Deadline

SECONDS_UNTIL_LISTENING = 0.05  # a call that is answered sooner needs no task beside its own
MAX_MESSAGES = 16  # a server has nothing to say between the request and the hang-up; never spin on one that has


class DisconnectListener:
    """A block during which `on_disconnect` is called from the event loop when `receive` says that the client is gone.

    It listens from `start` on: at once, or 50 ms later where a deadline's block is around.
    """

    __slots__ = ("_deadline", "_on_disconnect", "_receive", "_task")

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None], deadline: Deadline | None = None) -> None:
        self._receive = receive
        self._on_disconnect: Callable[[], None] | None = on_disconnect
        self._deadline = deadline
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        if self._deadline is None:
            self.start()
        else:
            self._deadline.call_later(SECONDS_UNTIL_LISTENING, self.start)
        return self

    def start(self) -> None:
        """Listen from now on, if it does not yet and the block has not been left."""
        if self._task is None and self._on_disconnect is not None:
            self._task = asyncio.get_running_loop().create_task(self._listen())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._on_disconnect = None
        if self._task is not None:
            self._task.cancel()
            self._task = None  # its last traceback leads here, and nobody should have to look for such circles

    async def _listen(self) -> None:
        gone, messages = False, 0
        try:
            while not gone and messages < MAX_MESSAGES:
                gone, messages = (await self._receive())["type"] == "http.disconnect", messages + 1
        except Exception:  # noqa: BLE001 - a receive that raises says nothing about the client
            return
        if gone and self._on_disconnect is not None:
            self._on_disconnect()


class DisconnectAction(Enum):
    """The choices."""

    NOTHING = "the client has had everything"
    END_SOON = "the client has had everything that counts; don't wait long for the provider to end"
    DRAIN = "read on to the usage"
    CANCEL = "close the reply at once"


def disconnect_action(
    *, complete: bool, done: bool, held: bool, answered: bool, streaming: bool, drain: Drain | None, room: bool
) -> DisconnectAction:
    """Decide by the moment, the provider's policy and its caps.

    `complete`: the end of the reply has been handed to the server. `done`: `[DONE]` has come. `held`: all has come,
    but its end waits for its row. `answered`: the provider has answered. `room`: there is a place left to drain.
    """
    if held:
        return DisconnectAction.CANCEL
    if complete:
        return DisconnectAction.NOTHING
    if done:  # SDKs close here
        return DisconnectAction.END_SOON
    worth_reading = answered or not streaming  # a plain call is worked on, and paid, in any case
    return DisconnectAction.DRAIN if worth_reading and drain is not None and room else DisconnectAction.CANCEL


class DrainLimiter:
    """Counts drains at once, per provider and of each per end user, against the provider's caps."""

    def __init__(self) -> None:
        self._providers: Counter[str] = Counter()
        self._users: Counter[tuple[str, str]] = Counter()
        self._closed = False

    def close(self) -> None:
        """Have room for no more: the server ends."""
        self._closed = True

    @property
    def active(self) -> int:
        """How many there are over all."""
        return self._providers.total()

    @property
    def by_provider(self) -> dict[str, int]:
        """How many there are of each provider that has any."""
        return dict(self._providers)

    def has_room(self, provider: str, end_user: str | None, caps: Drain) -> bool:
        """Whether one more is within the caps. Callers without a name share the overall cap only."""
        if self._closed or self._providers[provider] >= caps.at_once:
            return False
        return not end_user or self._users[provider, end_user] < caps.per_end_user

    def begin(self, provider: str, end_user: str | None) -> None:
        """Take a place."""
        self._providers[provider] += 1
        if end_user:
            self._users[provider, end_user] += 1

    def end(self, provider: str, end_user: str | None) -> None:
        """Give the place back."""
        _less(self._providers, provider)
        if end_user:
            _less(self._users, (provider, end_user))


def _less(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
