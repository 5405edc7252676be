"""Usage objects: counts under the names of all providers, and their reconciliation with the total."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.protocols.usage import MAX_COUNT, Usage, read_usage

READ, WRITTEN = "cache_read_input_tokens", "cache_creation_input_tokens"


def usage(input_tokens: int, output_tokens: int, total: int | None = None, **more: Any) -> Usage:
    """What is read of a usage object with OpenAI's names."""
    fields = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total, **more}
    parsed = read_usage(fields)
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    "where",
    [
        {"prompt_tokens_details": {"cached_tokens": 900}},
        {"input_tokens_details": {"cached_tokens": 900}},
        {"input_token_details": {"cached_tokens": 900}},
        {"cached_tokens": 900},
        {"prompt_cache_hit_tokens": 900, "prompt_cache_miss_tokens": 100},
        {READ: 900},
        {"prompt_tokens_details": {READ: 900}},
        {"prompt_tokens_details": {"cached_tokens": 0}, READ: 900},
        {"prompt_tokens_details": {"cached_tokens": 900}, "cached_tokens": 0},
        {"prompt_tokens_details": None, "input_tokens_details": {"cached_tokens": 900}, "cached_tokens": "9"},
    ],
)
def test_cached(where: dict[str, Any]) -> None:
    """Cached tokens are found by all their names in all their places, and a 0 beside them is a default."""
    assert usage(1000, 20, 1020, **where).cached_tokens == 900


