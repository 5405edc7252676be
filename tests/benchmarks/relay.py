"""What metering costs: the same relay with and without it, and what others cost, with every row written.

    python tests/benchmarks/relay.py            (ten minutes)
    python tests/benchmarks/relay.py --quick    (a minute)

A provider, a server and a client are processes on loopback, connected before a measurement begins. The servers are the
bare relay (the same server, httpx over httpx-aiohttp, no metering, no rows) and ours, on each ASGI server and each
database that is there; beside them a relay on httpx's own client, as most people write it, and one over our own
connections, the floor; nginx as a plain proxy where it is installed, and LiteLLM where a virtual environment has it.
They take turns; the CPU is their processes' own, all threads, after the rows are written; medians of the rounds, and of
their ratios. The absolute numbers are this machine's: compare them. It insists on one thing, that each call has its
row; with `--guard` also on bounds.json. Otherwise the status is 1.
"""

import argparse
import asyncio
import functools
import json
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from harness import guard
from harness.client import cpu
from harness.gateways import answering, has_nginx, litellm, nginx
from harness.hosts import SERVERS, be_server
from harness.ledgers import ledgers, rows
from harness.measures import WORKS, Plan, Target
from harness.pieces import parts
from harness.processes import cpu_of, process, ready, terminated
from harness.provider import be_provider
from harness.report import conditions, markdown, ratios, table

BARE = "bare relay"


class Host(NamedTuple):
    """One of our servers under test: which server runs it, what it is, and the URL of its ledger."""

    server: str
    kind: str
    url: str | None


def hosts(given: argparse.Namespace, stack: ExitStack, folder: Path) -> dict[str, Host]:
    """The bare relays and ours, with ledgers that are gone when `stack` is closed."""
    found: dict[str, Host] = {}
    for server in given.server or (("uvicorn", "hypercorn") if given.quick else SERVERS):
        found[f"{server}, {BARE}"] = Host(server, "bare", None)
        everything = server == SERVERS[0] and not given.quick
        if everything:
            found[f"{server}, relay on httpx's client"] = Host(server, "httpx", None)
            found[f"{server}, relay on our connections"] = Host(server, "direct", None)
        for name, (kind, url) in stack.enter_context(ledgers(folder, everything=everything)).items():
            found[f"{server}, {name}"] = Host(server, kind, url)
    return found


@asynccontextmanager
async def targets(
    given: argparse.Namespace, ours: Mapping[str, Host], provider: int, folder: Path
) -> AsyncIterator[dict[str, Target]]:
    """Everything to be measured, warm."""
    upstream = f"http://127.0.0.1:{provider}/v1"
    found = {"direct": Target(provider, None)}
    async with AsyncExitStack() as stack:
        for name, host in ours.items():
            arguments = ("server", host.kind, host.server, upstream, host.url or "")
            port = await stack.enter_async_context(process(*arguments))
            await ready(port)
            base = None if name.endswith(BARE) else f"{host.server}, {BARE}"
            found[name] = Target(port, functools.partial(cpu, port), base=base)
        base = f"{SERVERS[0]}, {BARE}"
        if has_nginx() and not given.quick:
            port, pid = await stack.enter_async_context(nginx(provider, folder / "nginx"))
            found["nginx, plain proxy"] = Target(port, _used_by(pid), base=base)
        if given.litellm is not None:
            port, pid = await stack.enter_async_context(litellm(given.litellm, provider, folder / "litellm"))
            found["LiteLLM's proxy"] = Target(port, _used_by(pid), base=base)
        if given.gateway is not None:
            name, port, known = given.gateway
            found[name] = Target(await answering(name, port), None if known is None else _used_by(known), base=base)
        for target in found.values():
            await target.warm_up()
        yield found


def _used_by(pid: int) -> Callable[[], Awaitable[float]]:
    async def used() -> float:
        return cpu_of(pid)

    return used


