"""How training scales over processes: `python -m benchmarks.processes` prints images a second of both stages, and ratios.

One process, `--processes` of them that train together (torchrun), and as many that train apart and exchange nothing take turns
round after round, every process with one thread and the same batch. A run counts by the median of its epochs, the first and
the last left out; figures are medians over the rounds, ratios medians of the rounds' own, with their quartiles. Beside them
stands the fastest epoch of all rounds (apart: the largest sum of epochs of the same number), since a step of several processes
waits for the slowest of them: a core that is taken away for a moment stops them all, but only itself where they train apart.

The model is the demo's. With steps as short as the demo's, what the processes exchange and their waiting for each other weigh
more than in any real run. So a step is four micro-batches of 280 by default, some .4 s, and no process is idle at the end of
an epoch: the 4,479 images are sixteen such micro-batches.
"""
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from util.args import PROJECT, Parser, run_command

STAGES = {"pretrain": ["@recipes/embedded/pretrain.args"],
          "finetune": ["@recipes/embedded/finetune.args", "--eval_every", "99"]}


def run_epochs(stage: str, together: int, apart: int, args, folder: Path) -> np.ndarray:
    """(apart, epochs - 2) images a second of `apart` runs at once, each of `together` processes; no first and last epochs.

    Raises ValueError where a run fails; however it ends, no run is left behind.
    """
    outs = [folder / f"{len(list(folder.iterdir()))}-{index}" for index in range(apart)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(together),
               f"main_{stage}.py", *STAGES[stage], "--epochs", str(args.epochs), "--warmup_epochs", "0", "--batch_size",
               str(args.batch_size), "--accum_iter", str(args.accum_iter), "--output_dir"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        runs = []
        for out in outs:
            runs.append(subprocess.Popen([*command, str(out)], cwd=PROJECT, stdout=subprocess.DEVNULL, env=environment))
            stack.callback(end, runs[-1])
        for index, run in enumerate(runs):
            if run.wait():
                raise ValueError(f"main_{stage}.py (processes together: {together}; run {index + 1} of {apart}) ended with "
                                 f"exit code {run.returncode} and says above why; a smaller --batch_size needs less memory")
    return np.array([[json.loads(line)["images_per_second"] for line in (out / "log.jsonl").read_text().splitlines()][1:-1]
                     for out in outs])


def end(run: subprocess.Popen) -> None:
    """Stop a run that goes on."""
    if run.poll() is None:
        run.terminate()
        run.wait()


def table_rows(rounds: dict[str, list[np.ndarray]]) -> list[str]:
    """The table of a stage: {who: its runs' epochs, a (runs, epochs) array a round}, the first of them being one process."""
    of_rounds = {who: np.array([np.median(runs, axis=1).sum() for runs in found]) for who, found in rounds.items()}
    fastest = {who: np.sum(found, axis=1).max() for who, found in rounds.items()}
    first = next(iter(rounds))
    rows = []
    for who, speeds in of_rounds.items():
        low, ratio, high = np.quantile(speeds / of_rounds[first], (0.25, 0.5, 0.75))
        rows.append(f"  {who:12}{np.median(speeds):8.0f}{ratio:8.2f}{f'{low:.2f} - {high:.2f}':>14}{fastest[who]:14.0f}"
                    f"{fastest[who] / fastest[first]:8.2f}")
    return rows


def get_args_parser() -> Parser:
    """The command's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that train together")
    parser.add_argument("--batch_size", type=int, default=280, metavar="N", help="of a process and micro-batch")
    parser.add_argument("--accum_iter", type=int, default=4, metavar="N", help="micro-batches of a process in a step")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--epochs", type=int, default=7, metavar="N", help="of a run; the first and the last do not count")
    return parser


def main(args) -> None:
    """Print the table."""
    least = {"processes": 2, "batch_size": 1, "accum_iter": 1, "rounds": 1, "epochs": 3}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise ValueError(f"--{name} must be at least {value}, not {getattr(args, name)}")
    n = args.processes
    kinds = {"1 process": (1, 1), f"{n} together": (n, 1), f"{n} apart": (1, n)}
    print(f"images a second  median   ratio     quartiles fastest epoch   ratio   ({args.rounds} rounds)")
    for stage in STAGES:
        rounds = {who: [] for who in kinds}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.rounds):
                for who, (together, apart) in kinds.items():
                    rounds[who].append(run_epochs(stage, together, apart, args, Path(folder)))
        print("\n".join([stage, *table_rows(rounds)]), flush=True)


if __name__ == "__main__":
    run_command(get_args_parser(), main)
