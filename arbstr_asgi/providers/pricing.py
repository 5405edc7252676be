"""What a call cost, from what it used."""

from decimal import Context, Decimal, localcontext

from arbstr_asgi.config.provider import Provider, Rates
from arbstr_asgi.protocols.token_estimate import Estimate
from arbstr_asgi.protocols.usage import Usage

PER = Decimal(1_000_000)
_EXACT = Context(prec=60)


def cost(usage: Usage | None, rates: Rates | Provider) -> Decimal | None:
    """The cost in sats, or None where a count or a rate is unknown, or the counts contradict each other.

    (input x input_rate + output x output_rate) / 1,000,000 + base_fee. The cached share of the input and the
    reasoning share of the output go by their own rate where one is set. Additive reasoning is output too, and so are
    tokens that only the total shows.
    """
    if usage is None or usage.input_tokens is None or usage.output_tokens is None or usage.is_contradictory:
        return None
    if rates.input_rate is None or rates.output_rate is None:
        return None
    with localcontext(_EXACT):  # whatever the host's own context rounds to
        return _cost(usage, usage.input_tokens, usage.output_tokens, rates, rates.input_rate, rates.output_rate)


def cost_estimate(estimate: Estimate, rates: Rates | Provider) -> Decimal | None:
    """What a call will cost in sats by this estimate, None where a rate is unknown."""
    return cost(Usage(input_tokens=estimate.input_tokens, output_tokens=estimate.output_tokens), rates)


def _cost(
    usage: Usage,
    given: int,
    answered: int,
    rates: Rates | Provider,
    input_rate: Decimal | int,
    output_rate: Decimal | int,
) -> Decimal:
    reasoning = usage.reasoning_tokens or 0
    output = answered + usage.unlisted_output_tokens + (reasoning if usage.reasoning_is_additive else 0)
    total = _share(given + usage.unlisted_input_tokens, input_rate, usage.cached_tokens or 0, rates.cached_input_rate)
    total += _share(output, output_rate, reasoning, rates.reasoning_rate)
    return total / PER + (rates.base_fee or 0)


def _share(tokens: int, rate: Decimal | int, special: int, special_rate: Decimal | int | None) -> Decimal | int:
    if special_rate is None:
        return tokens * rate
    special = min(special, tokens)
    return (tokens - special) * rate + special * special_rate
