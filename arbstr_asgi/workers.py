"""What a worker process does for itself."""

import multiprocessing
import signal
import sys


def outlive_idle_workers() -> None:
    """Keep a busy hypercorn worker alive until it has finished.

    With several workers hypercorn's master sends SIGTERM to the rest as soon as the first has ended, and they have no
    handler for it. They learn of the shutdown through an event, so the signal can be ignored; the master waits.
    """
    worker = multiprocessing.parent_process() is not None and "hypercorn" in sys.modules
    if worker and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
