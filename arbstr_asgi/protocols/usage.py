"""What a provider says a completion used, in one shape."""

from collections.abc import Mapping
from decimal import Context, Decimal
from itertools import compress, product
from typing import Any

import msgspec

MAX_COUNT = 2**63 - 1
MAX_RAW_BYTES = 4096
MAX_USD = 10**12
FINEST_USD = Decimal(1).scaleb(-12)
_EXACT = Context(prec=60)  # whatever the host's own rounds to
USD_PER_TICK = Decimal(1).scaleb(-10)  # xAI: cost_in_usd_ticks counts ten-billionths of a dollar

# What providers and what bridges to them call a count, by what it is, in the usage object itself and in its details.
_SIDES = {
    "prompt_tokens": "given",
    "input_tokens": "given",
    "completion_tokens": "answered",
    "output_tokens": "answered",
}
_OF_INPUT = dict.fromkeys(
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
    "written",
)
_OF_OUTPUT = dict.fromkeys(("reasoning_tokens", "thinking_tokens"), "reasoning")
_COUNTS = {**_SIDES, "total_tokens": "total", **_OF_INPUT, **_OF_OUTPUT}
_INPUT_DETAILS = _OF_INPUT | {name: name for name in ("audio_tokens", "image_tokens", "video_tokens")}
_DETAILS = {
    f"{side}_{tokens}_details": _INPUT_DETAILS if side in ("prompt", "input") else _OF_OUTPUT
    for side in ("prompt", "input", "completion", "output")
    for tokens in ("tokens", "token")
}
_WRITTEN_PARTS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_ANTHROPICS = ("cache_read_input_tokens", "cache_creation_input_tokens")


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Token counts as the provider reported them. None means not said, which is not zero.

    `input_tokens` and `output_tokens` are the provider's `prompt_tokens` and `completion_tokens`; the input includes
    what was read from a cache or written to one, also where the provider leaves that out. `cached_tokens` and
    `cache_write_tokens` are shares of the input. `reasoning_tokens` are a share of the output, unless
    `reasoning_is_additive` (xAI), where they come on top of it. `unlisted_input_tokens` and `unlisted_output_tokens`
    come on top, too: only the total shows them. `is_contradictory`: its counts can't all be true. `cost_usd` is the
    provider's own figure as a decimal string. `raw_json` is the usage object as it came, at most 4 KiB, else None.
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
        """Whether every count that is said is zero, as in a placeholder."""
        return not (
            self.input_tokens
            or self.output_tokens
            or self.total_tokens
            or self.cached_tokens
            or self.cache_write_tokens
            or self.reasoning_tokens
        )


def read_usage(said: object, raw: bytes | None = None) -> Usage | None:
    """The Usage in a decoded `usage` object, None if it holds no valid count at all.

    Counts that are negative, fractional, boolean, text or beyond int64 are not counts. Where providers put one in
    several places, the largest is taken: a 0 beside a real count is a default.
    """
    if not isinstance(said, dict) or not said:
        return None
    found: dict[str, int] = {}
    _gather(said, _COUNTS, found)
    if not found:
        return None
    given, answered, media = found.get("given"), found.get("answered"), 0
    extra: dict[str, Any] = {}
    if given is not None and answered is not None:
        if "total" not in found and "prompt_tokens" not in said and any(name in said for name in _ANTHROPICS):
            given = _count(given + found.get("cached", 0) + found.get("written", 0))  # Anthropic's own shape
        else:
            media = sum(found.get(name, 0) for name in ("audio_tokens", "image_tokens", "video_tokens"))
            given, extra = _reconcile(found, given, answered, media)
    return Usage(
        input_tokens=given,
        output_tokens=answered,
        total_tokens=found.get("total"),
        cached_tokens=found.get("cached"),
        cache_write_tokens=found.get("written"),
        reasoning_tokens=found.get("reasoning"),
        cost_usd=_cost(said),
        raw_json=None if raw is None or len(raw) > MAX_RAW_BYTES else raw.decode("utf-8", "replace"),
        **extra,
    )


