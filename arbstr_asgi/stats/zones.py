"""Hours and days in a time zone."""

from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo


def zone_of(name: str) -> tzinfo:
    """The zone of an IANA name. Raises ValueError where there is none."""
    if name == "UTC":
        return UTC  # also where the system has no zones
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # which, depends on what the name looks like as a file's
        raise ValueError("zone: not the name of a time zone") from None
