"""Each option of a database URL is honoured by the driver, on a real connection, or refused by its name."""

import asyncio
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from arbstr_asgi.database.url import DatabaseUrl
from arbstr_asgi.errors import ConfigError, LedgerError
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.certificates import Authority
from tests.support.databases import administer, an_entry, fresh_database, run_sql
from tests.support.tls_databases import tls_server

PG, MY = "postgresql://u:p@h/d", "mysql://u:p@h/d"
STRICT = {
    "postgresql": [
        "sslmode=require",
        "sslmode=verify-ca&sslrootcert={ca}",
        "sslmode=verify-full&sslrootcert={ca}",
        "ssl=true",
    ],
    "mysql": [
        "ssl=true",
        "ssl_mode=REQUIRED",
        "ssl-mode=VERIFY_CA&ssl_ca={ca}",
        "ssl_ca={ca}",
        "ssl_mode=verify_identity",
    ],
}


def at(url: str, options: str, *, hosts: str | None = None, user: str | None = None) -> str:
    """The URL with these options, and perhaps other hosts."""
    parts = urlsplit(url)
    name, _, place = parts.netloc.rpartition("@")
    return (
        f"{parts.scheme}://{name if user is None else user}@{place if hosts is None else hosts}{parts.path}?{options}"
    )


async def written(url: str) -> dict[str, Any]:
    """One row through a ledger at `url`, and how many connections of which kind the database has seen meanwhile."""
    ledger = Ledger(url)
    await ledger.open()
    try:
        ledger.record(an_entry("c-1"))
        async with asyncio.timeout(10):
            await ledger.flush()
        return (await ledger.rows())[0]
    finally:
        await ledger.close()


