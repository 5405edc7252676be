"""Lines in which a disk is full: a small file system of its own."""

import os
import subprocess
import tempfile
from asyncio import sleep, to_thread
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.instances import Missing
from tests.faults.lines import line
from tests.faults.stage import Stage

MEGABYTES = 4


@contextmanager
def small_disk() -> Iterator[Path]:
    """A tmpfs. Raises Missing where this process may not mount one."""
    with tempfile.TemporaryDirectory(prefix="arbstr-fault-") as place:
        options = ["-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=700", "tmpfs", place]
        try:
            subprocess.run(["mount", *options], check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing("it takes root and mount(8) to have a small tmpfs") from error
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True, capture_output=True, timeout=20)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def make_room(disk: Path) -> None:
    """Undo it."""
    os.unlink(disk / "filler")


@line("disk-full", "Full disk")
async def disk_full(stage: Stage) -> None:
    """The database's disk is full and the spill's is not."""
    seconds = stage.pick(0.5, 10.0)
    with small_disk() as disk:
        async with stage.scene("sqlite", folder=disk) as scene, scene.load():
            await sleep(0.3)
            await to_thread(fill, disk)
            await sleep(seconds)
            await to_thread(make_room, disk)
            await sleep(0.3)
    stage.result.how = f"the tmpfs with the SQLite file filled for {seconds:g} s under load; the spill is elsewhere"


@line("disk-full-twice", "Full disk, of the spill as well")
async def both_full(stage: Stage) -> None:
    """Nothing can be kept on disk: calls are refused once memory is full, and those served have their rows."""
    seconds = stage.pick(1.0, 10.0)
    with small_disk() as disk:
        facts = {"spill": str(disk / "spill"), "on_full": "refuse", "max_queued": 100}
        async with stage.scene("sqlite", folder=disk, database=facts) as scene:
            async with scene.load():
                await sleep(0.3)
                await to_thread(fill, disk)
                await sleep(seconds)
                await to_thread(make_room, disk)
                await sleep(0.3)
            refused = sum(call.status == 503 for call in scene.calls)
            if not refused:
                scene.problems.append("no call was refused")
    stage.result.how = (
        f'one tmpfs with both filled for {seconds:g} s under load, `on_full = "refuse"`, `max_queued = 100`: '
        f"{refused:,} more calls got a 503"
    )
