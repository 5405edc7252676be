"""A provider that answers as cheaply as Python can."""

import asyncio
import json
from typing import Any

CHUNKS = 100
TOKENS = 7, 100

ID = (
    '"id":"chatcmpl-BxT0lCq6VPTpUFGzYzxvwXdIEGxTb","object":"chat.completion.chunk","created":1752163200,'
    '"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_07871e2ad8"'
)
DELTA = '"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]'
USAGE = f'"usage":{{"prompt_tokens":{TOKENS[0]},"completion_tokens":{TOKENS[1]},"total_tokens":{sum(TOKENS)}}}'
USUAL = f'data: {{{ID},{DELTA},"usage":null}}\n\n'.encode()
EVENTS = [
    *[USUAL] * (CHUNKS - 2),
    f'data: {{{ID},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"usage":null}}\n\n'.encode(),
    f'data: {{{ID},"choices":[],{USAGE}}}\n\ndata: [DONE]\n\n'.encode(),
]
REPLY = f'{{{ID},"choices":[{{"index":0,"message":{{"content":"word"}},"finish_reason":"stop"}}],{USAGE}}}'.encode()


class ProviderConnection(asyncio.Protocol):
    """Answers chat completions as cheaply as Python can; a stream's chunks come `pace` seconds apart."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport  # uvloop's is no subclass of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete; nobody pipelines here."""
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if not length or len(body) < int(length):
            return
        self._buffer = b""
        asked = json.loads(body)
        if asked.get("stream"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self._next(0, float(asked.get("pace", 0.005)))  # a gateway may have dropped it
        else:
            start = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(REPLY)}\r\n\r\n"
            self._transport.write(start.encode() + REPLY)

    def _next(self, number: int, pace: float) -> None:
        if self._transport.is_closing():
            return
        event = EVENTS[number]
        last = number + 1 == len(EVENTS)
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event) + (b"0\r\n\r\n" if last else b""))
        if not last:
            asyncio.get_running_loop().call_later(pace, self._next, number + 1, pace)


async def be_provider(port: int, stop: asyncio.Event) -> None:
    """Serve until `stop`, and print the port, which is any where 0 is given."""
    server = await asyncio.get_running_loop().create_server(ProviderConnection, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    server.close()
