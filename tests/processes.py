"""Several processes of the two stages at once, as a launcher starts them, and each one's output and end."""
import contextlib
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

# Forked from a server that has imported everything and computed nothing: torch's threads do not survive a fork.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main_pretrain", "main_finetune"])


class NoFigures:
    """Stands for util.figures where pictures would only take time."""

    def __getattr__(self, name):
        return lambda *_: None


def run_rank(environment, log, jobs, last_as_command, before):
    """One process: its stages one after the other, the last one perhaps as the command line does it."""
    import torch

    import main_finetune
    import main_pretrain
    from util.args import run_command
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    torch.set_num_threads(1)
    stages = {"pretrain": main_pretrain, "finetune": main_finetune}
    for module in stages.values():
        module.figures = NoFigures()
    main_pretrain.show_reconstructions = lambda *_: None
    if before:
        before(int(environment.get("RANK", 0)))
    for i, (stage, argv) in enumerate(jobs):
        sys.argv = [f"main_{stage}.py", *map(str, argv)]
        parser, main = stages[stage].get_args_parser(), stages[stage].main
        if last_as_command and i + 1 == len(jobs):
            run_command(parser, main)
        else:
            main(parser.parse_args())


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Processes:
    """`size` processes (or those of `ranks`) that run `jobs`, [(stage, flags)], each writing into its own file."""

    def __init__(self, folder, jobs, size=1, ranks=None, as_command=True, before=None, environment=None):
        port, self.logs, self.running = str(free_port()), {}, {}
        for rank in range(size) if ranks is None else ranks:
            self.logs[rank] = Path(folder) / f"rank{rank}-{time.monotonic_ns()}.log"
            known = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": port} if size > 1 else {}
            self.running[rank] = CONTEXT.Process(target=run_rank, args=({**known, **(environment or {})}, self.logs[rank], jobs,
                                                                        as_command, before))
            self.running[rank].start()

    def output(self, rank=0):
        """What a process has printed so far."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""

    def wait_for(self, reached, seconds=60):
        """Until reached() is true; the processes must be alive until then."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"not reached; {self.output()}"
            assert any(process.is_alive() for process in self.running.values()), self.output()
            time.sleep(0.002)

    def kill(self, rank, number):
        """Send a signal to one process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.running[rank].pid, number)

    def workers(self, rank=0):
        """Process ids of the image workers of a process: its children, but for Python's own helpers."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if "resource_tracker" not in (folder / "cmdline").read_text():
                    parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        own = {pid for pid, parent in parents.items() if parent == self.running[rank].pid}
        servers = own & set(parents.values())  # where workers are forked by a server of their own
        return sorted((own | {pid for pid, parent in parents.items() if parent in servers}) - servers)

    def end(self, seconds=60):
        """Exit codes by rank, each within the time."""
        end = time.monotonic() + seconds
        for process in self.running.values():
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in self.running.items() if process.is_alive()]
        for process in self.running.values():
            process.kill()
            process.join()
        assert not late, f"processes {late} still ran after {seconds} s; {[self.output(rank) for rank in self.logs]}"
        return {rank: process.exitcode for rank, process in self.running.items()}
