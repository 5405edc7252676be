"""Chooses the meter for a reply."""

from arbstr_asgi.metering.decoding import DecodingMeter
from arbstr_asgi.metering.events import EventMeter
from arbstr_asgi.metering.meter import BeforeDone, Meter
from arbstr_asgi.metering.plain import PlainMeter
from arbstr_asgi.metering.reading import ReplySummary
from arbstr_asgi.metering.sniffing import SniffingMeter


def open_meter(
    *,
    content_type: str | None,
    content_encoding: str | None,
    streaming: bool,
    strip: bool,
    before_done: BeforeDone | None = None,
) -> Meter:
    """The meter for a reply, by the reply's own content type.

    `streaming` says that the request asked for a stream, `strip` that what `include_usage` causes is ours to remove.
    `before_done` makes bytes to be put in front of `[DONE]`. A content-encoding passes untouched.
    """
    is_sse = (content_type or "").partition(";")[0].strip().lower() == "text/event-stream"
    encoding = (content_encoding or "identity").strip().lower()
    if encoding != "identity":
        inner: Meter = EventMeter(ReplySummary()) if is_sse else PlainMeter(ReplySummary())
        return DecodingMeter(inner, known=encoding in ("gzip", "x-gzip", "deflate"))
    if is_sse:
        return EventMeter(ReplySummary(), strip=strip, before_done=before_done)
    if streaming:
        return SniffingMeter(strip=strip, before_done=before_done)
    return PlainMeter(ReplySummary())
