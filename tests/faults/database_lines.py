"""Lines in which the database is stopped, frozen, locked, or lets nobody in."""

from asyncio import sleep, to_thread

from tests.faults.ledgers import PASSWORD, Base
from tests.faults.lines import SERVERS, for_each, line, times
from tests.faults.stage import Stage


@for_each(SERVERS, "stopped", "stopped and started again")
async def stopped(stage: Stage, dialect: str) -> None:
    """Now in an orderly way, now as it would crash."""
    rounds, seconds = stage.pick(1, 4), stage.pick(0.4, 3.0)
    crash = "as" if stage.quick else "every second time as"
    stage.result.how = f"under load, {times(rounds)}, for {seconds:g} s, {crash} in a crash"
    async with stage.scene(dialect) as scene, scene.load():
        assert isinstance(scene.ledger, Base)
        for number in range(rounds):
            await sleep(stage.pick(0.3, 1.0))
            await to_thread(scene.ledger.instance.stop, crash=stage.quick or number % 2 == 1)
            await sleep(seconds)
            await to_thread(scene.ledger.up)
        await sleep(0.5)


@for_each(SERVERS, "frozen", "frozen")
async def frozen(stage: Stage, dialect: str) -> None:
    """SIGSTOP to all its processes: connections stay, and nothing answers."""
    pauses = stage.pick((0.7,), (4.0, 20.0))
    stage.result.how = f"SIGSTOP to its processes under load, for {' and for '.join(f'{p:g} s' for p in pauses)}"
    async with stage.scene(dialect) as scene, scene.load():
        assert isinstance(scene.ledger, Base)
        for seconds in pauses:
            await sleep(0.3)
            await to_thread(scene.ledger.instance.freeze)
            await sleep(seconds)
            await to_thread(scene.ledger.instance.thaw)
            await sleep(0.5)


@for_each(SERVERS, "frozen-end", "frozen, and SIGTERM meanwhile")
async def frozen_at_the_end(stage: Stage, dialect: str) -> None:
    """The server ends while its database is silent; what it has left on disk comes with the next start."""
    stage.result.how = "SIGSTOP under load, SIGTERM to the server, started again after SIGCONT"
    async with stage.scene(dialect, grace=2.0) as scene:
        assert isinstance(scene.ledger, Base)
        async with scene.load():
            await sleep(0.3)
            await to_thread(scene.ledger.instance.freeze)
            await sleep(stage.pick(0.5, 5.0))
        await scene.terminate()


@for_each(SERVERS, "connections", "ends the connections")
async def connections_killed(stage: Stage, dialect: str) -> None:
    """Again and again, whether they are in use or not."""
    rounds = stage.pick(4, 40)
    killed = 0
    async with stage.scene(dialect) as scene, scene.load():
        assert isinstance(scene.ledger, Base)
        for _ in range(rounds):
            await sleep(stage.random.uniform(0.02, 0.3))
            killed += await to_thread(scene.ledger.kill_connections)
        await sleep(0.3)
    stage.result.how = f"by the administrator under load, {times(rounds)}: {killed} connections"


@for_each(("sqlite", *SERVERS), "away-at-start", "not there at the start")
async def away_at_start(stage: Stage, dialect: str) -> None:
    """The server starts without it and serves."""
    seconds = stage.pick(0.5, 6.0)
    what = "file locked" if dialect == "sqlite" else "stopped"
    stage.result.how = f"{what} before the server starts, there again {seconds:g} s after that; load from the beginning"
    async with stage.scene(dialect, start=False) as scene:
        await to_thread(scene.ledger.down)
        async with scene.load():
            await scene.start()
            await sleep(seconds)
            await to_thread(scene.ledger.up)
            await sleep(0.5)


@for_each(SERVERS, "credentials", "takes credentials away")
async def credentials(stage: Stage, dialect: str) -> None:
    """First the right to write, then the password, each given back after a while."""
    seconds = stage.pick(0.5, 4.0)
    stage.result.how = f"under load: INSERT and UPDATE revoked for {seconds:g} s, then another password as long"
    async with stage.scene(dialect) as scene, scene.load():
        assert isinstance(scene.ledger, Base)
        await sleep(0.3)
        await to_thread(scene.ledger.allow_writing, allowed=False)
        await sleep(seconds)
        await to_thread(scene.ledger.allow_writing, allowed=True)
        await sleep(stage.pick(0.1, 2.0))
        await to_thread(scene.ledger.change_password, "other")
        await sleep(seconds)
        await to_thread(scene.ledger.change_password, PASSWORD)
        await sleep(0.3)


async def _locked(stage: Stage, *, strict: bool) -> None:
    seconds = stage.pick(0.7, 10.0)
    how = "durability strict, file locked" if strict else "file locked"
    stage.result.how = f"{how} by another process for {seconds:g} s under load"
    async with stage.scene("sqlite", strict=strict) as scene, scene.load():
        await sleep(0.3)
        await to_thread(scene.ledger.down)
        await sleep(seconds)
        await to_thread(scene.ledger.up)
        await sleep(0.3)


@line("sqlite-locked", "SQLite locked")
async def locked(stage: Stage) -> None:
    """Longer than anybody waits for a lock."""
    await _locked(stage, strict=False)


@line("sqlite-locked-strict", "SQLite locked, strict")
async def locked_strict(stage: Stage) -> None:
    """The same; answers wait for the spill instead."""
    await _locked(stage, strict=True)
