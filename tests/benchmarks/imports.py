"""What an import costs, and then making a gateway.

    python tests/benchmarks/imports.py

CPU seconds and peak memory of whole processes that do nothing else, with the bytecode cached: medians over the rounds,
in turns. The goal is at most twice what `import starlette, httpx` costs.
"""

import argparse
import os
import sys
from statistics import median
from typing import NamedTuple

BASE = "import starlette, httpx"
NAMES = "from arbstr_asgi import Arbstr, ArbstrMiddleware"
HELP = "from arbstr_asgi.cli.main import main; main(['--help'])"
MADE = f"{NAMES}, Config, Provider; Arbstr(Config(providers=[Provider(name='p', url='http://127.0.0.1:1/v1')]))"
MEASURED = {
    BASE: BASE,
    "import arbstr_asgi": "import arbstr_asgi",
    NAMES: NAMES,
    "arbstr --help": HELP,
    "Arbstr(Config(…))": MADE,
}


class Cost(NamedTuple):
    """What a process has used."""

    cpu: float
    """Seconds."""
    memory: float
    """MB, at its peak."""


def cost(program: str) -> Cost:
    """What a new process costs that runs `program`; raises RuntimeError where it fails."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ, file_actions=silent)
    _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{program} failed")
    unit = 1024 * 1024 if sys.platform == "darwin" else 1024
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / unit)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for program in MEASURED.values():
        cost(program)  # writes the bytecode
    found: dict[str, list[Cost]] = {name: [] for name in MEASURED}
    for _ in range(rounds):
        for name, program in MEASURED.items():
            found[name].append(cost(program))
    medians = {name: Cost(*map(median, zip(*costs, strict=True))) for name, costs in found.items()}
    base = medians[BASE]
    print(f"{'':50} {'CPU s':>6} {'ratio':>6} {'MB':>6} {'ratio':>6}")
    for name, (cpu, memory) in medians.items():
        print(f"{name:50} {cpu:6.3f} {cpu / base.cpu:6.2f} {memory:6.1f} {memory / base.memory:6.2f}")


if __name__ == "__main__":
    main()
