"""Normalises the `usage` object of any provider."""

from collections.abc import Mapping
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Any

import msgspec

MAX_COUNT = 2**63 - 1
MAX_RAW_BYTES = 4096
MAX_USD = 10**12
USD_QUANTUM = Decimal(1).scaleb(-12)
_EXACT = Context(prec=60)  # independent of the host's context
USD_PER_TICK = Decimal(1).scaleb(-10)  # xAI: cost_in_usd_ticks counts ten-billionths of a dollar


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts as the provider reported them. None means not reported, which is not zero.

    `input_tokens` and `output_tokens` are `prompt_tokens` and `completion_tokens` of the provider. `cached_tokens` and
    `cache_write_tokens` are parts of the input. `reasoning_tokens` are a part of the output, unless
    `reasoning_is_additive` (xAI), where they are added to it. `cost_usd` is the cost that the provider reports, a
    decimal string. `raw_json` is the usage object as received, None above 4 KiB.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    reasoning_is_additive: bool = False
    cost_usd: str | None = None
    raw_json: str | None = None


_NO_DETAILS: Mapping[str, Any] = MappingProxyType({})


def read_usage(usage: object, raw: bytes | None = None) -> Usage | None:
    """Parse a decoded `usage` object; None if it has no valid count at all.

    Counts that are negative, fractional, boolean, text or beyond int64 are ignored. Where providers use several names
    for a count, the first valid one is taken.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    get = usage.get
    input_details, output_details = _details(get("prompt_tokens_details")), _details(get("completion_tokens_details"))
    input_tokens = _first(get("prompt_tokens"), get("input_tokens"))
    output_tokens = _first(get("completion_tokens"), get("output_tokens"))
    total_tokens = _first(get("total_tokens"))
    cached_tokens = _first(
        input_details.get("cached_tokens"),
        get("cached_tokens"),
        get("prompt_cache_hit_tokens"),
        get("cache_read_input_tokens"),
    )
    cache_write_tokens = _first(
        input_details.get("cache_write_tokens"),
        input_details.get("cache_creation_tokens"),
        get("cache_creation_input_tokens"),
    )
    reasoning_tokens = _first(output_details.get("reasoning_tokens"), get("reasoning_tokens"))
    if input_tokens is output_tokens is total_tokens is cached_tokens is cache_write_tokens is reasoning_tokens is None:
        return None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total_tokens,
        cached_tokens=cached_tokens,
        cache_write_tokens=cache_write_tokens,
        reasoning_tokens=reasoning_tokens,
        reasoning_is_additive=_reasoning_is_additive(input_tokens, output_tokens, total_tokens, reasoning_tokens),
        cost_usd=_cost(usage),
        raw_json=None if raw is None or len(raw) > MAX_RAW_BYTES else raw.decode("utf-8", "replace"),
    )


def _details(usage: object) -> Mapping[str, Any]:
    return usage if isinstance(usage, dict) else _NO_DETAILS


def _first(*values: object) -> int | None:
    for value in values:
        if value is not None:
            count = _count(value)
            if count is not None:
                return count
    return None


def _count(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= MAX_COUNT else None
    if isinstance(value, Decimal):
        whole = value.is_finite() and abs(value) <= MAX_COUNT and value == value.to_integral_value()
        return _count(int(value)) if whole else None
    return None


def _reasoning_is_additive(
    input_tokens: int | None, output_tokens: int | None, total_tokens: int | None, reasoning_tokens: int | None
) -> bool:
    """Whether reasoning tokens are added to the output, by the provider's total."""
    if input_tokens is None or output_tokens is None or total_tokens is None or reasoning_tokens is None:
        return False
    return total_tokens == input_tokens + output_tokens + reasoning_tokens != input_tokens + output_tokens


def _cost(usage: Mapping[str, Any]) -> str | None:
    cost = usage.get("cost")
    if isinstance(cost, dict):  # Perplexity
        cost = cost.get("total_cost")
    ticks = _count(usage.get("cost_in_usd_ticks"))
    if cost is None and ticks is None:
        return None
    if cost is None and ticks is not None:
        cost = _EXACT.multiply(Decimal(ticks), USD_PER_TICK)
    if type(cost) is int:
        cost = Decimal(cost)
    if not isinstance(cost, Decimal) or not cost.is_finite() or not 0 <= cost < MAX_USD:
        return None
    return f"{cost.quantize(USD_QUANTUM, context=_EXACT).normalize(_EXACT):f}"
