"""Normalises the `usage` object of any provider."""

from collections.abc import Mapping
from decimal import Context, Decimal
from itertools import compress, product
from typing import Any

import msgspec

MAX_COUNT = 2**63 - 1
MAX_RAW_BYTES = 4096
MAX_USD = 10**12
USD_QUANTUM = Decimal(1).scaleb(-12)
_EXACT = Context(prec=60)  # independent of the host's context
USD_PER_TICK = Decimal(1).scaleb(-10)  # xAI: cost_in_usd_ticks counts ten-billionths of a dollar

# The names of counts that providers and proxies use, and their kinds; of `usage` itself, and of its details objects.
_TOTALS = {
    "prompt_tokens": "input",
    "input_tokens": "input",
    "completion_tokens": "output",
    "output_tokens": "output",
}
_INPUT_PARTS = dict.fromkeys(
    (
        "cached_tokens",
        "prompt_cache_hit_tokens",
        "cache_read_input_tokens",
        "cache_read_tokens",
        "cached_input_tokens",
        "cached_prompt_tokens",
    ),
    "cached",
) | dict.fromkeys(
    (
        "cache_write_tokens",
        "cache_creation_tokens",
        "cache_creation_input_tokens",
        "cache_write_input_tokens",
        "cached_creation_tokens",
    ),
    "cache_write",
)
_OUTPUT_PARTS = dict.fromkeys(("reasoning_tokens", "thinking_tokens"), "reasoning")
_COUNT_KINDS = {**_TOTALS, "total_tokens": "total", **_INPUT_PARTS, **_OUTPUT_PARTS}
_INPUT_DETAIL_KINDS = _INPUT_PARTS | {name: name for name in ("audio_tokens", "image_tokens", "video_tokens")}
_DETAIL_KINDS = {
    f"{side}_{tokens}_details": _INPUT_DETAIL_KINDS if side in ("prompt", "input") else _OUTPUT_PARTS
    for side in ("prompt", "input", "completion", "output")
    for tokens in ("tokens", "token")
}
_CACHE_WRITE_PARTS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_ANTHROPIC_NAMES = ("cache_read_input_tokens", "cache_creation_input_tokens")
# Which of reasoning, both cache counts, cache reads, cache writes and media may be excluded from input and output, the
# likeliest first.
_COMBINATIONS = sorted(
    (combination for combination in product((False, True), repeat=5) if sum(combination[1:4]) < 2),
    key=lambda combination: (sum(combination), [not included for included in combination]),
)


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts as the provider reported them. None means not reported, which is not zero.

    `input_tokens` and `output_tokens` are `prompt_tokens` and `completion_tokens` of the provider; the input includes
    cache reads and writes, also where the provider excludes them. `cached_tokens` and `cache_write_tokens` are parts of
    the input. `reasoning_tokens` are a part of the output, unless `reasoning_is_additive` (xAI), where they are added
    to it. `unlisted_input_tokens` and `unlisted_output_tokens` are added too: only the total includes them.
    `is_contradictory`: the counts can not all be true. `cost_usd` is the cost that the provider reports, a decimal
    string. `raw_json` is the usage object as received, None above 4 KiB.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    reasoning_is_additive: bool = False
    unlisted_input_tokens: int = 0
    unlisted_output_tokens: int = 0
    is_contradictory: bool = False
    cost_usd: str | None = None
    raw_json: str | None = None

    @property
    def is_zero(self) -> bool:
        """Whether every reported count is zero, as in a placeholder."""
        return not (
            self.input_tokens
            or self.output_tokens
            or self.total_tokens
            or self.cached_tokens
            or self.cache_write_tokens
            or self.reasoning_tokens
        )


def read_usage(usage: object, raw: bytes | None = None) -> Usage | None:
    """Parse a decoded `usage` object; None if it has no valid count at all. `raw` is its JSON.

    Counts that are negative, fractional, boolean, text or beyond int64 are ignored. Where providers use several names
    for a count, the largest is taken: a 0 beside a real count is a default.
    """
    if not isinstance(usage, dict) or not usage:
        return None
    counts: dict[str, int] = {}
    _collect_counts(usage, _COUNT_KINDS, counts)
    if not counts:
        return None
    input_tokens, output_tokens, media_tokens = counts.get("input"), counts.get("output"), 0
    extra: dict[str, Any] = {}
    if input_tokens is not None and output_tokens is not None:
        if "total" not in counts and "prompt_tokens" not in usage and any(name in usage for name in _ANTHROPIC_NAMES):
            # Anthropic's format excludes cache reads and writes from the input.
            input_tokens = _count(input_tokens + counts.get("cached", 0) + counts.get("cache_write", 0))
        else:
            media_tokens = sum(counts.get(name, 0) for name in ("audio_tokens", "image_tokens", "video_tokens"))
            input_tokens, extra = _reconcile(counts, input_tokens, output_tokens, media_tokens)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=counts.get("total"),
        cached_tokens=counts.get("cached"),
        cache_write_tokens=counts.get("cache_write"),
        reasoning_tokens=counts.get("reasoning"),
        cost_usd=_cost(usage),
        raw_json=None if raw is None or len(raw) > MAX_RAW_BYTES else raw.decode("utf-8", "replace"),
        **extra,
    )


