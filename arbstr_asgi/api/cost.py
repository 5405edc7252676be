"""Cost estimate of a request, in the shape of POST /v1/cost."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from arbstr_asgi.api.providers import UNIT
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.protocols.chat import ChatRequest
from arbstr_asgi.protocols.token_estimate import estimate_tokens
from arbstr_asgi.providers.circuit_breaker import CircuitBreakers
from arbstr_asgi.providers.routing import PolicyMatcher, rank_providers


def estimate_cost(
    providers: Sequence[Provider],
    matcher: PolicyMatcher,
    breakers: CircuitBreakers,
    request: ChatRequest,
    policy: str | None,
    now: float,
) -> dict[str, Any]:
    """The provider that would be asked first, and estimated tokens and cost in sats; None is unknown.

    `policy` is the one named by the client, `now` is in seconds on the clock of the circuit breakers. Raises
    RequestError where the request itself would be refused.
    """
    estimate = estimate_tokens(request)
    result = rank_providers(providers, request, matcher.match(request, policy), estimate=estimate)
    chosen = breakers.choose(result, now)
    rates = chosen.provider.rates(request.model, chosen.model)
    return {
        "model": msgspec.Raw(json.dumps(request.model).encode()),  # may hold a lone surrogate
        "provider": chosen.provider.name,
        "estimated_input_tokens": estimate.input_tokens,
        "estimated_output_tokens": estimate.output_tokens,
        "estimated_cost_sats": chosen.cost,
        "rates": {
            "input_rate_sats_per_1m": rates.input_rate,
            "output_rate_sats_per_1m": rates.output_rate,
            "base_fee_sats": rates.base_fee,
        },
        "rate_unit": UNIT,
    }
