"""Who a process is among those of a launcher, out of its environment variables."""
import os
import re
from dataclasses import dataclass

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")


@dataclass(frozen=True)
class Launch:
    """What a launcher's environment says: this process's number, and where the first process is met."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    by: str = "alone"


def read_environment(environ=os.environ) -> Launch:
    """Who this process is, from torchrun's variables, else those of a SLURM step, else alone.

    Raises ValueError where some of a launcher's variables are set and others are not, with both lists.
    """
    # Job scripts often export MASTER_ADDR for other programs, so the address alone does not mean torchrun.
    if any(name in environ for name in TORCHRUN[:3]):
        require(environ, TORCHRUN, "torchrun")
        return Launch(*numbers(environ, TORCHRUN[:3]), environ["MASTER_ADDR"], port_number(environ), "torchrun")
    # SLURM_PROCID is there in a batch script too, as 0; only a step (srun) has a number of tasks, and further processes.
    if "SLURM_STEP_NUM_TASKS" in environ or number({"SLURM_PROCID": "0", **environ}, "SLURM_PROCID"):
        require(environ, SLURM, "srun")
        rank, size, local = numbers(environ, SLURM[:3])
        # Several jobs may share a host; the job's number keeps their ports apart, below Linux's own range.
        port = port_number(environ) if "MASTER_PORT" in environ else 15000 + number(environ, "SLURM_JOB_ID") % 17000
        return Launch(rank, size, local, environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"]), port, "srun")
    return Launch()


def require(environ, names: tuple[str, ...], launcher: str) -> None:
    """Raise ValueError unless all of a launcher's variables are set."""
    missing = [name for name in names if name not in environ]
    if missing:
        there = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise ValueError(f"the environment of {launcher} is set in part: {there}; {', '.join(missing)} missing: start with "
                         f"{launcher}, or unset what is there to train in one process")


def number(environ, name: str) -> int:
    """An environment variable that must be a number of at least 0."""
    if not environ[name].isdecimal():
        raise ValueError(f"the environment variable {name} must be a whole number, not {environ[name]!r}")
    return int(environ[name])


def numbers(environ, names: tuple[str, ...]) -> list[int]:
    """This process's number, how many there are, and its number on its host, out of the variables of these names."""
    rank, size, local = (number(environ, name) for name in names)
    if size < 1:
        raise ValueError(f"the environment variable {names[1]} is {size}: a run has at least 1 process")
    if rank >= size:
        raise ValueError(f"the environment has {names[0]}={rank} and {names[1]}={size}: processes are numbered from 0 to "
                         f"{size - 1}")
    return [rank, size, local]


def port_number(environ) -> int:
    """MASTER_PORT, which must be one of TCP's."""
    port = number(environ, "MASTER_PORT")
    if not 0 < port < 65536:
        raise ValueError(f"the environment variable MASTER_PORT must be a port, 1 to 65535, not {port}")
    return port


def first_host(nodes: str) -> str:
    """SLURM's list of hosts -> the first of them: "gpu[07-09,12],login1" -> "gpu07"."""
    head = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in head.groups()) if head else nodes
