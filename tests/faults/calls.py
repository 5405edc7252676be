"""One call of the load: what is asked, what the provider does, what the client sees, and which row is right."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.support.fake_provider import event
from tests.support.raw_http_client import Wire

now = time.monotonic
_numbers = count(1)

# How a reply may end, and the end_reason of its row; `open` never ends by itself.
ENDS = {
    "whole": "completed",
    "reset": "upstream_error",
    "refuse": "upstream_error",
    "garble": "upstream_error",
    "stall": "timeout",
    "cut": "incomplete",
    "open": "shutdown",
}


@dataclass(eq=False)
class Call:
    """Moments are of one clock, since provider and clients share a process. No other call has its token counts."""

    streaming: bool = True
    ending: str = "whole"
    counts: bool = False  # a running usage in every event
    events: int = 6
    pace: float = 0.02  # seconds between them
    patience: float = 0.0  # of the server with a silent provider
    number: int = field(default_factory=lambda: next(_numbers))
    began: float = 0.0
    arrived: float = 0.0  # at the provider
    sent: list[float] = field(default_factory=list)  # each event, the end, or the whole plain reply
    gave_up: float = 0.0  # when the provider began to fail
    seen: list[float] = field(default_factory=list)  # the same at the client
    ended: float = 0.0
    wire: Wire | None = None
    failure: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """The request; every other client asks for the usage itself."""
        options = {"stream_options": {"include_usage": True}} if self.streaming and self.number % 2 else {}
        return {"model": f"call:{self.number}", "stream": self.streaming, "messages": [], **options}

    def usage(self, output: int | None = None) -> dict[str, int]:
        """The provider's count."""
        prompt, completion = 1000 + self.number, self.number * 7 % 9973 + 11 if output is None else output
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def reply(self) -> bytes:
        """The plain reply."""
        choices = [{"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}]
        return json.dumps({**self._common("chat.completion"), "choices": choices, "usage": self.usage()}).encode()

    def word(self, number: int, *, asked: bool) -> bytes:
        """An event, counted from 1."""
        usage = {"usage": self.usage(number)} if self.counts else {"usage": None} if asked else {}
        choices = [{"index": 0, "delta": {"role": "assistant", "content": f"{number} "}, "finish_reason": None}]
        return event({**self._common("chat.completion.chunk"), "choices": choices, **usage})

    def last(self, *, asked: bool) -> bytes:
        """The events at the end."""
        common = self._common("chat.completion.chunk")
        stop = event({**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = event({**common, "choices": [], "usage": self.usage()}) if asked else b""
        return stop + usage + b"data: [DONE]\n\n"

    def _common(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.number}", "object": kind, "created": 1_700_000_000, "model": "m"}

    async def make(self, url: str) -> None:
        """Ask, and read to the end, whichever it is."""
        self.began = now()
        try:
            self.wire = await Wire.open(url, self.asked)
            while self.wire.clean is None:
                await self.wire.until(len(self.wire.body) + 1)
                self._look(self.wire)
        except OSError as error:
            self.failure = type(error).__name__
        except AssertionError:
            self.failure = "nothing came any more"
        self.ended = now()

    def _look(self, wire: Wire) -> None:
        if self.streaming:
            parts = wire.body.count(b'"role"') + wire.body.count(b"data: [DONE]\n\n")
        else:
            parts = int(wire.clean is True)
        self.seen += [now()] * (parts - len(self.seen))

    @property
    def id(self) -> str:
        """The correlation id, if the client has got that far."""
        return "" if self.wire is None else self.wire.headers.get("x-arbstr-request-id", "")

    @property
    def status(self) -> int:
        """The status that the client saw; 0: none."""
        return 0 if self.wire is None else self.wire.status

    @property
    def whole(self) -> bool:
        """Whether the client has the answer: `[DONE]`, or all of the JSON."""
        return self.status == 200 and self.ending == "whole" and len(self.seen) == self.events_in_all

    @property
    def events_in_all(self) -> int:
        """How many parts a whole answer has."""
        return self.events + 1 if self.streaming else 1

    @property
    def told(self) -> bool:
        """Whether the client saw a status and an end, however the call went."""
        return bool(self.id) and bool(self.ended)

    @property
    def delay(self) -> float:
        """The most that a part came later than the provider's own time explains, in seconds."""
        pairs = list(zip(self.sent, self.seen, strict=False))
        if self.gave_up and self.ended:
            pairs.append((self.gave_up + self.patience, self.ended))
        return max(((seen - self.began) - (sent - self.arrived) for sent, seen in pairs), default=0.0)

    def right(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has this call's end and tokens: all of them, what was counted until the cut, or NULL."""
        tokens = row["input_tokens"], row["output_tokens"]
        if self.whole:
            usage = self.usage()
            return row["end_reason"] == "completed" and tokens == (usage["prompt_tokens"], usage["completion_tokens"])
        if row["end_reason"] != ENDS[self.ending]:
            return False
        if not self.counts or not self.sent:
            return tokens == (None, None)
        return tokens[0] == 1000 + self.number and len(self.seen) <= tokens[1] <= len(self.sent)


CALLS: dict[int, Call] = {}  # for the provider, which knows a call by its number


def register(call: Call) -> Call:
    """Let the provider know the call."""
    CALLS[call.number] = call
    return call


def slowest(calls: Iterable[Call]) -> float:
    """The worst delay of these calls, in milliseconds."""
    return max((call.delay for call in calls), default=0.0) * 1000


async def until_all(calls: Iterable[Call], parts: int, seconds: float) -> None:
    """Return once each client has seen so many parts."""
    async with asyncio.timeout(seconds):
        for call in calls:
            while len(call.seen) < parts and not call.ended:  # noqa: ASYNC110 - it would take many places to tell
                await asyncio.sleep(0.02)
