"""Which providers may answer a request, the cheapest first."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from arbstr_asgi.chat import ChatRequest
from arbstr_asgi.config.policies import Rule
from arbstr_asgi.config.provider import Provider
from arbstr_asgi.errors import RequestError, quotable
from arbstr_asgi.estimate import Estimate, estimate_tokens
from arbstr_asgi.pricing import cost_estimate

_NOTHING = Decimal(0)


class Candidate(NamedTuple):
    """A provider that may answer."""

    provider: Provider
    model: str
    """What this provider is asked for: its alias of the model that the client named."""
    cost: Decimal | None
    """What this request will cost, in sats, by an estimate; None: unknown, or there was nothing to compare."""


def rank_providers(
    providers: Sequence[Provider], request: ChatRequest, rule: Rule | None = None, *, estimate: Estimate | None = None
) -> list[Candidate]:
    """The providers that serve the request's model within the rule, by what this request will cost, then by name.

    A provider whose price is unknown comes last. The estimate is made here where none is given and several providers
    are left; with a single one and no estimate, its cost is None. Raises RequestError: 404 where nobody serves the
    model, 400 where the rule does not allow it or leaves nobody.
    """
    model = request.model
    found = [provider for provider in providers if provider.serves(model)]
    if not found:
        raise RequestError(404, "No provider is configured for this model.", param="model", code="model_not_found")
    if rule is not None:
        found = _within(found, model, rule)
    if estimate is None:
        if len(found) == 1:
            [only] = found
            return [Candidate(only, only.aliases.get(model, model), None)]
        estimate = estimate_tokens(request)
    priced = []
    for provider in found:
        target = provider.aliases.get(model, model)
        priced.append(Candidate(provider, target, cost_estimate(estimate, provider.rates(model, target))))
    return sorted(priced, key=_rank)


def _rank(candidate: Candidate) -> tuple[bool, Decimal, str]:
    return candidate.cost is None, candidate.cost or _NOTHING, candidate.provider.name


def _within(providers: list[Provider], model: str, rule: Rule) -> list[Provider]:
    if rule.allowed_models and model not in rule.allowed_models:
        message = f"Model '{quotable(model)}' is not allowed by policy '{quotable(rule.name)}'."
        raise RequestError(400, message, param="model", code="model_not_allowed")
    found = [provider for provider in providers if _allows(rule, provider, model)]
    if not found:
        message = f"No provider of this model is within policy '{quotable(rule.name)}'."
        raise RequestError(400, message, code="no_provider_within_policy")
    return found


def _allows(rule: Rule, provider: Provider, model: str) -> bool:
    if rule.allowed_providers and provider.name not in rule.allowed_providers:
        return False
    rates = provider.rates(model, provider.aliases.get(model))
    return _below(rates.input_rate, rule.max_sats_per_1m_input) and _below(
        rates.output_rate, rule.max_sats_per_1m_output
    )


def _below(rate: Decimal | int | None, cap: Decimal | int | None) -> bool:
    return cap is None or (rate is not None and rate <= cap)
