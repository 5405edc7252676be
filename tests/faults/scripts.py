"""What the provider does with a call of the load."""

import asyncio

from tests.faults.calls import CALLS, Call, now
from tests.support.fake_provider import JSON_TYPE, SSE_TYPE, Line, script


@script
async def call(line: Line) -> None:
    """What the call of this number says."""
    it = CALLS[int(line.argument)]
    it.arrived = now()
    if it.ending == "refuse":
        it.gave_up = now()
        line.reset()
    elif it.streaming:
        await _stream(line, it)
    else:
        await _plain(line, it)


async def _stream(line: Line, it: Call) -> None:
    await line.head(SSE_TYPE, length=None if it.ending == "cut" else -1)
    for number in range(1, it.events + 1):
        it.sent.append(now())
        word = it.word(number, asked=line.usage)
        await (line.send(word) if it.ending == "cut" else line.chunk(word))
        await asyncio.sleep(it.pace)
        if line.closed.is_set():
            return
    if it.ending == "whole":
        it.sent.append(now())
        await line.chunk(it.last(asked=line.usage))
        await line.send(b"0\r\n\r\n")
    else:
        await _fail(line, it)


async def _plain(line: Line, it: Call) -> None:
    await asyncio.sleep(it.pace)
    body = it.reply()
    if it.ending == "whole":
        it.sent.append(now())
        await line.whole(body, JSON_TYPE)
        return
    await line.head(JSON_TYPE, length=None if it.ending == "cut" else -1)
    await (line.send(body[:50]) if it.ending == "cut" else line.chunk(body[:50]))
    await _fail(line, it)


async def _fail(line: Line, it: Call) -> None:
    await line.delivered()
    it.gave_up = now()
    match it.ending:
        case "reset":
            line.reset()
        case "garble":
            await line.send(b"zz\r\nrubbish\r\n")
            await line.closed.wait()
        case "stall" | "open":
            await line.closed.wait()
