"""File locks of a spill folder: one numbered slot for each process; its lock shows whether the owner is alive.

A slot is a lock file and an SQLite file. A running process holds `flock` on its slot; the system releases it however
the process ends, so a free lock means that the owner is dead and anyone may replay its file. Lock files are never
deleted: a lock on a deleted file would exclude nobody.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_SLOTS = 4096


class SpillLock:
    """One slot whose lock this process holds."""

    def __init__(self, file: Path, lock: int) -> None:
        self.file = file  # the SQLite file
        self._lock = lock

    @property
    def size(self) -> int:
        """Bytes of the SQLite file and its WAL."""
        result = 0
        for path in (self.file, self.file.with_name(f"{self.file.name}-wal")):
            with suppress(OSError):
                result += path.stat().st_size
        return result

    def write_owner(self, worker_id: str) -> None:
        """Write the id of the owner into the lock file."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, worker_id.encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._lock)


class SpillLocks:
    """The slots of one ledger on this machine. Raises OSError where the folder can not be used."""

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise OSError("file locks are not supported on this system")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self.id = _folder_id(folder)

    def claim(self) -> SpillLock:
        """Lock the first free slot, which is created if necessary."""
        for number in range(1, MAX_SLOTS):
            slot = self._try(number)
            if slot is not None:
                _create(slot.file)
                return slot
        raise OSError(f"more than {MAX_SLOTS} processes use {self._folder}")

    def orphans(self) -> Iterator[SpillLock]:
        """Lock, one after the other, the slots of dead processes that have a file."""
        for number in self._numbers():
            slot = self._try(number)
            if slot is not None and slot.file.exists():
                yield slot
            elif slot is not None:
                slot.release()

    def live_owners(self) -> set[str]:
        """The worker ids of the processes that hold a slot."""
        result: set[str] = set()
        for number in self._numbers():
            slot = self._try(number)
            if slot is not None:
                slot.release()
            else:
                with suppress(OSError):
                    result.add((self._folder / f"{number}.lock").read_text("ascii", "replace"))
        return result

    def _numbers(self) -> list[int]:
        names = (path.stem for path in self._folder.glob("*.lock"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _try(self, number: int) -> SpillLock | None:
        lock = os.open(self._folder / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            os.close(lock)
            raise
        return SpillLock(self._folder / f"{number}.db", lock)


def _create(file: Path) -> None:
    """Create the file with mode 0600; SQLite gives the files beside it the same mode."""
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    file.chmod(0o600)


def _folder_id(folder: Path) -> str:
    """Eight random characters stored in the folder when it was created; unlike a host name they never change."""
    path = folder / "id"
    temporary = folder / f".{uuid4().hex}"
    temporary.write_text(uuid4().hex[:8], "ascii")
    try:
        os.link(temporary, path)  # unlike a rename it fails if the file exists
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_text("ascii")


def new_worker_id(folder_id: str) -> str:
    """A unique id of a ledger: host, process id, folder id, random characters."""
    host = "".join(c for c in socket.gethostname() if c.isascii() and c.isprintable())[:24]
    return f"{host}:{os.getpid()}:{folder_id}.{uuid4().hex[:8]}"
