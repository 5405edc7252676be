"""Health checks: liveness, readiness, state of the providers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arbstr_asgi.api.paths import ExactRoute
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import LedgerError
from arbstr_asgi.gateway.gateway import Gateway


def health(providers: Sequence[Provider], states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The providers and the `states` of their circuit breakers, by name.

    `status` is `ok`, `degraded` where a breaker is not closed, `unhealthy` where all are open.
    """
    result = {provider.name: {**states[provider.name], "tier": provider.tier} for provider in providers}
    return {"status": _status({state["state"] for state in result.values()}), "providers": result}


def _status(states: set[str]) -> str:
    if states == {"open"}:
        return "unhealthy"
    return "ok" if states == {"closed"} else "degraded"


class HealthEndpoints:
    """Endpoints without authentication; their responses hold no URL and no key. `snapshot` is that of the sub-app."""

    def __init__(self, gateway: Gateway, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._gateway = gateway
        self._snapshot = snapshot

    def routes(self) -> list[ExactRoute]:
        """The routes."""
        return [
            ExactRoute("/livez", self._livez),
            ExactRoute("/readyz", self._readyz),
            ExactRoute("/health", self._health),
        ]

    async def _livez(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """Ready while rows are safe, also while the database is down and rows are spilled."""
        ledger, facts = self._gateway.ledger, self._snapshot()
        if not ledger.is_open or not ledger.has_room(1):
            reason = "too much waits to be written" if ledger.is_open else "the ledger is not open"
            return JSONResponse({"status": "unavailable", "reason": reason, **facts}, status_code=503)
        try:
            await ledger.check()
        except LedgerError as error:
            status = "spilling" if facts["spills"] else "holding"
            return JSONResponse({"status": status, "reason": error.summary(), **facts})
        return JSONResponse({"status": "ok", **facts})

    async def _health(self, request: Request) -> Response:
        """503 only while every breaker is open, which ends by time alone: a 503 that stops all calls must not last."""
        gateway = self._gateway
        facts = health(gateway.config.providers, gateway.breakers.states(asyncio.get_running_loop().time()))
        return JSONResponse(facts, status_code=503 if facts["status"] == "unhealthy" else 200)
