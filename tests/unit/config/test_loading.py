"""Configuration: what is accepted, what is refused with its path, and what is never shown."""

import functools
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Config, ConfigError, Drain, Logging, Provider, Rates, Server, Token
from arbstr_asgi.config.api_keys import key_sources
from arbstr_asgi.config.settings import DatabaseConfig, Limits

MINIMAL: dict[str, Any] = {"providers": [{"name": "alpha", "url": "https://api.example.com/v1"}]}


def provider(**facts: Any) -> dict[str, Any]:
    """A mapping with one provider that has these facts too."""
    return {"providers": [{"name": "alpha", "url": "https://api.example.com/v1", **facts}]}


def policies(**rule: Any) -> dict[str, Any]:
    """A mapping with one provider and one policy that has these facts too."""
    return {**MINIMAL, "policies": {"rules": [{"name": "r", **rule}]}}


def second(**facts: Any) -> dict[str, Any]:
    """A mapping with two providers, the second of which has these facts."""
    return {"providers": [*MINIMAL["providers"], {"name": "beta", "url": "http://h", **facts}]}


def test_toml(tmp_path: Path) -> None:
    """A file is read whole, with its variables filled in."""
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


def test_a_byte_order_mark(tmp_path: Path) -> None:
    """A file that an editor has begun with a BOM is read as one without."""
    path = tmp_path / "arbstr.toml"
    path.write_bytes(b"\xef\xbb\xbf" + b'providers = [{ name = "a", url = "http://h" }]')
    assert Config.load(path, {}).providers[0].name == "a"


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
        (provider(api_key="${KEY"), "providers[0].api_key: has a ${ without its }"),
        (provider(api_key=5), "providers[0].api_key: must be a non-empty string"),
        (provider(api_key="k", api_key_file="f"), "providers[0].api_key_file: give api_key or api_key_file, not both"),
        (provider(api_key_file=""), "providers[0].api_key_file: must name a file"),
        (provider(auth_header="a b"), "providers[0].auth_header: must be the name of a header"),
        (provider(auth_header="Content-Length"), "providers[0].auth_header: "),
        (provider(auth_header="content-type"), "providers[0].auth_header: "),
        (provider(proxy="socks5://h:1"), "providers[0].proxy: must be http:// or https://"),
        (provider(proxy="http://h:1/path"), "providers[0].proxy: must end with its host and port"),
        (provider(proxy="http://h:1?a=b"), "providers[0].proxy: must end with its host and port"),
        (provider(proxy="http://a%3Ab:c@h:1"), "providers[0].proxy: its user and password"),
        (provider(proxy="http://u:p%0A@h:1"), "providers[0].proxy: its user and password"),
        (provider(ca_file=""), "providers[0].ca_file: must name a file"),
        (provider(keepalive_timeout=-1), "providers[0].keepalive_timeout: "),
        (provider(max_connections=0), "providers[0].max_connections: "),
        (provider(max_connections=1.5), "providers[0].max_connections: "),
        (provider(input_rate=Decimal("NaN")), "providers[0].input_rate: must be a number that is not negative"),
        (provider(base_fee=Decimal("-Infinity")), "providers[0].base_fee: must be a number that is not negative"),
        (second(model_rates={"a": {}, "gpt-4o": {"input_rate": -1}}), "providers[1].model_rates.gpt-4o.input_rate: "),
        (second(model_rates={"a": {}, "b.c": {"input_rate": "x"}}), "providers[1].model_rates.b.c.input_rate: "),
        (
            second(model_rates={"a": {}, "x[0]": {"inputrate": 1}}),
            "providers[1].model_rates.x[0]: Object contains unknown field `inputrate`",
        ),
        (second(model_rates={"a": {}, "b": 1}), "providers[1].model_rates.b: Expected `object`"),
        (second(query={"a": "x", "version": 1}), "providers[1].query.version: Expected `str`, got `int`"),
        (second(headers={"a": "x", "X-2": "a\r\nb"}), "providers[1].headers.X-2: not a header that can be set"),
        (second(aliases={"a": "x", "b": 1}), "providers[1].aliases.b: Expected `str`"),
        (second(tier="best"), "providers[1].tier: "),
        (second(forward_headers=["x", 1]), "providers[1].forward_headers[1]: Expected `str`"),
        (policies(max_sats_per_1m_input=-1), "policies.rules[0].max_sats_per_1m_input: must be"),
        (policies(max_sats_per_1m_output=float("nan")), "policies.rules[0].max_sats_per_1m_output: must be"),
        (
            policies(allowed_providers=["alpha", "beta"]),
            "policies.rules[0].allowed_providers: there is no provider 'beta'",
        ),
        (policies(allowed_models="gpt-4o"), "policies.rules[0].allowed_models: "),
        (policies(name=""), "policies.rules[0].name: "),
        (policies(keyword=["x"]), "policies.rules[0]: Object contains unknown field `keyword`"),
        (policies(strategy="round_robin"), 'policies.rules[0].strategy: only "cheapest" is supported'),
        (
            {**MINIMAL, "policies": {"default_strategy": "lowest_latency"}},
            'policies.default_strategy: only "cheapest" is supported',
        ),
        (
            {**MINIMAL, "policies": {"rules": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}},
            "policies.rules[2].name: 'a' is used twice",
        ),
        ({**MINIMAL, "server": {"rate_limit_rps": 5}}, "server.rate_limit_rps: not supported here; remove it"),
        (second(auto_discover=True), "providers[1].auto_discover: not supported here; remove it"),
        ({**MINIMAL, "vault": {"url": "x"}}, "vault: not supported here; remove the table [vault]"),
        ({**MINIMAL, "tokenstats": {}}, "tokenstats: not supported here; remove the table [tokenstats]"),
        ({**MINIMAL, "routing": {}}, "routing: not supported here; remove the table [routing]"),
        ({**MINIMAL, "logging": {"level": "loud"}}, "logging.level: must be one of trace, debug"),
        ({**MINIMAL, "logging": {"log_requests": "yes"}}, "logging.log_requests: Expected `bool`"),
        ({**MINIMAL, "logging": {"file": "x"}}, "logging: Object contains unknown field `file`"),
        ({**MINIMAL, "server": {"auth_token": 5}}, "server.auth_token: Expected `str | null`"),
        ({**MINIMAL, "server": {"auth_token": "${TOKEN}"}}, "server.auth_token: environment variable TOKEN is not set"),
        (
            {**MINIMAL, "server": {"tokens": [{"name": "a", "token": "${T}"}]}},
            "server.tokens[0].token: environment variable T is not set",
        ),
        ({**MINIMAL, "database": {"url": "${DB}"}}, "database.url: environment variable DB is not set"),
        ({"providers": {"name": "a"}}, "providers: Expected `array`"),
        ({"providers": ["a"]}, "providers[0]: Expected `object`"),
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
        {"api_key": ""},
        {"api_key_file": 5},
        {"proxy": "http://[::1"},
        {"max_connections": True},
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
        providers=(
            Provider(name="a", url="http://h", api_key=secret, headers={"x": secret}, query={"k": secret}),
            Provider(name="b", url="http://h", api_key=functools.partial(str, secret)),
            Provider(name="c", url="http://h", proxy=f"http://u:{secret}@h:1"),
        ),
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


