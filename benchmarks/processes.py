"""How training scales over processes: `python -m benchmarks.processes` prints images a second of both stages, and the ratio.

One process and `--processes` of them (torchrun), every process with one thread and the same batch, take turns round after
round. A figure is the median over the rounds of the median over a run's epochs but the first; the ratio is of those. The model
is the demo's. With its own batch of 64 images a step takes some 35 ms of a core, and what the processes exchange in each step,
and their waiting for the slower one, weighs more than in any real run. So a step is four micro-batches of 280 by default, some
.4 s, and no process is idle at the end of an epoch: the 4,479 images are sixteen such micro-batches.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from util.args import PROJECT, Parser, run_command

STAGES = {"pretrain": ["@recipes/embedded/pretrain.args"],
          "finetune": ["@recipes/embedded/finetune.args", "--eval_every", "99"]}


def images_per_second(stage: str, processes: int, batch_size: int, accum_iter: int, epochs: int, folder: Path) -> float:
    """One run of a stage: the median over its epochs, the first one left out. Raises ValueError where the run fails."""
    out = folder / f"{stage}-{processes}-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
               f"main_{stage}.py", *STAGES[stage], "--epochs", str(epochs), "--warmup_epochs", "0", "--batch_size",
               str(batch_size), "--accum_iter", str(accum_iter), "--output_dir", str(out)]
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ValueError(f"main_{stage}.py on {processes} processes ended with exit code {done.returncode} and says above "
                         "why; a smaller --batch_size needs less memory")
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return statistics.median(record["images_per_second"] for record in records[1:])


def get_args_parser() -> Parser:
    """The command's flags."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that stand beside one")
    parser.add_argument("--batch_size", type=int, default=280, metavar="N", help="of a process and micro-batch")
    parser.add_argument("--accum_iter", type=int, default=4, metavar="N", help="micro-batches of a process in a step")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--epochs", type=int, default=14, metavar="N", help="of a run; the first one does not count")
    return parser


def main(args) -> None:
    """Print the table."""
    least = {"processes": 2, "batch_size": 1, "accum_iter": 1, "rounds": 1, "epochs": 2}
    for name, value in least.items():
        if getattr(args, name) < value:
            raise ValueError(f"--{name} must be at least {value}, not {getattr(args, name)}")
    print(f"{'stage':10} {'1 process':>12} {f'{args.processes} processes':>12} {'ratio':>6}   images a second")
    for stage in STAGES:
        found = {1: [], args.processes: []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.rounds):
                for processes, values in found.items():
                    values.append(images_per_second(stage, processes, args.batch_size, args.accum_iter, args.epochs,
                                                    Path(folder)))
        one, several = (statistics.median(values) for values in found.values())
        print(f"{stage:10} {one:12.0f} {several:12.0f} {several / one:6.2f}   rounds {found}", flush=True)


if __name__ == "__main__":
    run_command(get_args_parser(), main)
