"""The time that parameters name."""

from datetime import datetime

from arbstr_asgi.stats.fields import QueryParams, invalid
from arbstr_asgi.stats.moments import DEFAULT_RANGE, RANGES, end_of_second, parse_timestamp

SPAN = ("range", "since", "until")


def time_range(fields: QueryParams, now: datetime) -> tuple[datetime, datetime]:
    """From when on and before when; raises RequestError (400).

    `since` goes before `range`, which counts back from `until`. Without that it ends with the current second, so that
    what has just arrived is in it.
    """
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    length = RANGES[fields.choice("range", RANGES) or DEFAULT_RANGE]
    until, since = _moment(fields, "until"), _moment(fields, "since")
    end = end_of_second(now) if until is None else until
    if since is None:
        try:
            since = (now if until is None else until) - length
        except OverflowError:
            invalid("until", "until is too early for the range.")
    if since > end:
        invalid("since", "since must not be after until (which is now, if not given).")
    return since, end


def _moment(fields: QueryParams, name: str) -> datetime | None:
    value = fields.raw(name)
    if value is None:
        return None
    try:
        return parse_timestamp(value)
    except ValueError:
        invalid(name, f"{name} must be a moment as in 2026-11-22T10:00:00Z or 2026-11-22T10:00:00.5+01:00 (RFC 3339).")
