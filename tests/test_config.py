"""Configuration: what is accepted, what is refused with its path, and what is never shown."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Config, ConfigError, Drain, Provider, Server, Token
from arbstr_asgi.settings import DatabaseConfig, Limits

MINIMAL: dict[str, Any] = {"providers": [{"name": "alpha", "url": "https://api.example.com/v1"}]}


def provider(**facts: Any) -> dict[str, Any]:
    """A mapping with one provider that has these facts too."""
    return {"providers": [{"name": "alpha", "url": "https://api.example.com/v1", **facts}]}


def test_toml(tmp_path: Path) -> None:
    """The README's file is read whole, with its variables filled in."""
    path = tmp_path / "arbstr.toml"
    path.write_text(
        """
        metering = "require"
        [server]
        listen = "127.0.0.1:9000"
        auth_token = "${ARBSTR_TOKEN}"
        [[server.tokens]]
        name = "alice"
        token = "${ALICE}"
        [database]
        path = "./arbstr.db"
        [limits]
        body_timeout = 3
        [[providers]]
        name = "alpha"
        url = "https://${HOST}/v1/"
        api_key = "${ALPHA_KEY}"
        models = ["gpt-4o"]
        input_rate = 10000
        output_rate = 0.1
        base_fee = 1
        disconnect = { drain = 2.5, at_once = 3 }
        """
    )
    environ = {"ARBSTR_TOKEN": "t", "ALICE": "a", "HOST": "api.example.com", "ALPHA_KEY": "k"}
    config = Config.load(path, environ)
    assert config.server.auth_token == "t"
    assert config.server.tokens == (Token(name="alice", token="a"),)
    assert config.database.resolved_url == "sqlite+aiosqlite:///./arbstr.db"
    assert config.limits.body_timeout == 3
    [alpha] = config.providers
    assert alpha.url == "https://api.example.com/v1"
    assert alpha.api_key == "k"
    assert alpha.drain == Drain(drain=2.5, at_once=3, per_end_user=4)
    assert (alpha.input_rate, alpha.output_rate, alpha.base_fee) == (10000, Decimal("0.1"), 1)
    assert alpha.serves("gpt-4o")
    assert not alpha.serves("gpt-4")


