"""Routes of the sub-app that need authentication: models, cost, providers, metrics, statistics."""

import asyncio
import json
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi.api import stats as stats_api
from arbstr_asgi.api.cost import estimate_cost
from arbstr_asgi.api.models import model, model_list
from arbstr_asgi.api.paths import ExactRoute
from arbstr_asgi.api.providers import provider_listing
from arbstr_asgi.errors import ArbstrError, ServerError
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.call import POLICY
from arbstr_asgi.gateway.gateway import Gateway
from arbstr_asgi.gateway.request_body import ClientDisconnected
from arbstr_asgi.gateway.responses import send_error
from arbstr_asgi.providers import headers as h
from arbstr_asgi.providers.api_keys import keys_in_files
from arbstr_asgi.stats.serialize import to_json

Answer = Callable[[Gateway, Request, Caller], Awaitable[bytes | ASGIApp]]


class AuthenticatedEndpoint:
    """An endpoint behind the same authentication as chat completions; `answer` returns JSON or an ASGI app."""

    def __init__(self, gateway: Gateway, answer: Answer) -> None:
        self._gateway = gateway
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        try:
            caller = await self._gateway.identify(scope)
            body = await self._answer(self._gateway, Request(scope, receive), caller)
        except ArbstrError as error:
            await send_error(send, error, [])
        except ClientDisconnected:
            return
        else:
            answer = Response(body, media_type="application/json") if isinstance(body, bytes) else body
            await answer(scope, receive, send)


def routes(gateway: Gateway) -> list[ExactRoute]:
    """The routes, each with authentication."""
    return [
        ExactRoute("/v1/models", AuthenticatedEndpoint(gateway, _models)),
        ExactRoute("/v1/models/{model:path}", AuthenticatedEndpoint(gateway, _model)),
        ExactRoute("/v1/cost", AuthenticatedEndpoint(gateway, _cost), methods=["POST"]),
        ExactRoute("/providers", AuthenticatedEndpoint(gateway, _providers)),
        ExactRoute("/metrics", AuthenticatedEndpoint(gateway, _metrics)),
        ExactRoute("/v1/stats", AuthenticatedEndpoint(gateway, stats_api.stats)),
        ExactRoute("/v1/requests", AuthenticatedEndpoint(gateway, stats_api.requests)),
        ExactRoute("/v1/requests/{correlation_id:path}", AuthenticatedEndpoint(gateway, stats_api.detail)),
    ]


async def _models(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    return json.dumps(model_list(gateway.config.providers)).encode()


async def _model(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    return json.dumps(model(gateway.config.providers, request.path_params["model"])).encode()


async def _cost(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    policy = h.Headers(request.scope["headers"]).get(POLICY)
    async with gateway.read_request(request.scope, request.receive) as chat_request:
        now = asyncio.get_running_loop().time()
        return to_json(
            estimate_cost(gateway.config.providers, gateway.matcher, gateway.breakers, chat_request, policy, now)
        )


async def _providers(gateway: Gateway, request: Request, caller: Caller) -> bytes:
    keys, _ = keys_in_files(gateway.config)
    return to_json(provider_listing(gateway.config, keys))


async def _metrics(gateway: Gateway, request: Request, caller: Caller) -> Response:
    if gateway.metrics is None:
        message = 'Metrics need prometheus-client: pip install "arbstr-asgi[metrics]".'
        raise ServerError(message, status_code=501, code="metrics_not_installed")
    gateway.update_gauges()
    text, media_type = await asyncio.to_thread(gateway.metrics.exposition)
    return Response(text, media_type=media_type)
