"""Watches a reply go by: learns what it says, and removes what we caused.

A meter never raises, never delays what a client could use, and never changes a byte but for what it is there to
remove: events that hold nothing but usage, and top-level `"usage": null` members.
"""

from arbstr_asgi.metering.meter import BeforeDone, Meter
from arbstr_asgi.metering.opening import open_meter
from arbstr_asgi.metering.reading import ReplySummary

__all__ = ["BeforeDone", "Meter", "ReplySummary", "open_meter"]