THE_ORIGINALS = """
# arbstr configuration
[server]
listen = "127.0.0.1:8080"
auth_token = "${ARBSTR_TOKEN}"

[database]
path = "./arbstr.db"

[[providers]]
name = "provider-alpha"
url = "https://api.provider-alpha.com/v1"
api_key = "${ALPHA_KEY}"
models = ["gpt-4o", "claude-3.5-sonnet", "gpt-4o-mini"]
input_rate = 10
output_rate = 30
base_fee = 1
tier = "frontier"

[[providers]]
name = "Local box"
url = "http://localhost:11434/v1"
models = []
input_rate = 0.5
output_rate = 1.25
tier = "local"

[policies]
default_strategy = "cheapest"

[[policies.rules]]
name = "code_generation"
allowed_models = ["claude-3.5-sonnet", "gpt-4o"]
strategy = "cheapest"
max_sats_per_1m_output = 50000
keywords = ["code", "function", "implement"]

[logging]
level = "info"
log_requests = true
"""


def test_a_file_of_the_original(tmp_path: Path) -> None:
    """A file for the original program, with what exists here, loads as it is."""
    path = tmp_path / "config.toml"
    path.write_text(THE_ORIGINALS)
    config = Config.load(path, {"ARBSTR_TOKEN": "t", "ALPHA_KEY": "a", "ARBSTR_LOCAL_BOX_API_KEY": "l"})
    alpha, local = config.providers
    assert (alpha.api_key, alpha.tier, alpha.input_rate, alpha.base_fee) == ("a", "frontier", 10, 1)
    assert (local.api_key, local.tier, local.output_rate, local.models) == ("l", "local", Decimal("1.25"), ())
    [rule] = config.policies.rules
    assert (rule.name, rule.max_sats_per_1m_output) == ("code_generation", 50_000)
    assert config.logging == Logging(level="info", log_requests=True)


