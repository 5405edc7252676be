"""What every line of the matrix is given: how much of it to do, chance, and databases to break."""

import tempfile
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.faults.calls import CALLS, Call
from tests.faults.instances import Instance
from tests.faults.ledgers import Base, File
from tests.faults.result import Result
from tests.faults.scene import Ledger, Scene
from tests.support.fake_provider import provider

T = TypeVar("T")

ALLOWANCE = 0.25  # seconds before a SIGKILL in which an answer may lose its row unless durability is strict


class Instances(AbstractContextManager["Instances"]):
    """The database servers, made when they are first asked for and removed at the end."""

    def __init__(self) -> None:
        self._made: dict[str, Instance] = {}

    def get(self, dialect: str) -> Instance:
        """The one server of this kind. Raises Missing."""
        if dialect not in self._made:
            self._made[dialect] = Instance(dialect)
        return self._made[dialect]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for instance in self._made.values():
            instance.remove()


class Stage:
    """One line while it runs."""

    def __init__(self, instances: Instances, result: Result, *, quick: bool, seed: int, allowance: float) -> None:
        self._instances = instances
        self.result = result
        self.quick = quick
        self.random = Random(f"{seed} {result.name}")
        self._allowance = allowance

    def pick(self, quick: T, full: T) -> T:
        """The one that this form takes."""
        return quick if self.quick else full

    def ledger(self, dialect: str, folder: Path) -> Ledger:
        """An empty database."""
        return File(folder) if dialect == "sqlite" else Base(self._instances.get(dialect))

    @asynccontextmanager
    async def scene(
        self,
        dialect: str,
        *,
        clients: int = 12,
        strict: bool = False,
        start: bool = True,
        every: bool = True,
        answered: Callable[[Scene, Call], bool] = Scene.answered,
        folder: Path | None = None,
        **server: Any,
    ) -> AsyncIterator[Scene]:
        """A server, already running unless told not to; at the end its rows are counted into the result.

        `every`: no call but those refused with 503 may fail. `folder` is where an SQLite file is.
        """
        with tempfile.TemporaryDirectory(prefix="arbstr-fault-") as place:
            here = Path(place)
            ledger = await to_thread(self.ledger, dialect, folder or here)
            database = {"durability": "strict"} if strict else {}
            server["database"] = {**database, **server.get("database", {})}
            async with provider() as upstream:
                scene = Scene(here, upstream.url, ledger, clients, 0.0 if strict else self._allowance, **server)
                try:
                    if start:
                        await scene.start()
                    yield scene
                    await to_thread(ledger.up)
                    await scene.settle(lambda call: answered(scene, call))
                    await scene.count(self.result, lambda call: answered(scene, call), every=every)
                finally:
                    await to_thread(ledger.up)
                    await scene.close()
                    CALLS.clear()
