"""Several processes that train one model: who they are, how they meet, agree and end together.

    python main_pretrain.py ...                        one process
    torchrun --nproc_per_node 4 main_pretrain.py ...   torchrun says who is who, on one host or on many
    srun python main_pretrain.py ...                   a SLURM task says it itself

No flag is needed: the launcher's environment variables decide. Gradients meet on the accelerator (NCCL) or the CPU (gloo);
what the processes agree about (signals, errors, results) always goes over the CPU.
"""
import json
import math
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from util import signals
from util.launch import Launch, read_environment

WATCH_SECONDS = 1.0  # between two looks at whether another process has failed
GRACE_SECONDS = 5.0  # for the others to say that they are alive, once one does not answer


class NoAnswer(dist.DistError):
    """The store has not answered: the process that holds it hangs, or its host does."""


def answer(ask: Callable, seconds: float):
    """ask(), a call to the store, which for most calls has no limit of its own. NoAnswer after so many seconds.

    Counted in short waits, so that no time counts in which this process itself was stopped.
    """
    found = queue.SimpleQueue()

    def asked() -> None:
        try:
            found.put((ask(), None))
        except Exception as error:  # to be raised where it was asked
            found.put((None, error))
    threading.Thread(target=asked, daemon=True).start()
    waits = max(1, math.ceil(seconds / WATCH_SECONDS))
    for _ in range(waits):
        try:
            value, error = found.get(timeout=seconds / waits)
        except queue.Empty:
            continue
        if error:
            raise error
        return value
    raise NoAnswer(f"no answer for {seconds:g} s")


@dataclass
class World:
    """The processes of a run as one of them sees them; one process alone needs none of the groups."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    timeout: float = 1800.0
    cpu: object = None  # gloo group for what is agreed
    store: object = None
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.cpu)
        return int(tensor)

    def from_first(self, value):
        """The first process's value, any picklable object, on all of them."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self.cpu)
        return holder[0]

    def from_all(self, value) -> list:
        """Every process's value, in the order of the ranks, on all of them."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.cpu)
        return values

    def share(self, total: int) -> range:
        """Which of `total` things are this process's: every size-th, so that no two are handed out twice."""
        return range(self.rank, total, self.size)

    def collect(self, rows: torch.Tensor | None, total: int) -> torch.Tensor | None:
        """Rows of this process's share (n, ...) -> all `total` rows in order on the first process, None on the others.

        A process whose share is empty, since there are fewer things than processes, gives None.
        """
        if self.size == 1:
            return rows
        if not self.first:
            if rows is not None:
                dist.send(rows.contiguous(), 0, group=self.cpu)
            return None
        whole = rows.new_empty((total, *rows.shape[1:]))
        whole[0::self.size] = rows
        for rank in range(1, min(self.size, total)):
            part = rows.new_empty((len(range(rank, total, self.size)), *rows.shape[1:]))
            dist.recv(part, rank, group=self.cpu)
            whole[rank::self.size] = part
        return whole

    def fail(self, code: int, message: str) -> tuple[int, str] | None:
        """Tell the others that this process ends. (code, message) of the process that failed before it, if one did."""
        if self.size == 1:
            return None
        mine = json.dumps([self.rank, code, message, socket.gethostname()])
        self._stop.set()
        try:
            found = answer(lambda: self.store.compare_set("failed", "", mine).decode(), GRACE_SECONDS)
        except dist.DistError:
            return None
        if self.first:
            time.sleep(2 * WATCH_SECONDS)  # the store may live in this process: the others must have looked before it goes
        rank, code, message, host = json.loads(found)
        return None if rank == self.rank else (code, f"process {rank} on {host}: {message}")

    def explain(self, error: Exception) -> str:
        """Which processes do not answer, in words, after a collective has failed with `error`."""
        asked = f"the others could not be reached ({str(error).splitlines()[0][:200]})"
        try:
            answer(lambda: self.store.set(f"alive/{self.rank}", "yes"), GRACE_SECONDS)
            end = time.monotonic() + GRACE_SECONDS
            while missing := answer(self._silent, GRACE_SECONDS):
                if time.monotonic() > end:
                    break
                time.sleep(0.05)
            hosts = ", ".join(f"{r} ({answer(lambda r=r: self.store.get(f'here/{r}').decode(), GRACE_SECONDS)})"
                              for r in missing)
        except dist.DistError:
            return (f"process 0, or the torchrun that it was started by, does not answer, and {asked}: look at its own output "
                    "for the reason")
        if not missing:
            return asked
        return f"process {hosts} of {self.size} died or hangs: look at its own output for the reason"

    def _silent(self) -> list[int]:
        """The processes that have not said that they are alive."""
        return [rank for rank in range(self.size) if not self.store.check([f"alive/{rank}"])]

    def close(self) -> None:
        """Wait for the others and leave together."""
        global _world
        if self.size > 1:
            self._stop.set()
            dist.barrier(group=self.cpu)
            dist.destroy_process_group()
        _world = World()

    def watch(self, store) -> None:
        """In a thread of its own: end this process when another has failed, or the first one does not answer for the
        time-out, wherever this one waits meanwhile.
        """
        def look() -> bytes | None:
            return store.get("failed") if store.check(["failed"]) else None
        while not self._stop.wait(WATCH_SECONDS):
            try:
                if not (found := answer(look, self.timeout)):
                    continue
                rank, code, message, host = json.loads(found.decode())
            except NoAnswer as error:
                rank, code, message, host = 0, 1, f"{error}, it died or hangs", "its host"
            except dist.DistError:
                rank, code, message, host = 0, 1, "it is gone without a word", "its host"
            if rank == self.rank or self._stop.wait(GRACE_SECONDS):
                return  # this process is ending already, and says why itself
            print(f"error: process {rank} on {host} failed, so process {self.rank} ends too: {message}", file=sys.stderr,
                  flush=True)
            os._exit(code)


