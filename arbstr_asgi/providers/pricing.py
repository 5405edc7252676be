"""The cost of a call, from its usage and the rates of the provider."""

from decimal import Context, Decimal, localcontext

from arbstr_asgi.config.provider import Provider, Rates
from arbstr_asgi.protocols.token_estimate import Estimate
from arbstr_asgi.protocols.usage import Usage

TOKENS_PER_RATE = Decimal(1_000_000)
_EXACT = Context(prec=60)


def cost(usage: Usage | None, rates: Rates | Provider) -> Decimal | None:
    """The cost in sats, None where a count or a rate is unknown, or the counts contradict each other.

    (input x input_rate + output x output_rate) / 1,000,000 + base_fee. The cached part of the input and the reasoning
    part of the output are charged by their own rate where one is set. Additive reasoning counts as output too, as do
    tokens that only the total shows.
    """
    if usage is None or usage.input_tokens is None or usage.output_tokens is None or usage.is_contradictory:
        return None
    if rates.input_rate is None or rates.output_rate is None:
        return None
    with localcontext(_EXACT):  # independent of the host's context
        reasoning = usage.reasoning_tokens or 0
        output = usage.output_tokens + usage.unlisted_output_tokens + (reasoning if usage.reasoning_is_additive else 0)
        given = usage.input_tokens + usage.unlisted_input_tokens
        total = _share(given, rates.input_rate, usage.cached_tokens or 0, rates.cached_input_rate)
        total += _share(output, rates.output_rate, reasoning, rates.reasoning_rate)
        return total / TOKENS_PER_RATE + (rates.base_fee or 0)


def cost_estimate(estimate: Estimate, rates: Rates | Provider) -> Decimal | None:
    """The estimated cost in sats, None where a rate is unknown."""
    return cost(Usage(input_tokens=estimate.input_tokens, output_tokens=estimate.output_tokens), rates)


def _share(tokens: int, rate: Decimal | int, special: int, special_rate: Decimal | int | None) -> Decimal | int:
    if special_rate is None:
        return tokens * rate
    special = min(special, tokens)
    return (tokens - special) * rate + special * special_rate