async def compare(given: argparse.Namespace, plan: Plan, ours: Mapping[str, Host], folder: Path) -> dict[str, Any]:
    """Measure everything in turns; gives the results as JSON can hold them."""
    ends = time.monotonic() + plan.seconds
    async with (
        process("provider", str(given.provider_port)) as provider,
        targets(given, ours, provider, folder) as found,
    ):
        done, began = 0, time.monotonic()
        while done < plan.rounds:
            order = list(found.values())
            for work in WORKS:
                for target in order if done % 2 else reversed(order):
                    await target.measure(*work, plan)
            done += 1
            print(f"round {done} of {plan.rounds}", file=sys.stderr)
            now = time.monotonic()
            if now + (now - began) / done > ends:
                break
        results = {name: {**target.results(), "rounds": done} for name, target in found.items()}
    for name, host in ours.items():
        if host.url is not None:
            results[name] |= {"rows_expected": found[name].calls, "rows_found": await rows(host.url)}
    return results


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    plan = Plan(
        rounds=given.rounds or (3 if given.quick else 10),
        calls=given.calls,
        streams=given.streams,
        seconds=50.0 if given.quick else 500.0,
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ours = hosts(given, stack, Path(folder))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(compare(given, plan, ours, Path(folder)))


def judge(given: argparse.Namespace, results: dict[str, Any]) -> list[str]:
    """What is wrong with the results."""
    wrong = [
        f"{name}: {one['rows_found']} rows of {one['rows_expected']} calls"
        for name, one in results.items()
        if one.get("rows_found") != one.get("rows_expected")
    ]
    if given.guard:
        wrong += guard.too_dear(ratios(results), guard.recorded())
    return wrong


def _gateway(said: str) -> tuple[str, int, int | None]:
    found = re.fullmatch(r"(.+)=(\d{1,5})(?:/(\d+))?", said)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise argparse.ArgumentTypeError(f"{said!r} is not NAME=PORT or NAME=PORT/PID")
    return found[1], int(found[2]), None if found[3] is None else int(found[3])


def _folder(said: str) -> Path:
    return Path(said).absolute()


def options() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute: uvicorn and hypercorn, SQLite")
    parser.add_argument("--server", choices=SERVERS, action="append", help="only this one (may be said again)")
    parser.add_argument("--litellm", type=_folder, metavar="VENV", help="a virtual environment with litellm[proxy]")
    parser.add_argument(
        "--gateway",
        type=_gateway,
        metavar="NAME=PORT[/PID]",
        help="another gateway on loopback, already up, which asks"
        " the provider at --provider-port for gpt-4o; its CPU too where its process is named",
    )
    parser.add_argument("--provider-port", type=int, default=0, help="of the provider (default: any)")
    parser.add_argument("--rounds", type=int, help="of everything")
    parser.add_argument("--calls", type=int, default=200, help="plain calls a round at one connection")
    parser.add_argument("--streams", type=int, default=8, help="streams a round at one connection")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--readme", action="store_true", help="print a table in Markdown")
    parser.add_argument("--guard", action="store_true", help="fail where a ratio is far above the one on record")
    parser.add_argument("--record", action="store_true", help="put this run's ratios on record for the guard")
    return parser


def main() -> int:
    """The command."""
    given = options().parse_args()
    try:
        results = measure(given)
    except RuntimeError as error:
        sys.exit(str(error))
    wrong = judge(given, results)
    if wrong and given.guard:
        print("\n".join([*wrong, "once more, in case somebody else was at work"]), file=sys.stderr)
        lost = [what for what in wrong if " rows of " in what]  # that no second run makes good
        results = measure(given)
        wrong = [*lost, *judge(given, results)]
    pieces = parts(200 if given.quick or given.rounds else 1000)
    print("\n".join(markdown(results)) if given.readme else table(results, pieces))
    if given.json is not None:
        found = {"run": conditions(), "targets": results, "ratios": ratios(results), "pieces": pieces}
        given.json.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")
    if given.record:
        guard.record(ratios(results))
    for what in wrong:
        print(what, file=sys.stderr)
    return int(bool(wrong))


def role(name: str, *arguments: str) -> None:
    """Be one of the other processes."""

    async def be() -> None:
        stop = terminated()
        await (be_provider(int(arguments[0]), stop) if name == "provider" else be_server(*arguments, stop))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(be())


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("provider", "server"):
        role(*sys.argv[1:])
    else:
        sys.exit(main())
