"""Which headers pass: allow-lists in both directions."""

from arbstr_asgi import Provider
from arbstr_asgi.providers.headers import HeaderPolicy, Headers, RawHeaders

PLAIN = Provider(name="a", url="http://h")
KEY = "our-key"


def to_provider(client: RawHeaders, provider: Provider, call: str, key: str | None) -> list[tuple[bytes, bytes]]:
    """What the provider gets of a client's headers."""
    return HeaderPolicy(provider).request_headers(Headers(client), call, key)


def to_client(upstream: RawHeaders, provider: Provider, *, changed: bool) -> list[tuple[bytes, bytes]]:
    """What the client gets of a provider's headers."""
    return HeaderPolicy(provider).response_headers(Headers(upstream), changed=changed)


def names(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    """The names of headers, in order."""
    return [name for name, _ in headers]


CLIENT = [
    (b"Content-Type", b"application/json"),
    (b"accept", b"*/*"),
    (b"user-agent", b"OpenAI/Python"),
    (b"x-stainless-lang", b"python"),
    (b"traceparent", b"00-1"),
    (b"tracestate", b"a=b"),
    (b"authorization", b"Bearer host-session"),
    (b"cookie", b"session=secret"),
    (b"host", b"app.example"),
    (b"idempotency-key", b"clients-own"),
    (b"openai-organization", b"org"),
    (b"openai-project", b"proj"),
    (b"x-forwarded-for", b"10.0.0.1"),
    (b"x-custom", b"1"),
    (b"accept-encoding", b"gzip"),
    (b"connection", b"keep-alive"),
]


def test_to_provider() -> None:
    """The provider gets the listed headers and ours, and nothing that says who the host's user is."""
    sent = dict(to_provider(CLIENT, PLAIN, "id-1", KEY))
    assert sent == {
        b"content-type": b"application/json",
        b"accept": b"*/*",
        b"user-agent": b"OpenAI/Python",
        b"x-stainless-lang": b"python",
        b"traceparent": b"00-1",
        b"tracestate": b"a=b",
        b"idempotency-key": b"id-1",
        b"accept-encoding": b"identity",
        b"authorization": b"Bearer our-key",
    }


def test_forwarding_by_choice() -> None:
    """Extra headers and the client's authorization pass only where the provider's configuration says so."""
    forwarding = Provider(
        name="a",
        url="http://h",
        forward_headers=("X-Custom",),
        forward_authorization=True,
        headers={"X-Ours": "2", "user-agent": "ours"},
    )
    sent = to_provider(CLIENT, forwarding, "id-1", KEY)
    assert dict(sent)[b"authorization"] == b"Bearer host-session"
    assert {b"x-custom", b"openai-organization", b"openai-project", b"x-ours"} <= set(names(sent))
    assert names(sent).count(b"user-agent") == 1
    assert dict(sent)[b"user-agent"] == b"ours"
    without = [(name, value) for name, value in CLIENT if name != b"authorization"]
    assert dict(to_provider(without, forwarding, "id-1", KEY))[b"authorization"] == b"Bearer our-key"


def test_header_of_the_key() -> None:
    """A key goes where the provider wants it, unless the configuration has put something there."""
    azure = Provider(name="a", url="http://h", auth_header="API-Key")
    sent = dict(to_provider(CLIENT, azure, "id-1", KEY))
    assert sent[b"api-key"] == b"our-key"
    assert b"authorization" not in sent
    assert b"api-key" not in dict(to_provider(CLIENT, azure, "id-1", None))
    assert dict(to_provider([*CLIENT, (b"api-key", b"theirs")], azure, "id-1", KEY))[b"api-key"] == b"our-key"
    by_hand = Provider(name="a", url="http://h", auth_header="api-key", headers={"Api-Key": "set"})
    assert [value for name, value in to_provider(CLIENT, by_hand, "id-1", KEY) if name == b"api-key"] == [b"set"]


UPSTREAM = [
    (b"Content-Type", b"text/event-stream"),
    (b"Content-Length", b"10"),
    (b"ETag", b"x"),
    (b"X-RateLimit-Remaining-Requests", b"5"),
    (b"x-request-id", b"req_1"),
    (b"retry-after", b"1"),
    (b"Set-Cookie", b"a=b"),
    (b"location", b"http://evil"),
    (b"x-accel-redirect", b"/etc/passwd"),
    (b"strict-transport-security", b"max-age=0"),
    (b"openai-version", b"bad\x01value"),
    (b"x-extra", b" spaced "),
]


def test_to_client() -> None:
    """The client gets the listed headers, and none that could steer the host or make its server refuse the reply."""
    assert names(to_client(UPSTREAM, PLAIN, changed=False)) == [
        b"content-type",
        b"content-length",
        b"x-ratelimit-remaining-requests",
        b"x-request-id",
        b"retry-after",
    ]


def test_to_client_changed() -> None:
    """What describes bytes goes when the bytes change, even where it was asked for."""
    returning = Provider(name="a", url="http://h", return_headers=("ETag", "x-extra"))
    assert {b"etag", b"content-length"} <= set(names(to_client(UPSTREAM, returning, changed=False)))
    changed = to_client(UPSTREAM, returning, changed=True)
    assert not {b"etag", b"content-length"} & set(names(changed))
    assert (b"x-extra", b"spaced") in changed
