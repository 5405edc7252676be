"""Speaks the ASGI lifespan protocol around an application that may or may not speak it itself."""

import logging
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("arbstr_asgi")


class Lifespan:
    """One run of the protocol: `start` before `app` hears of the startup, `stop` after it has shut down.

    `inside` turns that round, for what uses something of the app's: `start` after its startup, `stop` before it hears
    of the shutdown. A failing `start` is answered with `startup.failed`; an app that has started by then is shut down.
    An app that ends or raises without an answer (Django) is answered for. What was started is stopped exactly once,
    before the answer that lets the server go on.
    """

    def __init__(
        self,
        app: ASGIApp,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        *,
        inside: bool = False,
    ) -> None:
        self._app = app
        self._start = start
        self._stop = stop
        self._inside = inside
        self._started = False
        self._failure: Message = {}  # the answer to the startup, if ours has failed
        self._heard = 0  # 1: the server has said startup, 2: shutdown
        self._answered = 0  # 1: startup is answered, 2: nothing is left to answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one lifespan scope."""
        startup = await receive()
        if not self._inside and not await self._start_well():
            await send(self._failure)
            return
        try:
            await self._run_app(scope, startup, receive, send)
            if self._answered < 2:
                await self._answer_for_app(receive, send)
        finally:
            await self._stop_once()

    async def _start_well(self) -> bool:
        try:
            await self._start()
        except Exception as error:  # noqa: BLE001 - whatever it is, the server must not go on without us
            self._failure = {"type": "lifespan.startup.failed", "message": f"arbstr_asgi: {error}"}
            return False
        self._started = True
        return True

    async def _run_app(self, scope: Scope, startup: Message, receive: Receive, send: Send) -> None:
        async def to_app() -> Message:
            self._heard += 1
            return startup if self._heard == 1 else await self._shutdown(receive)

        async def from_app(message: Message) -> None:
            await self._answer(message, send)

        try:
            await self._app(scope, to_app, from_app)
        except Exception:
            if self._answered:
                raise
            logger.debug("the application does not speak the lifespan protocol; answering for it")

    async def _shutdown(self, receive: Receive) -> Message:
        if self._failure:
            return {"type": "lifespan.shutdown"}  # so that the app closes what it has opened
        message = await receive()
        if self._inside:
            await self._stop_once()
        return message

    async def _answer(self, message: Message, send: Send) -> None:
        """Pass on what the app says, with our own part done before."""
        if message["type"] == "lifespan.startup.complete":
            self._answered = 1
            if self._inside and not await self._start_well():
                return  # the failure goes out once the app has shut down
        else:
            await self._stop_once()
            self._answered = 2
        await send(self._failure or message)

    async def _answer_for_app(self, receive: Receive, send: Send) -> None:
        if not self._answered and (not self._inside or await self._start_well()):
            await send({"type": "lifespan.startup.complete"})
        if self._failure:
            await send(self._failure)
            return
        if self._heard < 2:
            await receive()
        await self._stop_once()
        await send({"type": "lifespan.shutdown.complete"})

    async def _stop_once(self) -> None:
        if self._started:
            self._started = False
            await self._stop()
