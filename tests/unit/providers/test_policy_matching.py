"""Which policy a request falls under."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi import Policies
from arbstr_asgi.config.policies import Rule
from arbstr_asgi.errors import RequestError
from arbstr_asgi.protocols.chat import ChatRequest, parse
from arbstr_asgi.protocols.prompt import MAX_OBJECTS
from arbstr_asgi.providers.routing import MAX_SCANNED, PolicyMatcher
from tests.unit.protocols.test_model_alias import bodies


def matcher(*rules: Rule) -> PolicyMatcher:
    """A matcher of these rules."""
    return PolicyMatcher(Policies(rules=rules))


def chat_request(*messages: Any, **more: Any) -> ChatRequest:
    """A request with these messages; a text is one of the user's."""
    content_list = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return parse(json.dumps({"model": "m", "messages": content_list, **more}).encode())


def met(keyword: str, text: str) -> bool:
    """Whether a text meets a keyword."""
    return matcher(Rule(name="r", keywords=[keyword])).match(chat_request(text), None) is not None


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("code", "write code"),
        ("code", "code"),
        ("code", "Code."),
        ("CODE", "some code, please"),
        ("code", "decode the code"),
        ("code", "codecode code"),
        ("code", "(code)"),
        ("code", "code-review"),
        ("code", "x\ncode\ny"),
        (" code ", "code"),
        ("credit card", "my Credit Card number"),
        ("c++", "in C++, please"),
        ("a.b", "a.b"),
        (".*", "the regex .* is"),
        ("[x", "[x"),
        ("élan", "ÉLAN"),
        ("straße", "STRASSE"),
        ("σοφος", "ΣΟΦΟΣ"),
        ("код", "пишу код"),
        ("😀", "yes😀no 😀"),
        ("aa", "aaa aa"),
    ],
)
def test_met(keyword: str, text: str) -> None:
    """A keyword is met as whole words, in any case, and means itself only."""
    assert met(keyword, text)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("code", "decode"),
        ("code", "codec"),
        ("code", "decoder decodes unicode"),
        ("code", "code_review, my_code"),
        ("code", "code2"),
        ("code", "écode codeé"),
        ("code", "кcode"),
        ("code", ""),
        ("a.b", "axb"),
        (".*", "anything"),
        ("credit card", "credit cards"),
        ("credit card", "credit, card"),
        ("код", "кодек"),
        ("aa", "aaa"),
        ("", "anything"),
        ("  ", "any  thing"),
    ],
)
def test_not_met(keyword: str, text: str) -> None:
    """A part of a word is not the word, and a keyword of nothing is met by nothing."""
    assert not met(keyword, text)


@given(keyword=st.text("aab .+*é_", min_size=1, max_size=4), text=st.text("aab .+*é_\n", max_size=20))
def test_as_a_plain_search(keyword: str, text: str) -> None:
    """The search finds what the obvious, slower one finds."""
    words = keyword.strip()
    assert met(keyword, text) == bool(words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text))


