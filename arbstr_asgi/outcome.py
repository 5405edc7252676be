"""How a call ended, in the ledger's words."""

import msgspec

from arbstr_asgi.entry import Disconnect, EndReason, UsageSource
from arbstr_asgi.errors import ArbstrError, ServerError, UpstreamError, UpstreamTimeout
from arbstr_asgi.metering import ReplySummary


class CallOutcome(msgspec.Struct):
    """What happened to one call, as far as it is known.

    `status` is what the client got (None: nothing yet), `upstream_status` what the provider said. `left` means that
    the client hung up before the reply was complete, `drains` that the provider was read on all the same, `whole` that
    its reply was read to its end, `held` that the client has not been sent the end, which waits for its row, `stopped`
    that the server ended the call.
    """

    status: int | None = None
    upstream_status: int | None = None
    client_gone: bool = False
    drains: bool = False
    complete: bool = False
    held: bool = False
    stopped: bool = False
    error: ArbstrError | None = None

    def end_reason(self, reading: ReplySummary) -> EndReason:
        """Why the reply ended, by what happened and by what it said itself."""
        if self.client_gone:
            return "client_disconnected"
        said: EndReason = "completed" if reading.error is None else "upstream_error"
        if reading.seen_done and self.answered_well and not self.held:  # whatever came behind [DONE]
            return said
        if self.stopped or self.error is not None:
            return self._broken_off()
        if not self.answered_well:
            return "completed"  # an error of the provider's, and the client has all of it
        return said if reading.finished or reading.error is not None else "incomplete"

    def _broken_off(self) -> EndReason:
        if self.stopped:
            return "shutdown"
        if isinstance(self.error, UpstreamTimeout):
            return "timeout"
        if isinstance(self.error, UpstreamError):
            return "upstream_error"
        return "incomplete" if isinstance(self.error, ServerError) else "completed"  # our refusal is whole

    def disconnect(self, reading: ReplySummary) -> Disconnect | None:
        """What became of the provider's reply after the client had left; None: it did not leave early."""
        if not self.client_gone:
            return None
        if self.complete or reading.seen_done:
            return "drained"
        return "drain_cut" if self.drains else "cancelled"

    def maybe_billed(self, reading: ReplySummary) -> bool:
        """Whether the provider may charge for what it did not count: it had the request, and did not refuse it."""
        unsent = isinstance(self.error, UpstreamError) and not self.error.sent
        refused = self.upstream_status is not None and not self.answered_well
        return reading.usage is None and not unsent and not refused

    @property
    def answered_well(self) -> bool:
        """Whether the provider answered 2xx."""
        return self.upstream_status is not None and 200 <= self.upstream_status < 300

    @property
    def error_status(self) -> int | None:
        """The status that the client got, where it was an error."""
        return self.status if self.status is not None and self.status >= 300 else None

    def error_message(self, reading: ReplySummary) -> str | None:
        """What went wrong, in our words only."""
        if self.error is not None:
            return self.error.summary()
        if self.upstream_status is not None and not self.answered_well:
            return f"provider answered {self.upstream_status}" + (f": {reading.error}" if reading.error else "")
        return f"error in the reply: {reading.error}" if reading.error else None


def usage_source(reading: ReplySummary) -> UsageSource:
    """Where the token counts come from, and whether they are the last word."""
    if reading.usage is None:
        return "none"
    return "provider" if reading.usage_is_final else "provider_partial"
