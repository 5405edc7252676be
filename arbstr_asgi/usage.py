"""What a provider says a completion used, in one shape."""

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any

import msgspec

MAX_COUNT = 2**63 - 1
MAX_RAW_BYTES = 4096
MAX_USD = 10**12
FINEST_USD = Decimal(1).scaleb(-12)
_EXACT = Context(prec=60)  # whatever the host's own rounds to
USD_PER_TICK = Decimal(1).scaleb(-10)  # xAI: cost_in_usd_ticks counts ten-billionths of a dollar


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts as the provider reported them. None means not said, which is not zero.

    `input_tokens` and `output_tokens` are the provider's `prompt_tokens` and `completion_tokens`.
    `cached_tokens` and `cache_write_tokens` are shares of the input. `reasoning_tokens` are a share of the output,
    unless `reasoning_is_additive` (xAI), where they come on top of it. `cost_usd` is the provider's own figure as a
    decimal string. `raw_json` is the usage object as it came, at most 4 KiB, else None.
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


_Path = tuple[str, str | None]


def _paths(*said: str) -> tuple[_Path, ...]:
    parts = (path.partition(".") for path in said)
    return tuple((outer, inner or None) for outer, _, inner in parts)


# Where providers put each count; the first that holds one is taken.
_PATHS = {
    "input_tokens": _paths("prompt_tokens", "input_tokens"),
    "output_tokens": _paths("completion_tokens", "output_tokens"),
    "total_tokens": _paths("total_tokens"),
    "cached_tokens": _paths(
        "prompt_tokens_details.cached_tokens",
        "cached_tokens",
        "prompt_cache_hit_tokens",
        "cache_read_input_tokens",
    ),
    "cache_write_tokens": _paths(
        "prompt_tokens_details.cache_write_tokens",
        "prompt_tokens_details.cache_creation_tokens",
        "cache_creation_input_tokens",
    ),
    "reasoning_tokens": _paths("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
}


_NOTHING = dict.fromkeys(_PATHS)


def read_usage(said: object, raw: bytes | None = None) -> Usage | None:
    """The Usage in a decoded `usage` object, None if it holds no valid count at all.

    Counts that are negative, fractional, boolean, text or beyond int64 are not counts.
    """
    if not isinstance(said, dict) or not said:
        return None
    found: dict[str, int | None] = {name: _first(said, paths) for name, paths in _PATHS.items()}
    if found == _NOTHING:
        return None
    return Usage(
        **found,
        reasoning_is_additive=_additive(found),
        cost_usd=_cost(said),
        raw_json=None if raw is None or len(raw) > MAX_RAW_BYTES else raw.decode("utf-8", "replace"),
    )


def _first(said: Mapping[str, Any], paths: tuple[_Path, ...]) -> int | None:
    for outer, inner in paths:
        value = said.get(outer)
        if inner is not None:
            value = value.get(inner) if isinstance(value, dict) else None
        count = None if value is None else _count(value)
        if count is not None:
            return count
    return None


def _count(value: object) -> int | None:
    if isinstance(value, Decimal):
        whole = value.is_finite() and abs(value) <= MAX_COUNT and value == value.to_integral_value()
        value = int(value) if whole else None
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _additive(found: Mapping[str, int | None]) -> bool:
    """Whether reasoning comes on top of the output: the provider's own total tells."""
    given, answered = found["input_tokens"], found["output_tokens"]
    total, reasoning = found["total_tokens"], found["reasoning_tokens"]
    if given is None or answered is None or total is None or reasoning is None:
        return False
    return total == given + answered + reasoning != given + answered


def _cost(said: Mapping[str, Any]) -> str | None:
    cost = said.get("cost")
    if isinstance(cost, dict):  # Perplexity
        cost = cost.get("total_cost")
    ticks = _count(said.get("cost_in_usd_ticks"))
    if cost is None and ticks is None:
        return None
    if cost is None and ticks is not None:
        cost = _EXACT.multiply(Decimal(ticks), USD_PER_TICK)
    if type(cost) is int:
        cost = Decimal(cost)
    if not isinstance(cost, Decimal) or not cost.is_finite() or not 0 <= cost < MAX_USD:
        return None
    return f"{cost.quantize(FINEST_USD, context=_EXACT).normalize(_EXACT):f}"