CODE = Rule(name="code", keywords=["code", "python"])
CARDS = Rule(name="cards", keywords=["card"])
NAMED = Rule(name="named")
ALL = (NAMED, CODE, CARDS)
TEXT = {"type": "text", "text": "my code"}
IMAGE = {"type": "image_url", "image_url": {"url": "code"}}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["a card for code"], CODE),
        (["a card"], CARDS),
        (["python"], CODE),
        (["hello"], None),
        ([], None),
        (["code", "hello"], None),
        (["hello", "code"], CODE),
        (["code", {"role": "assistant", "content": "card"}], CODE),
        (["hello", {"role": "assistant", "content": "card"}, {"role": "system", "content": "code"}], None),
        ([{"role": "User", "content": "code"}], None),
        ([{"content": "code"}], None),
        ([{"role": 7, "content": "code"}], None),
        ([{"role": "user"}], None),
        ([{"role": "user", "content": None}], None),
        ([{"role": "user", "content": 7}], None),
        ([{"role": "user", "content": {"text": "code"}}], None),
        ([{"role": "user", "content": [TEXT]}], CODE),
        ([{"role": "user", "content": [{"type": "text", "text": "hello"}, IMAGE, TEXT]}], CODE),
        ([{"role": "user", "content": [{"type": "input_text", "text": "code"}]}], CODE),
        ([{"role": "user", "content": [{"text": "code"}]}], CODE),
        ([{"role": "user", "content": [IMAGE]}], None),
        ([{"role": "user", "content": [{"type": "text", "text": 7}, TEXT]}], CODE),
        ([{"role": "user", "content": [{"type": "text"}, TEXT]}], CODE),
        ([{"role": "user", "content": [{"text": "co"}, {"text": "de"}]}], None),
        ([{"role": "user", "content": ["code"]}], None),
        ([{"role": "user", "content": []}], None),
        ([7, "code"], None),
        (["code", 7], None),
        (["code \ud83d"], CODE),
        ([{"role": "user", "content": [{"text": "\ud83d"}, TEXT]}], CODE),
        (["\ud83dcode"], CODE),
    ],
)
def test_keywords(messages: list[Any], expected: Rule | None) -> None:
    """The first rule, in order, of which the last user message's text has a keyword; what can't be read has none."""
    assert matcher(*ALL).match(chat_request(*messages), None) is expected


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m"}',
        '{"model":"m","messages":null}',
        '{"model":"m","messages":"code"}',
        '{"model":"m","messages":{"role":"user","content":"code"}}',
        '{"model":"m","messages":[{"role":"user","content":"code"}],"messages":[]}',
        '{"model":"m","x":{"messages":[{"role":"user","content":"code"}]}}',
        '{"model":"m","messages":[' + "{}," * MAX_OBJECTS + '{"role":"user","content":"code"}]}',
    ],
    ids=lambda body: body[:60],
)
def test_odd_bodies(body: str) -> None:
    """A body without readable messages falls under no keyword."""
    assert matcher(*ALL).match(parse(body.encode()), None) is None


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","messages":[{"r\\u006fle":"us\\u0065r","content":"c\\u006fde"}]}',
        '\ufeff{"model":"m","messages":[{"role":"user","content":"code"}]}',
        '{"model":"m","messages":7,"messages":[{"role":"user","content":"code"}]}',
        '{"model":"m","messages":[{"role":"user","content":"code \\\\ud83d \\ud83d\\ude00 \\ud83d"}]}',
    ],
)
def test_spellings(body: str) -> None:
    """However a body spells it, what counts is what the model reads."""
    assert matcher(*ALL).match(parse(body.encode()), None) is CODE


@given(body=bodies())
def test_never_raises(body: bytes) -> None:
    """Whatever can be parsed falls under a rule, or none."""
    assert matcher(*ALL).match(parse(body), None) in (None, *ALL)


def test_named() -> None:
    """A name decides alone, whatever the message says and whether or not the rule has keywords."""
    for rule in ALL:
        assert matcher(*ALL).match(chat_request("python for my card"), rule.name) is rule


@pytest.mark.parametrize("name", ["", "nobody", "Named", "named ", "co", "\n\x1b", "\ud83d", "x" * 5000])
def test_unknown_name(name: str) -> None:
    """A name that no rule has is an error, never no policy, and the error gives no other name away."""
    for found in (matcher(*ALL), matcher()):
        with pytest.raises(RequestError) as caught:
            found.match(chat_request("code"), name)
        error = caught.value
        assert (error.status_code, error.code) == (400, "unknown_policy")
        assert len(error.message) < 140
        assert error.message.isprintable()
        assert "cards" not in error.message


def test_reads_only_for_keywords() -> None:
    """Where no rule has keywords, messages are not looked at."""
    assert matcher(NAMED).match(ChatRequest(body=None, model="m", stream=False), None) is None  # type: ignore[arg-type]


def test_bounded() -> None:
    """Only the beginning of a huge message is searched."""
    found = matcher(*ALL)
    assert found.match(chat_request("x " * (MAX_SCANNED // 2 - 10) + "code"), None) is CODE
    assert found.match(chat_request("x " * (MAX_SCANNED // 2 + 10) + "code"), None) is None


def test_linear() -> None:
    """A message of nothing but near misses costs no more than milliseconds a megabyte."""
    keywords = ["code", "a" * 200 + "b", "aaaa"]
    found = matcher(Rule(name="r", keywords=keywords))
    for near in ("decode", "codec", "a" * 199 + "c", "a"):
        request = chat_request(near * (MAX_SCANNED // len(near)))
        began = time.process_time()
        assert found.match(request, None) is None
        assert time.process_time() - began < 1
