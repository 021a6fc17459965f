"""Signals that ask a run to stop: it finishes its step, saves and leaves with a code of its own."""
import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
LEFT = "stopped; what was saved is whole, and the same command goes on from there"
SAVED = 75  # exit code of a run that was asked to stop and can be continued; BSD's EX_TEMPFAIL, "try again"

LEAVE_SECONDS = 2.0  # for the main thread to leave after a second SIGINT, before the process is ended from beside it

_received: list[int] = []


class Stopped(Exception):
    """The run was asked to stop, has saved and can be continued by the same command; `signal` is which one asked."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple:
        return Stopped, (str(self), self.signal)  # between processes too


@contextlib.contextmanager
def remembered():
    """In the body the signals of CAUGHT are remembered instead of obeyed; a second SIGINT leaves at once.

    Handlers belong to the main thread; in another one (a notebook's) signals do what they did before. Python runs them
    between two operations, which is never where a process waits for others in a collective, so a thread is told of
    every signal too: it ends the process where a second SIGINT has not.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    watch = threading.Thread(target=_watch, args=(told,), daemon=True)
    watch.start()
    told_before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    before = [signal.signal(number, _remember) for number in CAUGHT]
    try:
        yield
    finally:
        for number, handler in zip(CAUGHT, before, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(told_before)
        _received.clear()
        os.write(tell, bytes([0]))  # not closed: a forked child may hold a copy of it open
        watch.join()
        os.close(tell)
        os.close(told)


def _remember(number: int, _frame) -> None:
    if number == signal.SIGINT and signal.SIGINT in _received:
        raise KeyboardInterrupt
    _received.append(number)


def _watch(told: int) -> None:
    """Until a 0 comes: print the first signal, and end the process if that 0 stays away after a second SIGINT."""
    seen, end = [], None
    while select.select([told], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        number = os.read(told, 1)[0]
        if number == 0:
            return
        if number not in CAUGHT:
            continue
        if not seen:
            name = signal.Signals(number).name
            os.write(2, f"{name}: finishing the step, then saving (a second Ctrl-C leaves at once)\n".encode())
        if number == signal.SIGINT and signal.SIGINT in seen:
            end = end or time.monotonic() + LEAVE_SECONDS
        seen.append(number)
    os.write(2, f"{LEFT}\n".encode())
    os._exit(128 + signal.SIGINT)


def received() -> int:
    """Number of the signal that came first, 0 for none."""
    return _received[0] if _received else 0


@contextlib.contextmanager
def held():
    """The signals of CAUGHT wait until the end of the body, in which processes that load images are started.

    They are started with the signals held, and `ignore` takes over from there: a signal to the whole job in between would
    end them, or be told by their copies of this process's handlers a second time.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """For processes that load images: their parent decides when they end, and no signal that a whole job gets.

    The parent ends what is left of them by SIGTERM and waits until they have gone, so its own SIGTERM is told from
    another's by the sender. Where a system does not tell the sender, SIGTERM keeps its meaning.
    """
    others = [number for number in CAUGHT if number != signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, others)  # where `held` has started this process; what waits is gone
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        # Not getppid: where workers are forked by a server, that is the server.
        threading.Thread(target=_obey_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)  # as torch's own workers do: it takes any other code for a worker that died
