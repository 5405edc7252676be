"""Break things under real servers and compare what clients were answered with the rows that are found.

    python tests/faults/matrix.py --quick

For each fault a server and a provider run on loopback, and clients call as fast as they are answered, streams and
plain calls, each with token counts that no other call has. Every answered call must have its row and the right tokens,
no call may fail that the fault does not explain, and the server's log must hold no traceback; otherwise the exit
status is 1. "Worst delay" is the most by which anything reached a client later than the provider's own pace explains,
this process's own delays included. PostgreSQL and MariaDB are servers of our own in temporary folders: their programs
must be installed. The full form takes about ten minutes, the quick one about one.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from random import SystemRandom

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where the package `tests` is

from tests.faults import database_lines, disk_lines, provider_lines, signal_lines
from tests.faults.instances import Missing
from tests.faults.lines import LINES, Line
from tests.faults.result import Result
from tests.faults.stage import ALLOWANCE, Instances, Stage
from tests.faults.table import markdown, write

PARTS = (database_lines, disk_lines, signal_lines, provider_lines)  # importing them fills LINES, in this order
PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "reliability.md"
LINE_SECONDS = 240.0  # no line lasts longer


def run(line: Line, instances: Instances, *, quick: bool, seed: int, allowance: float = ALLOWANCE) -> Result:
    """One line, however it goes."""
    result = Result(line.name, line.fault)
    stage = Stage(instances, result, quick=quick, seed=seed, allowance=allowance)
    began = time.monotonic()

    async def main() -> None:
        async with asyncio.timeout(LINE_SECONDS):
            await line.act(stage)

    try:
        asyncio.run(main())
    except Missing as error:
        result.missing = str(error)
    except Exception as error:
        result.problems.append(f"{type(error).__name__}: {error}")
    result.seconds = time.monotonic() - began
    return result


def told(result: Result) -> str:
    """One line for a terminal."""
    if result.missing:
        return f"{'not run':8} {result.name}: {result.missing}"
    numbers = f"answered {result.answered} of {result.made}, found {result.found}, right {result.right}"
    line = f"{'ok' if result.good else 'WRONG':8} {result.name}: {numbers}, worst delay {result.worst_ms:.0f} ms"
    more = [f"         {what}" for what in (*result.problems, *result.details[:5])]
    return "\n".join([f"{line}, {result.seconds:.1f} s", *more])


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short round of each line")
    parser.add_argument("--only", metavar="NAME", action="append", help="only lines with this in their names")
    parser.add_argument("--list", action="store_true", help="say the names of the lines, and end")
    parser.add_argument("--seed", type=int, help="for the moments that are random; by default a new one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--write", action="store_true", help="write the table into docs/guide/reliability.md")
    return parser.parse_args()


def main() -> int:
    """The command."""
    given = arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # what has been started is ended also then
    chosen = [line for line in LINES.values() if not given.only or any(part in line.name for part in given.only)]
    if given.list or not chosen:
        print("\n".join(LINES))
        return int(not chosen)
    seed = SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"{len(chosen)} lines, {'quick' if given.quick else 'full'}, --seed {seed}", flush=True)
    results = []
    began = time.monotonic()
    with Instances() as instances:
        for line in chosen:
            results.append(run(line, instances, quick=given.quick, seed=seed))
            print(told(results[-1]), flush=True)
    print(f"{time.monotonic() - began:.0f} s in all\n\n{markdown(results)}")
    if given.json:
        given.json.write_text(json.dumps({"seed": seed, "lines": [result.as_dict() for result in results]}, indent=1))
    if given.write:
        write(PAGE, markdown(results))
    return int(not all(result.good for result in results))


if __name__ == "__main__":
    sys.exit(main())