@pytest.mark.parametrize(
    "where",
    [
        {WRITTEN: 800},
        {"prompt_tokens_details": {"cache_write_tokens": 800}},
        {"prompt_tokens_details": {"cache_creation_tokens": 800}},
        {"prompt_tokens_details": {"cached_creation_tokens": 800}},
        {"input_tokens_details": {WRITTEN: 800}, WRITTEN: 0},
        {"cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 500}},
        {"cache_creation": {"ephemeral_5m_input_tokens": 800}, WRITTEN: 800},
    ],
)
def test_written(where: dict[str, Any]) -> None:
    """Tokens written to a cache are found by all their names in all their places."""
    assert usage(1000, 20, 1020, **where).cache_write_tokens == 800


@pytest.mark.parametrize(
    "where",
    [
        {"completion_tokens_details": {"reasoning_tokens": 7}},
        {"output_tokens_details": {"reasoning_tokens": 7}},
        {"output_tokens_details": {"thinking_tokens": 7}},
        {"reasoning_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 0}},
    ],
)
def test_reasoning(where: dict[str, Any]) -> None:
    """Reasoning is found by its names in its places."""
    assert usage(1000, 20, 1020, **where).reasoning_tokens == 7


def test_sides() -> None:
    """The counts themselves come under either name, or under both with a default."""
    for more in ({}, {"prompt_tokens": 0, "completion_tokens": 0}):
        parsed = read_usage({"input_tokens": 19, "output_tokens": 7, **more})
        assert parsed is not None
        assert (parsed.input_tokens, parsed.output_tokens) == (19, 7)


@pytest.mark.parametrize(
    ("parsed", "input_tokens", "unlisted_input", "output", "additive"),
    [
        (usage(20, 198, 623), 20, 0, 603, False),
        (usage(20, 198, 218), 20, 0, 198, False),
        (usage(20, 198, 0), 20, 0, 198, False),
        (usage(468, 82, 870, reasoning_tokens=320), 468, 0, 82, True),
        (usage(4, 20, 2028, **{READ: 1000, WRITTEN: 1004}), 2008, 0, 20, False),
        (usage(4, 20, 1024, **{READ: 1000}), 1004, 0, 20, False),
        (usage(1004, 20, 2028, **{READ: 1000, WRITTEN: 1004}), 2008, 0, 20, False),
        (usage(1008, 20, 2028, **{READ: 1000, WRITTEN: 1004}), 2008, 0, 20, False),
        (usage(4, 20, 2035, reasoning_tokens=7, **{READ: 1000, WRITTEN: 1004}), 2008, 0, 20, True),
        (usage(4, 20, 2228, **{READ: 1000, WRITTEN: 1004}), 2008, 0, 220, False),
        (usage(9, 248, 632, prompt_tokens_details={"audio_tokens": 375}), 9, 375, 248, False),
    ],
)
def test_the_total_is_a_witness(
    parsed: Usage, input_tokens: int, unlisted_input: int, output: int, additive: bool
) -> None:
    """What the total has beyond input and output is reasoning, caches, media, or else output."""
    assert not parsed.is_contradictory
    assert (parsed.input_tokens, parsed.unlisted_input_tokens) == (input_tokens, unlisted_input)
    assert (parsed.output_tokens or 0) + parsed.unlisted_output_tokens == output
    assert parsed.reasoning_is_additive is additive


def test_anthropics_own_shape() -> None:
    """Anthropic's names without a total leave the caches out of the input."""
    parsed = read_usage({"input_tokens": 4, "output_tokens": 20, READ: 1000, WRITTEN: 1004})
    assert parsed is not None
    assert parsed.input_tokens == 2008


def test_sums_beyond_int64() -> None:
    """A sum beyond 64 bits is no count."""
    parsed = read_usage({"input_tokens": MAX_COUNT, "output_tokens": 1, READ: 1})
    assert parsed is not None
    assert parsed.input_tokens is None
    parts = {"ephemeral_5m_input_tokens": MAX_COUNT, "ephemeral_1h_input_tokens": 1}
    assert usage(1, 1, 2, cache_creation=parts).cache_write_tokens == 0


@pytest.mark.parametrize(
    "parsed",
    [
        usage(4, 20, 24, **{READ: 1000}),
        usage(4, 20, **{READ: 1000}),
        usage(4, 20, 23),
        usage(0, 0, 26),
        usage(0, 7, 26),
        usage(10, 7, 17, reasoning_tokens=8),
    ],
)
def test_contradictory(parsed: Usage) -> None:
    """Counts that can not all be true are marked as contradictory."""
    assert parsed.is_contradictory


counts = st.none() | st.integers(0, 50) | st.sampled_from([-1, 2**63, True, "7", Decimal("1.5")])
places = st.dictionaries(st.sampled_from(["cached_tokens", READ, WRITTEN, "reasoning_tokens", "audio_tokens"]), counts)


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "input_tokens", "completion_tokens", "total_tokens", READ, WRITTEN, "x"]),
        counts,
    ),
    st.dictionaries(st.sampled_from(["prompt_tokens_details", "output_tokens_details", "cache_creation"]), places),
)
def test_counts_add_up(fields: dict[str, Any], details: dict[str, Any]) -> None:
    """Counts that are not contradictory add up to the total, and no part is larger than the whole."""
    parsed = read_usage({**fields, **details})
    if parsed is None or parsed.input_tokens is None or parsed.output_tokens is None or parsed.is_contradictory:
        return
    reasoning = parsed.reasoning_tokens or 0
    whole = parsed.input_tokens + parsed.unlisted_input_tokens
    output_tokens = (
        parsed.output_tokens + parsed.unlisted_output_tokens + (reasoning if parsed.reasoning_is_additive else 0)
    )
    assert not parsed.total_tokens or whole + output_tokens == parsed.total_tokens
    assert (parsed.cached_tokens or 0) + (parsed.cache_write_tokens or 0) <= whole
    assert reasoning <= output_tokens
    assert 0 <= parsed.output_tokens <= MAX_COUNT


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": "0.0360795"}}, "0.0360795"),
        ({"cost": "0.001", "is_byok": True, "cost_details": {"upstream_inference_cost": "0.02"}}, "0.021"),
        ({"cost": "0.005", "is_byok": False, "cost_details": {"upstream_inference_cost": "0.005"}}, "0.005"),
        ({"cost": 0, "is_byok": False, "cost_details": {"upstream_inference_cost": "0.005"}}, "0"),
        ({"cost": 0, "cost_details": {"upstream_inference_cost": "0.005"}}, "0.005"),
        ({"cost": 0, "cost_details": {"upstream_inference_cost": None}}, "0"),
        (
            {
                "cost": 0,
                "is_byok": True,
                "cost_details": {
                    "upstream_inference_cost": None,
                    "upstream_inference_prompt_cost": "0.5",
                    "upstream_inference_completions_cost": "0.25",
                },
            },
            "0.75",
        ),
        ({"cost": "0.001", "is_byok": True}, None),
        ({"cost": "0.001", "is_byok": True, "cost_details": []}, None),
    ],
)
def test_own_key_at_openrouter(fields: dict[str, Any], usd: str | None) -> None:
    """With the account's own key, the spend is the fee and what the other provider charges."""

    def decoded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: decoded(inner) for name, inner in value.items()}
        return Decimal(value) if isinstance(value, str) else value

    assert usage(1, 1, 2, **decoded(fields)).cost_usd == usd