def _gather(place: Mapping[str, Any], names: Mapping[str, str], found: dict[str, int]) -> None:
    """Find the largest count of each kind in a usage object and, one level down, in its details."""
    for name, value in place.items():
        kind = names.get(name)
        if kind is not None:
            count = _count(value)
            if count is not None and count >= found.get(kind, 0):
                found[kind] = count
        elif isinstance(value, dict):
            if name in _DETAILS:
                _gather(value, _DETAILS[name], found)
            elif name == "cache_creation":  # Anthropic's written tokens by how long they are kept
                parts = [_count(value.get(part)) or 0 for part in _WRITTEN_PARTS]
                found["written"] = max(_count(sum(parts)) or 0, found.get("written", 0))


def _reconcile(found: Mapping[str, int], given: int, answered: int, media: int) -> tuple[int, dict[str, Any]]:
    """The whole input, and what the total says besides; `media` are the tokens of the input that are no text."""
    cached, written, reasoning = found.get("cached", 0), found.get("written", 0), found.get("reasoning", 0)
    rest = (found.get("total") or given + answered) - given - answered  # a total of 0 is a default
    extra: dict[str, Any] = {}
    additive, unlisted_input = 0, 0
    if rest > 0:
        explained = _explain(rest, (reasoning, cached + written, cached, written, media))
        if explained is None and given < cached + written <= rest:  # they can't be a share of the input
            explained = False, True, False, False, False
        if explained is not None:
            additive = reasoning if explained[0] else 0
            excluded = sum(compress((cached + written, cached, written), explained[1:4]))
            unlisted_input = media if explained[4] else 0
            given += excluded
            rest -= additive + excluded + unlisted_input
            extra = {"reasoning_is_additive": explained[0], "unlisted_input_tokens": unlisted_input}
        extra["unlisted_output_tokens"] = rest
    extra["is_contradictory"] = (
        rest < 0
        or (rest > 0 and not given)  # whose they are can't be told
        or cached + written > given + unlisted_input
        or reasoning > answered + additive + max(rest, 0)
    )
    return given, extra


# Of reasoning, both cache counts, either of them, and media: what may stand outside of input and output, the likeliest
# first.
_CHOICES = sorted(
    (taken for taken in product((False, True), repeat=5) if sum(taken[1:4]) < 2),
    key=lambda taken: (sum(taken), [not one for one in taken]),
)


def _explain(rest: int, counts: tuple[int, ...]) -> tuple[bool, ...] | None:
    """Which of these counts make up `rest`: reasoning, cache reads and writes, either of the two, media. The first
    that do; None: none do."""
    for taken in _CHOICES:
        if sum(compress(counts, taken)) == rest and all(compress(counts, taken)):
            return taken
    return None


def _count(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= MAX_COUNT else None
    if isinstance(value, Decimal):
        whole = value.is_finite() and abs(value) <= MAX_COUNT and value == value.to_integral_value()
        return _count(int(value)) if whole else None
    return None


def _cost(said: Mapping[str, Any]) -> str | None:
    cost = said.get("cost")
    if isinstance(cost, dict):  # Perplexity
        cost = cost.get("total_cost")
    ticks = _count(said.get("cost_in_usd_ticks"))
    if cost is None and ticks is not None:
        cost = _EXACT.multiply(Decimal(ticks), USD_PER_TICK)
    usd, byok = _usd(cost), said.get("is_byok")
    if byok is True or (byok is None and usd == 0):  # OpenRouter's fee beside what the account's own key is charged
        upstream = _upstream(said.get("cost_details"))
        if upstream is not None:
            usd = _usd(_EXACT.add(usd or Decimal(0), upstream))
        elif byok:
            usd = None
    return None if usd is None else f"{usd.quantize(FINEST_USD, context=_EXACT).normalize(_EXACT):f}"


def _upstream(details: object) -> Decimal | None:
    """What another provider has charged, by OpenRouter's word: in one figure or two."""
    if not isinstance(details, dict):
        return None
    whole = _usd(details.get("upstream_inference_cost"))
    parts = [_usd(details.get(f"upstream_inference_{part}_cost")) for part in ("prompt", "completions")]
    known = [part for part in parts if part is not None]
    return whole if whole or not known else sum(known, Decimal(0))


def _usd(said: object) -> Decimal | None:
    usd = Decimal(said) if type(said) is int else said
    return usd if isinstance(usd, Decimal) and usd.is_finite() and 0 <= usd < MAX_USD else None
