"""The headers of a reply, and what they say of its body."""

from arbstr_asgi import headers as h
from arbstr_asgi.account import CallRecord
from arbstr_asgi.holding import StrictHold
from arbstr_asgi.replies import RawHeaders, our_headers
from arbstr_asgi.upstream import ProviderReply

EVENTS = "text/event-stream"


class ResponseHead:
    """What the client is told in front of a provider's reply."""

    def __init__(
        self, reply: ProviderReply, passage: h.HeaderPolicy, account: CallRecord, *, changed: bool, says_cost: bool
    ) -> None:
        """`changed`: the body's bytes will not be the provider's. `says_cost` wants the cost where it is known."""
        self._account = account
        self._theirs = passage.response_headers(reply.headers, changed=changed)
        self._is_events = reply.headers.media_type == EVENTS
        if self._is_events:
            self._theirs.append((b"x-accel-buffering", b"no"))
        self.says_cost = says_cost and not account.streaming
        """Whether it should wait until the cost is known."""

    def headers(self) -> RawHeaders:
        """Theirs and ours, as things are now."""
        account = self._account
        headers = self._theirs + call_headers(account)
        if self.says_cost and account.outcome.complete:  # else the head went first
            headers.append((b"x-arbstr-latency-ms", str(account.elapsed_ms()).encode()))
            sats = account.cost_sats
            if sats is not None:
                headers.append((b"x-arbstr-cost-sats", f"{sats:f}".encode()))
        return headers

    @property
    def length(self) -> int | None:
        """How many bytes the client has been told of; None where it was not told, or is to wait for the end."""
        said = h.Headers(self._theirs).get(b"content-length")
        return int(said) if said is not None and said.isdecimal() and len(said) < 20 else None

    @property
    def is_all(self) -> bool:
        """Whether the client has all of the reply with its head."""
        return self._account.outcome.upstream_status == 204 or h.Headers(self._theirs).get(b"content-length") == "0"

    def holding(self) -> StrictHold:
        """What of the body makes the reply whole."""
        return StrictHold(has_length=b"content-length" in h.Headers(self._theirs), is_events=self._is_events)


def call_headers(account: CallRecord) -> RawHeaders:
    """The headers that say which call this was."""
    provider = account.provider.name if account.provider else None
    return our_headers(
        account.correlation_id, provider, streaming=account.streaming, failed=account.attempts.failures_by_provider
    )