@pytest.mark.parametrize(("dialect", "options"), [(d, each) for d, options in STRICT.items() for each in options])
def test_tls_or_nothing(dialect: str, options: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A URL that asks for TLS connects to no server without it: neither is a row written nor does anyone log in."""
    authority = Authority(tmp_path)

    async def main(url: str) -> None:
        ledger = Ledger(at(url, options.format(ca=authority.file)), spill=str(tmp_path))
        await ledger.open(1.0)
        try:
            ledger.record(an_entry("c-1"))
            await asyncio.sleep(0.5)
            with pytest.raises(LedgerError):
                await ledger.check()
        finally:
            await ledger.close()

    with fresh_database(dialect, tmp_path) as url:
        asyncio.run(main(url))
        schema = "'public'" if dialect == "postgresql" else "DATABASE()"
        assert run_sql(url, f"SELECT count(*) FROM information_schema.tables WHERE table_schema = {schema}") == [(0,)]
    assert any("can't open the ledger" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "trusts"),
    [
        ({"postgresql": "sslmode=require", "mysql": "ssl_mode=REQUIRED"}, True),
        ({"postgresql": "sslmode=verify-full&sslrootcert={ca}", "mysql": "ssl_ca={ca}"}, True),
        ({"postgresql": "sslmode=verify-ca&sslrootcert={ca}", "mysql": "ssl_mode=VERIFY_CA&ssl_ca={ca}"}, True),
        ({"postgresql": "sslmode=verify-full&sslrootcert={other}", "mysql": "ssl_ca={other}"}, False),
        ({"postgresql": "ssl=true", "mysql": "ssl=true"}, False),
    ],
    ids=["required", "verified", "authority", "another authority", "the system's authorities"],
)
def test_tls(server_url: str, options: dict[str, str], trusts: bool, tmp_path: Path) -> None:
    """With a server that speaks TLS every connection is encrypted, and its certificate is verified as the URL says."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    dialect = urlsplit(server_url).scheme

    async def main() -> None:
        async with tls_server(dialect, authority.server()) as tls:
            url = at(
                server_url, options[dialect].format(ca=authority.file, other=other.file), hosts=f"127.0.0.1:{tls.port}"
            )
            if trusts:
                assert (await written(url))["correlation_id"] == "c-1"
                assert tls.encrypted > 0
                return
            ledger = Ledger(url, spill=str(tmp_path))
            await ledger.open(1.0)
            with pytest.raises(LedgerError):
                await ledger.check()
            await ledger.close()
            assert tls.encrypted == 0

    asyncio.run(main())


@pytest.mark.parametrize("server_url", ["postgresql"], indirect=True)
def test_settings_of_postgresql(server_url: str) -> None:
    """What the server is told arrives there: a name, its settings, those of `options`."""
    options = "application_name=my+ledger&statement_timeout=12345&options=-c%20lock_timeout%3D2345&connect_timeout=3"
    options += "&target_session_attrs=read-write&max_size=3&min_size=1&command_timeout=9&statement_cache_size=0"

    async def main() -> None:
        ledger = Ledger(at(server_url, options))
        await ledger.open()
        try:
            connections = ledger._open_reader().connections
            asked = "SELECT current_setting('application_name'), current_setting('statement_timeout'), "
            asked += "current_setting('lock_timeout')"
            (row,) = await connections.run(lambda raw: connections.driver.fetch(raw, asked))
            assert tuple(row) == ("my ledger", "12345ms", "2345ms")
        finally:
            await ledger.close()

    asyncio.run(main())


def test_several_hosts(server_url: str) -> None:
    """Of several hosts the first that answers and is as `target_session_attrs` says is taken."""
    parts = urlsplit(server_url)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[1]
    hosts = f"127.0.0.1:{dead},{parts.hostname}:{parts.port or 5432}"
    if parts.scheme == "mysql":
        with pytest.raises(ConfigError, match="several hosts"):
            Ledger(at(server_url, "", hosts=hosts))
        return
    for url in (
        at(server_url, "target_session_attrs=read-write", hosts=hosts),
        at(server_url, f"host=127.0.0.1:{dead}&host={parts.hostname}:{parts.port or 5432}", hosts=""),
        at(server_url, f"host=127.0.0.1,{parts.hostname}&port={dead},{parts.port or 5432}", hosts=""),
    ):
        assert asyncio.run(written(url))["correlation_id"] == "c-1"

    async def main() -> None:
        ledger = Ledger(at(server_url, "target_session_attrs=standby"))
        await ledger.open(1.0)
        with pytest.raises(LedgerError):
            await ledger.check()
        await ledger.close()

    asyncio.run(main())


@pytest.mark.parametrize("dialect", ["postgresql", "mysql"])
def test_a_server_that_says_nothing_is_given_up(dialect: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`connect_timeout` bounds the wait for a server that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        async def main() -> None:
            ledger = Ledger(f"{dialect}://u@127.0.0.1:{port}/d?connect_timeout=0.2", spill=str(tmp_path))
            await ledger.open(1.5)
            await ledger.close()

        asyncio.run(main())
    assert any("can't open the ledger" in record.getMessage() for record in caplog.records)


def test_sockets(server_url: str) -> None:
    """A unix socket is connected to as each driver's users write it."""
    if server_url.startswith("mysql"):
        ((folder,),) = administer("mysql", "SELECT @@socket")
        forms = [at(server_url, f"unix_socket={quote(folder, safe='')}", hosts="127.0.0.9:9")]
        problem = Path(folder).is_socket()
    else:
        ((folders, port),) = administer(
            "postgresql", "SELECT current_setting('unix_socket_directories'), current_setting('port')"
        )
        folder = folders.partition(",")[0]
        forms = [at(server_url, f"host={quote(folder)}&port={port}", hosts="")]
        forms += [at(server_url, "", hosts=f"{quote(folder, safe='')}:{port}")]
        problem = Path(folder, f".s.PGSQL.{port}").is_socket()
    if not problem:
        pytest.skip(f"no socket in {folder}")
    for url in forms:
        assert asyncio.run(written(url))["correlation_id"] == "c-1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{PG}?channel_binding=require", "?channel_binding is not an option"),
        (f"{PG}?gssencmode=disable", "?gssencmode is not"),
        (f"{PG}?hostaddr=1.2.3.4", "?hostaddr is not"),
        (f"{PG}?ssl_mode=require", "?ssl_mode is not"),
        (f"{PG}?SSLMODE=require", "?SSLMODE is not"),
        (f"{PG}?sslmode=required", "?sslmode must be one of disable"),
        (f"{PG}?sslmode=", "?sslmode is empty"),
        (f"{PG}?sslmode", "can't be parsed"),
        (f"{PG}?sslmode=require&sslmode=disable", "?sslmode is given twice"),
        (f"{PG}?sslmode=require&ssl=false", "?ssl is said twice"),
        (f"{PG}?ssl=maybe", "?ssl must be one of"),
        (f"{PG}?sslrootcert=/a.pem", "?sslrootcert needs sslmode"),
        (f"{PG}?ssl=true&sslrootcert=/a.pem", "?sslrootcert needs sslmode"),
        (f"{PG}?target_session_attrs=master", "?target_session_attrs must be one of any"),
        (f"{PG}?connect_timeout=soon", "?connect_timeout must be a number"),
        (f"{PG}?connect_timeout=1&timeout=2", "?timeout is said twice"),
        (f"{PG}?max_size=1", "?max_size must be at least 2"),
        (f"{PG}?max_size=2&min_size=4", "?max_size must be at least 4"),
        (f"{PG}?max_size=-3", "?max_size must be a whole number"),
        (f"{PG}?host=other", "?host"),
        (f"{PG}?user=other", "user or password is said twice"),
        (f"{PG}?dbname=other", "?dbname is not"),
        (f"{PG}?port=a", "?host and ?port"),
        ("postgresql://u@h,i/d?port=1,2,3", "?port must be one"),
        (f"{PG}?direct_tls=1", "?direct_tls must be one of true"),
        (f"{MY}?sslmode=require", "?sslmode is not an option"),
        (f"{MY}?ssl_mode=PREFERRED", "?ssl_mode must be one of DISABLED"),
        (f"{MY}?ssl=1", "?ssl must be one of true"),
        (f"{MY}?ssl=false&ssl_ca=/a.pem", "?ssl_ca means nothing without TLS"),
        (f"{MY}?ssl=true&ssl_mode=REQUIRED", "?ssl_mode is said twice"),
        (f"{MY}?tls_version=TLSv1.3", "?tls_version is not"),
        (f"{MY}?client_flag=2", "?client_flag is not"),
        (f"{MY}?autocommit=false", "?autocommit is not"),
        (f"{MY}?charset=latin1", "?charset must be one of utf8mb4"),
        (f"{MY}?local_infile=1", "?local_infile is not"),
        ("mysql://u@h,i/d", "several hosts"),
        ("sqlite:///a.db?mode=ro", "no ?options"),
    ],
)
def test_refused_by_name(url: str, words: str) -> None:
    """An option that is not known, or whose value means nothing, is a ConfigError that names it."""
    with pytest.raises(ConfigError) as caught:
        Ledger(url)
    assert words in caught.value.message


