"""What a call cost."""

from decimal import Decimal
from typing import Any

import pytest

from arbstr_asgi import Provider
from arbstr_asgi.protocols.usage import Usage
from arbstr_asgi.providers.pricing import cost


def rates(**facts: Any) -> Provider:
    """A provider that charges."""
    return Provider(name="a", url="http://h", **{"input_rate": 10_000, "output_rate": 30_000, "base_fee": 1, **facts})


@pytest.mark.parametrize(
    ("usage", "facts", "expected"),
    [
        ({"input_tokens": 100, "output_tokens": 50}, {}, "3.5"),
        ({"input_tokens": 0, "output_tokens": 0}, {}, "1"),
        ({"input_tokens": 1, "output_tokens": 0}, {"base_fee": 0}, "0.01"),
        ({"input_tokens": 100, "output_tokens": 50, "cached_tokens": 40}, {}, "3.5"),
        ({"input_tokens": 100, "output_tokens": 50, "cached_tokens": 40}, {"cached_input_rate": 1000}, "3.14"),
        ({"input_tokens": 100, "output_tokens": 50, "cached_tokens": 400}, {"cached_input_rate": 1000}, "2.6"),
        ({"input_tokens": 100, "output_tokens": 50, "reasoning_tokens": 20}, {"reasoning_rate": 60_000}, "4.1"),
        ({"input_tokens": 100, "output_tokens": 50, "reasoning_tokens": 20, "reasoning_is_additive": True}, {}, "4.1"),
        (
            {"input_tokens": 100, "output_tokens": 50, "reasoning_tokens": 20, "reasoning_is_additive": True},
            {"reasoning_rate": 0},
            "3.5",
        ),
        ({"input_tokens": 20, "output_tokens": 198, "unlisted_output_tokens": 405}, {}, "19.29"),
        ({"input_tokens": 9, "output_tokens": 1, "unlisted_input_tokens": 91}, {}, "2.03"),
        ({"input_tokens": 3, "output_tokens": 0}, {"input_rate": Decimal("0.1"), "base_fee": 0}, "0.0000003"),
        ({"input_tokens": 100, "output_tokens": 50}, {"input_rate": 0, "output_rate": 0, "base_fee": 0}, "0"),
    ],
)
def test_cost(usage: dict[str, Any], facts: dict[str, Any], expected: str) -> None:
    """Rates are per million tokens, shares replace the rate, the fee is per call; exact."""
    assert cost(Usage(**usage), rates(**facts)) == Decimal(expected)


@pytest.mark.parametrize(
    ("usage", "facts"),
    [
        (None, {}),
        (Usage(), {}),
        (Usage(input_tokens=1), {}),
        (Usage(output_tokens=1), {}),
        (Usage(input_tokens=1, output_tokens=1, is_contradictory=True), {}),
        (Usage(input_tokens=1, output_tokens=1), {"input_rate": None}),
        (Usage(input_tokens=1, output_tokens=1), {"output_rate": None}),
    ],
)
def test_unknown(usage: Usage | None, facts: dict[str, Any]) -> None:
    """What isn't known has no cost, rather than none to pay."""
    assert cost(usage, rates(**facts)) is None