def test_files_are_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file names is relative to its own folder, wherever one stands; in code it is as it is said."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "arbstr.toml").write_text(
        '[[providers]]\nname = "a"\nurl = "http://h"\napi_key_file = "keys/a"\nca_file = "${DIR}/ca.pem"\n'
    )
    (tmp_path / "link.toml").symlink_to("etc/arbstr.toml")
    for path in (folder / "arbstr.toml", Path("etc/arbstr.toml")):
        [one] = Config.load(path, {"DIR": "/certificates", "ARBSTR_A_API_KEY": "not taken"}).providers
        assert (one.api_key_file, one.ca_file, one.api_key) == (str(folder / "keys/a"), "/certificates/ca.pem", None)
    [one] = Config.load("link.toml", {"DIR": "x"}).providers
    assert one.api_key_file == str(tmp_path / "keys/a")
    assert Config.parse(provider(api_key_file="a"), {}).providers[0].api_key_file == "a"


def test_rates_as_mappings() -> None:
    """In code, too, the rates of single models may be mappings; what they leave out is the provider's own."""
    given: Any = {"m": {"input_rate": 3}}
    one = Provider(name="a", url="http://h", input_rate=1, output_rate=2, model_rates=given)
    assert one.rates("m") == Rates(input_rate=3, output_rate=2, base_fee=0)


@pytest.mark.parametrize(
    ("level", "number"),
    [("trace", 10), ("DEBUG", 10), ("Info", 20), ("warn", 30), ("warning", 30), ("ERROR", 40)],
)
def test_levels(level: str, number: int) -> None:
    """Levels are those of the original, in any case."""
    assert Logging(level=level).number == number


@pytest.mark.parametrize(
    ("facts", "environ", "said", "given"),
    [
        ({"api_key": "sk"}, {}, "literal", True),
        ({"api_key": "${A}"}, {"A": "k"}, "from ${A}", True),
        ({"api_key": "${A}-${B}"}, {"A": "k"}, "from ${A}${B} (not set)", False),
        ({"api_key_file": "keys/a"}, {"ARBSTR_ALPHA_API_KEY": "k"}, "file keys/a", True),
        ({}, {"ARBSTR_ALPHA_API_KEY": "k"}, "ARBSTR_ALPHA_API_KEY", True),
        ({}, {"ARBSTR_ALPHA_API_KEY": ""}, "none", False),
        ({"api_key": "k"}, {"ARBSTR_ALPHA_API_KEY": "k"}, "literal", True),
    ],
)
def test_key_sources(facts: dict[str, Any], environ: dict[str, str], said: str, given: bool) -> None:
    """Where a key comes from is told without the key."""
    [source] = key_sources(provider(**facts), environ)
    assert (source.provider, str(source), source.given) == ("alpha", said, given)


def test_key_sources_of_nonsense() -> None:
    """What is no list of providers has no keys."""
    assert key_sources({}, {}) == key_sources({"providers": "x"}, {}) == key_sources({"providers": [1]}, {}) == []