_world = World()


def world() -> World:
    """The processes of this run, as `connect` has met them; one process alone before."""
    return _world


def connect(device_type: str, timeout: float) -> World:
    """Meet the other processes that a launcher has started. A second call gives the first one's world again.

    timeout: seconds to wait for another process, here and in everything that follows. Raises ValueError for an
    environment that is set in part, and where processes did not come, with their numbers.
    """
    global _world
    launch = read_environment()
    if launch.size == 1 or _world.size > 1:
        return _world
    store = meet(launch, timeout)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    wait = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=launch.rank, world_size=launch.size,
                            timeout=wait)
    _world = World(launch.rank, launch.size, launch.local_rank, timeout, dist.new_group(backend="gloo", timeout=wait), store)
    threading.Thread(target=_world.watch, args=(dist.PrefixStore(prefix(), open_store(launch, timeout, master=False)),),
                     daemon=True).start()
    return _world


def prefix() -> str:
    """Keys of one start; torchrun keeps its store when it starts the processes again."""
    return f"livt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def open_store(launch: Launch, timeout: float, master: bool):
    """A connection to the key-value store that the first process, or torchrun itself, holds."""
    try:
        return dist.TCPStore(launch.address, launch.port, launch.size, is_master=master, timeout=timedelta(seconds=timeout),
                             wait_for_workers=False)
    except dist.DistError as error:
        what = f"process {launch.rank} of {launch.size} on {socket.gethostname()}"
        words = str(error).splitlines()[0][:200]
        if master:
            raise ValueError(f"{what} cannot listen on port {launch.port} ({words}): set MASTER_PORT to a free one") from None
        raise ValueError(f"{what} waited {timeout:g} s for process 0 at {launch.address}:{launch.port}, which did not come "
                         f"({words}): check that it runs and that the address can be reached from here") from None


def meet(launch: Launch, timeout: float):
    """Wait until every process has come, and return the store. ValueError names those that have not.

    Raises Stopped after a signal, since who waits here has nothing to save.
    """
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun holds the store
    store = dist.PrefixStore(prefix(), open_store(launch, timeout, master=launch.rank == 0 and not agent))
    end = time.monotonic() + timeout
    try:
        answer(lambda: store.set(f"here/{launch.rank}", socket.gethostname()), timeout)
        while missing := answer(lambda: [rank for rank in range(launch.size) if not store.check([f"here/{rank}"])], timeout):
            if time.monotonic() > end:
                here = next(r for r in range(launch.size) if r not in missing)
                raise ValueError(f"waited {timeout:g} s, and {len(missing)} of {launch.size} processes did not come: "
                                 f"{', '.join(map(str, missing))} (process {here} is on {store.get(f'here/{here}').decode()}): "
                                 "look at their own output, or allow more with --dist_timeout")
            if number := signals.received():
                raise signals.Stopped(f"{signals.signal.Signals(number).name}: stopped before process "
                                      f"{', '.join(map(str, missing))} had come; the same command starts the run", number)
            time.sleep(0.05)
    except NoAnswer as error:
        raise ValueError(f"process {launch.rank} of {launch.size} waited for the others, and process 0 hangs ({error}): "
                         "look at its own output for the reason") from None
    except dist.DistError:
        raise ValueError(f"process {launch.rank} of {launch.size} waited for the others, and process 0 has left meanwhile: "
                         "look at its own output for the reason") from None
    return store


def local_device(device: torch.device) -> torch.device:
    """The CUDA device of this process out of its local rank; other devices as they are.

    A launcher that shows each process one device only (SLURM's --gpus-per-task) makes that device 0 everywhere.
    """
    if device.type != "cuda" or _world.size == 1:
        return device
    if device.index is not None:
        raise ValueError(f"--device {device} for {_world.size} processes: use --device cuda, the local rank chooses the device")
    count = torch.cuda.device_count()
    if _world.local_rank >= count > 1:
        raise ValueError(f"local process {_world.local_rank} has no CUDA device: there are {count} here, start at most so many "
                         "processes a host")
    return torch.device("cuda", _world.local_rank if count > 1 else 0)


def is_collective_error(error: Exception) -> bool:
    """Whether torch failed because another process did, rather than by itself."""
    return _world.size > 1 and (isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)))