@pytest.mark.parametrize("option", ["sslmode=verify-full&sslrootcert", "sslcert", "passfile"])
def test_files_that_are_not_there(option: str) -> None:
    """A file that an option names is looked for at start, which fails without it."""
    name = option.rpartition("&")[2]
    with pytest.raises(LedgerError, match=f"{name}: there is no file /no/such.pem"):
        asyncio.run(Ledger(f"{PG}?{option}=/no/such.pem").open())


@pytest.mark.parametrize(
    ("options", "verifies", "names"),
    [
        ("ssl_mode=REQUIRED", False, False),
        ("ssl_mode=VERIFY_CA", True, False),
        ("ssl_mode=VERIFY_IDENTITY", True, True),
        ("ssl_mode=VERIFY_IDENTITY&ssl_check_hostname=false", True, False),
        ("ssl_mode=VERIFY_CA&ssl_check_hostname=true", True, True),
        ("ssl_mode=REQUIRED&ssl_ca={ca}", True, False),
        ("ssl_ca={ca}", True, True),
        ("ssl_ca={ca}&ssl_check_hostname=false", True, False),
        ("ssl=true", True, True),
        ("ssl_check_hostname=true", True, True),
    ],
)
def test_what_mysql_verifies(options: str, verifies: bool, names: bool, tmp_path: Path) -> None:
    """TLS to MySQL verifies what its clients' own modes say, and all where none is given."""
    url = DatabaseUrl.parse(f"{MY}?{options.format(ca=Authority(tmp_path).file)}")
    context = url.options["ssl"]()
    assert (bool(context.verify_mode), context.check_hostname) == (verifies, names)


@pytest.mark.parametrize("options", ["ssl=false", "ssl_mode=DISABLED", ""])
def test_mysql_without_tls(options: str) -> None:
    """TLS is not used where nothing asks for it."""
    assert "ssl" not in DatabaseUrl.parse(f"{MY}?{options}").options


def test_secrets_in_options() -> None:
    """No option's value is in what a ledger shows of its URL."""
    url = DatabaseUrl.parse("postgresql://h/d?user=u&password=s3cr%26t&sslpassword=s3cret&sslcert=/c.pem")
    assert "s3cr" not in f"{url} {url!r}"
    assert url.url == "postgresql://u:s3cr%26t@h/d"


def test_all_hosts_are_shown() -> None:
    """A message about a database with several hosts names all of them."""
    url = DatabaseUrl.parse("postgresql://u:s3cret@one:1,two:2/d")
    assert str(url) == "postgresql://u:********@one:1/d (one, two)"
    assert "/run/pg" in str(DatabaseUrl.parse("postgresql:///d?host=/run/pg"))