def test_key_by_convention() -> None:
    """A provider without a key takes ARBSTR_<NAME>_API_KEY."""
    mapping = {"providers": [{"name": "my alpha-2", "url": "http://h/v1"}]}
    assert Config.parse(mapping, {"ARBSTR_MY_ALPHA_2_API_KEY": "k"}).providers[0].api_key == "k"
    assert Config.parse(mapping, {}).providers[0].api_key is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "missing required field `providers`"),
        ({"providers": []}, "providers: at least one"),
        ({**MINIMAL, "prviders": 1}, "unknown field `prviders`"),
        ({**MINIMAL, "server": {"lisen": "x"}}, "server: Object contains unknown field `lisen`"),
        ({**MINIMAL, "server": {"workers": 0}}, "server.workers: "),
        ({**MINIMAL, "server": {"workers": "2"}}, "server.workers: "),
        ({**MINIMAL, "server": {"grace": -1.0}}, "server.grace: "),
        ({**MINIMAL, "server": {"auth_token": ""}}, "server.auth_token: "),
        ({**MINIMAL, "server": {"tokens": [{"name": "a", "token": ""}]}}, "server.tokens"),
        (
            {**MINIMAL, "server": {"tokens": [{"name": "a", "token": "x"}, {"name": "a", "token": "y"}]}},
            "server.tokens: ",
        ),
        ({**MINIMAL, "metering": "sometimes"}, "metering: "),
        ({**MINIMAL, "database": {"url": "sqlite:///a", "path": "a"}}, "database.path: "),
        ({**MINIMAL, "limits": {"max_body_bytes": 0}}, "limits.max_body_bytes: "),
        ({**MINIMAL, "limits": {"max_drains": 1}}, "limits: Object contains unknown field `max_drains`"),
        (provider(input_rate=-1), "providers[0].input_rate: "),
        (provider(output_rate=float("nan")), "providers[0].output_rate: "),
        (provider(base_fee=float("inf")), "providers[0].base_fee: "),
        (provider(input_rate="many"), "providers[0].input_rate: "),
        (provider(url="ftp://h"), "providers[0].url: "),
        (provider(url="https://"), "providers[0].url: "),
        (provider(url="https://h:99999/"), "providers[0].url: "),
        (provider(url="https://me:secret@h/"), "providers[0].url: must not hold credentials"),
        (provider(url="https://h/?key=x"), "providers[0].url: "),
        (provider(name=""), "providers[0].name: "),
        (provider(name="a\r\nb"), "providers[0].name: "),
        (provider(api_key=""), "providers[0].api_key: "),
        (provider(api_key="k\n"), "providers[0].api_key: "),
        (provider(models="gpt-4o"), "providers[0].models: "),
        (provider(disconnect="maybe"), "providers[0].disconnect: "),
        (provider(disconnect=True), "providers[0].disconnect: "),
        (provider(disconnect={"drain": 0}), "providers[0].disconnect.drain: must be"),
        (provider(disconnect={"drain": "1"}), "providers[0].disconnect.drain: "),
        (provider(disconnect={"at_once": -1}), "providers[0].disconnect.at_once: must not be negative"),
        (provider(disconnect={"per_end_user": 1.5}), "providers[0].disconnect.per_end_user: "),
        (provider(disconnect={"drian": 1}), "providers[0].disconnect: Object contains unknown field `drian`"),
        (provider(idle_timeout=0), "providers[0].idle_timeout: "),
        (provider(headers={"x": "a\r\nb: c"}), "providers[0].headers.x: "),
        (provider(forward_headers=["Cookie"]), "providers[0].forward_headers: cookie"),
        (provider(return_headers=["Set-Cookie"]), "providers[0].return_headers: set-cookie"),
        (provider(return_headers=["a b"]), "providers[0].return_headers: "),
        ({"providers": [*MINIMAL["providers"], *MINIMAL["providers"]]}, "providers[1].name: "),
        (
            {**provider(forward_authorization=True), "server": {"auth_token": "t"}},
            "providers[0].forward_authorization: ",
        ),
        (provider(connect_timeout=float("inf")), "providers[0].connect_timeout: "),
        (provider(headers={"Content-Length": "3"}), "providers[0].headers.Content-Length: "),
        ({**MINIMAL, "server": {"auth_token": "x", "tokens": [{"name": "a", "token": "x"}]}}, "server.tokens: "),
        ({**provider(inject=False), "metering": "require"}, "providers[0].inject: "),
        (provider(api_key="${NO_SUCH}"), "providers[0].api_key: environment variable NO_SUCH is not set"),
        (provider(api_key="${}"), "providers[0].api_key: environment variable (no name) is not set"),
    ],
)
def test_refused(mapping: dict[str, Any], message: str) -> None:
    """Each mistake is an error that begins with its path."""
    with pytest.raises(ConfigError) as caught:
        Config.parse(mapping, {})
    assert message in str(caught.value), str(caught.value)


def test_refused_in_code() -> None:
    """Values built in code are checked as those from a file."""
    with pytest.raises(ConfigError, match="input_rate"):
        Provider(name="a", url="http://h", input_rate=-1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="input_rate"):
        Provider(name="a", url="http://h", input_rate=True)  # type: ignore[arg-type]
    for wrong in (
        {"disconnect": "cancle"},
        {"inject": "false"},
        {"query": {"k": 5}},
        {"idle_timeout": None},
        {"api_key": 5},
        {"name": None},
    ):
        [name] = wrong
        with pytest.raises(ConfigError, match=name):
            Provider(**{"name": "a", "url": "http://h", **wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_body_bytes"):
        Limits(max_body_bytes="5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="providers"):
        Config(providers=["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="metering"):
        Config(providers=(Provider(name="a", url="http://h"),), metering="maybe")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="models"):
        Provider(name="a", url="http://h", models="gpt-4o")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"[server", "not valid TOML"), (b"\xff", "not valid TOML")]
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    """A file that is missing or not TOML is an error that names it."""
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.load(path)
    assert str(path) in str(caught.value)


def test_repr_shows_no_secret() -> None:
    """No repr of any part shows a key, a token, a database password or a header's value."""
    secret = "s3cret-value"
    config = Config(
        providers=(Provider(name="a", url="http://h", api_key=secret, headers={"x": secret}, query={"k": secret}),),
        server=Server(auth_token=secret, tokens=(Token(name="n", token=secret + "2"),)),
        database=DatabaseConfig(url=f"postgresql+asyncpg://u:{secret}@h/db"),
        limits=Limits(),
    )
    assert secret not in repr(config)
    assert "metering='respect'" in repr(config)


def test_path_with_odd_characters() -> None:
    """A path may hold what would mean something in a URL."""
    assert DatabaseConfig(path="my#db?.db").resolved_url == "sqlite+aiosqlite:///my%23db%3F.db"


def test_frozen() -> None:
    """A configuration can't be changed under a running gateway."""
    config = Config(providers=(Provider(name="a", url="http://h"),))
    with pytest.raises(AttributeError):
        config.metering = "require"  # type: ignore[misc]