def _collect_counts(usage: Mapping[str, Any], kinds: Mapping[str, str], counts: dict[str, int]) -> None:
    """Find the largest count of each kind in a usage object and, one level down, in its details."""
    for name, value in usage.items():
        kind = kinds.get(name)
        if kind is not None:
            count = _count(value)
            if count is not None and count >= counts.get(kind, 0):
                counts[kind] = count
        elif isinstance(value, dict):
            if name in _DETAIL_KINDS:
                _collect_counts(value, _DETAIL_KINDS[name], counts)
            elif name == "cache_creation":  # Anthropic's cache writes by lifetime
                parts = [_count(value.get(part)) or 0 for part in _CACHE_WRITE_PARTS]
                counts["cache_write"] = max(_count(sum(parts)) or 0, counts.get("cache_write", 0))


def _reconcile(
    counts: Mapping[str, int], input_tokens: int, output_tokens: int, media_tokens: int
) -> tuple[int, dict[str, Any]]:
    """The whole input, and further fields of Usage, by the total.

    `media_tokens` are the audio, image and video tokens of the input.
    """
    cached, cache_write, reasoning = counts.get("cached", 0), counts.get("cache_write", 0), counts.get("reasoning", 0)
    total = counts.get("total") or input_tokens + output_tokens  # a total of 0 is a default
    remainder = total - input_tokens - output_tokens
    extra: dict[str, Any] = {}
    additive_reasoning, media_input = 0, 0
    if remainder > 0:
        addends = _find_addends(remainder, (reasoning, cached + cache_write, cached, cache_write, media_tokens))
        if addends is None and input_tokens < cached + cache_write <= remainder:  # they can not be a part of the input
            addends = False, True, False, False, False
        if addends is not None:
            additive_reasoning = reasoning if addends[0] else 0
            cache_tokens = sum(compress((cached + cache_write, cached, cache_write), addends[1:4]))
            media_input = media_tokens if addends[4] else 0
            input_tokens += cache_tokens
            remainder -= additive_reasoning + cache_tokens + media_input
            extra = {"reasoning_is_additive": addends[0], "unlisted_input_tokens": media_input}
        extra["unlisted_output_tokens"] = remainder
    extra["is_contradictory"] = (
        remainder < 0
        or (remainder > 0 and not input_tokens)  # of input or output is unknown
        or cached + cache_write > input_tokens + media_input
        or reasoning > output_tokens + additive_reasoning + max(remainder, 0)
    )
    return input_tokens, extra


def _find_addends(remainder: int, counts: tuple[int, ...]) -> tuple[bool, ...] | None:
    """The first of `_COMBINATIONS` whose counts are positive and add up to `remainder`; None if there is none."""
    for combination in _COMBINATIONS:
        if sum(compress(counts, combination)) == remainder and all(compress(counts, combination)):
            return combination
    return None


def _count(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= MAX_COUNT else None
    if isinstance(value, Decimal):
        whole = value.is_finite() and abs(value) <= MAX_COUNT and value == value.to_integral_value()
        return _count(int(value)) if whole else None
    return None


def _cost(usage: Mapping[str, Any]) -> str | None:
    cost = usage.get("cost")
    if isinstance(cost, dict):  # Perplexity
        cost = cost.get("total_cost")
    ticks = _count(usage.get("cost_in_usd_ticks"))
    if cost is None and ticks is not None:
        cost = _EXACT.multiply(Decimal(ticks), USD_PER_TICK)
    usd, byok = _usd(cost), usage.get("is_byok")
    if byok is True or (
        byok is None and usd == 0
    ):  # OpenRouter: `cost` is its fee, the provider charges the account's own key
        upstream = _upstream_cost(usage.get("cost_details"))
        if upstream is not None:
            usd = _usd(_EXACT.add(usd or Decimal(0), upstream))
        elif byok:
            usd = None
    return None if usd is None else f"{usd.quantize(USD_QUANTUM, context=_EXACT).normalize(_EXACT):f}"


def _upstream_cost(details: object) -> Decimal | None:
    """The cost that OpenRouter reports of the upstream provider: one amount or two."""
    if not isinstance(details, dict):
        return None
    whole = _usd(details.get("upstream_inference_cost"))
    parts = [_usd(details.get(f"upstream_inference_{part}_cost")) for part in ("prompt", "completions")]
    known = [part for part in parts if part is not None]
    return whole if whole or not known else sum(known, Decimal(0))


def _usd(usage: object) -> Decimal | None:
    usd = Decimal(usage) if type(usage) is int else usage
    return usd if isinstance(usd, Decimal) and usd.is_finite() and 0 <= usd < MAX_USD else None
