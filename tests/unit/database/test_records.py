"""A call's only attempt, told by the row of the call."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.database import values
from arbstr_asgi.database.records import AttemptEntry, LedgerEntry, derived_attempt

SENT = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
ATTEMPT = AttemptEntry(
    number=1,
    provider="p",
    timestamp=SENT,
    model="big/m",
    status=200,
    latency_ms=9,
    input_tokens=7,
    output_tokens=2,
    cost_sats=Decimal("1.5"),
    revision=1,
)
ENTRY = LedgerEntry(
    correlation_id="call",
    timestamp=SENT - timedelta(milliseconds=3),
    model="m",
    streaming=True,
    revision=1,
    provider="p",
    input_tokens=7,
    output_tokens=2,
    cost_sats=Decimal("1.5"),
    latency_ms=12,
    success=True,
    usage_source="provider",
    end_reason="completed",
    attempts=1,
    provider_model="big/m",
    sent_ms=3,
    tries=(ATTEMPT,),
)
UNCOUNTED: dict[str, Any] = {"input_tokens": None, "output_tokens": None, "cost_sats": None}
OTHER: dict[str, Any] = {
    "number": 2,
    "provider": "q",
    "timestamp": SENT + timedelta(milliseconds=1),
    "model": "m",
    "status": 201,
    "latency_ms": 8,
    "input_tokens": None,
    "output_tokens": 0,
    "cost_sats": Decimal(0),
    "maybe_billed": True,
    "error_message": "odd",
    "revision": 0,
}
replace = msgspec.structs.replace
small = st.one_of(st.none(), st.integers(-3, 5), st.integers(2**31 - 2, 2**31 + 2), st.integers())
moments = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(),
    st.datetimes(timezones=st.just(timezone(timedelta(hours=3)))),
    st.just(datetime.max.replace(tzinfo=UTC)),
)


def test_a_row_tells_its_only_attempt() -> None:
    """It is given back whole, and has no row of its own."""
    assert derived_attempt(ENTRY) == ATTEMPT
    made = values.record(ENTRY)
    assert made.attempts == ()
    assert values.derived(made.row) == (values.normalise_attempt("call", ATTEMPT),)


@pytest.mark.parametrize("name", OTHER)
def test_an_attempt_that_says_more_is_a_row(name: str) -> None:
    """Where a single column differs from what the call's row tells, the attempt is written, and nothing derived."""
    odd = replace(ATTEMPT, **{name: OTHER[name]})
    made = values.record(replace(ENTRY, tries=(odd,)))
    assert made.attempts == (values.normalise_attempt("call", odd),)
    assert values.derived(made.row) == ()


def test_a_corrected_attempt_is_a_row() -> None:
    """So it replaces the row that an earlier state may have written, and none of it is hidden by that."""
    corrected = replace(ENTRY, revision=2, tries=(replace(ATTEMPT, revision=2),))
    assert len(values.record(corrected).attempts) == 1


def test_every_attempt_of_several_is_a_row() -> None:
    """One row can't tell two, nor none."""
    second = replace(ATTEMPT, number=2)
    for tries in ((ATTEMPT, second), ()):
        made = values.record(replace(ENTRY, tries=tries))
        assert len(made.attempts) == len(tries)
        assert values.derived(made.row) == ()


def test_a_salvaged_row_tells_no_attempt() -> None:
    """Of an entry that could not be normalised, nobody knows whether its attempt said more."""
    assert values.derived(values.salvage(ENTRY, SENT)) == ()


@pytest.mark.parametrize(
    ("call", "attempt"),
    [
        ({"end_reason": "in_flight", "revision": 0, "usage_source": "none", **UNCOUNTED}, {"revision": 0, **UNCOUNTED}),
        ({"usage_source": "none", **UNCOUNTED}, {"maybe_billed": True, **UNCOUNTED}),
        ({"usage_source": "estimated", "revision": 2}, {"maybe_billed": True, **UNCOUNTED}),
        ({"error_status": 404, "usage_source": "none", **UNCOUNTED}, {"status": 404, **UNCOUNTED}),
        ({"end_reason": "timeout", "error_message": "late"}, {"error_message": "late"}),
    ],
)
def test_what_usual_calls_tell(call: dict[str, Any], attempt: dict[str, Any]) -> None:
    """In flight, without usage, with an estimate, refused by the provider, broken off: all is in the row."""
    tries = (replace(ATTEMPT, **attempt),)
    made = values.record(replace(ENTRY, **call, tries=tries))
    assert made.attempts == ()
    assert values.derived(made.row) == (values.normalise_attempt("call", tries[0]),)


@given(
    call=st.fixed_dictionaries(
        {
            "timestamp": moments,
            "provider": st.sampled_from(["p", None, "x" * 300]),
            "model": st.sampled_from(["m", "\0", "x" * 300]),
            "latency_ms": small,
            "error_status": st.one_of(st.none(), st.integers(99, 101), st.booleans(), st.integers()),
            "error_message": st.sampled_from([None, "e", "x" * 600]),
            "input_tokens": small,
            "cost_sats": st.one_of(st.none(), st.decimals()),
            "usage_source": st.sampled_from(["provider", "none", "estimated"]),
            "end_reason": st.sampled_from(["in_flight", "completed", "abandoned"]),
            "revision": st.integers(0, 2),
            "provider_model": st.sampled_from([None, "big", "x" * 300]),
            "sent_ms": small,
        }
    ),
    changed=st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in OTHER.items()}),
)
def test_nothing_of_an_attempt_is_lost(call: dict[str, Any], changed: dict[str, Any]) -> None:
    """Whatever a call and its attempt are like, the stored rows give back the attempt as it would have been stored."""
    entry = replace(ENTRY, **call)
    attempt = replace(derived_attempt(entry) or ATTEMPT, **changed)
    made = values.record(replace(entry, tries=(attempt,)))
    assert (*made.attempts, *values.derived(made.row)) == (values.normalise_attempt("call", attempt),)
