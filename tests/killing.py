"""Kill a run at random moments, start it again each time, and compare what comes out with the uninterrupted run.

    python -m tests.killing --kills 50
"""
import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.processes import Processes
from util.checkpoint import load_checkpoint

TIMES = ("seconds", "images_per_second", "data_wait", "host_memory_bytes")
SMALL = ["--dataset", "embedded", "--input_size", 28, "--patch_size", 7, "--embed_dim", 32, "--depth", 2, "--num_heads", 2,
         "--device", "cpu", "--amp", "off", "--num_workers", 0, "--batch_size", 64, "--lr", "1e-3", "--warmup_epochs", 1]
STAGES = {
    "pretrain": [*SMALL, "--model", "mae_vit_tiny_patch16", "--decoder_embed_dim", 32, "--decoder_depth", 1,
                 "--decoder_num_heads", 2],
    "finetune": [*SMALL, "--model", "vit_tiny_patch16", "--mixup", .8, "--cutmix", 1, "--drop_path", .2, "--aa", "none",
                 "--train_crop", "pad"],
}


def plain(value):
    """A checkpoint's nested values with tensors as lists, so that == compares them."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, to the bit; times and the folder they were started in aside."""
    found = []
    a, b = (load_checkpoint(run / "last.pth") for run in (one, other))
    found += [f"weight {key}" for key in a["model"] if not torch.equal(a["model"][key], b["model"][key])]
    for i, state in a["optimizer"]["state"].items():
        found += [f"optimiser {i} {key}" for key in state if not torch.equal(state[key], b["optimizer"]["state"][i][key])]
    for state in (a, b):
        # Each DataLoader that starts draws its workers' seed from torch's generator, one more after a cut within an epoch;
        # no image depends on it.
        del state["scaler"]["clock"], state["rng"]["torch"], state["progress"]["working_dir"]
    found += [key for key in ("ema", "scaler", "progress", "rng") if repr(plain(a[key])) != repr(plain(b[key]))]
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, other)]
    timeless = [[{key: value for key, value in line.items() if key not in TIMES} for line in log] for log in logs]
    found += ["log.jsonl"] * (timeless[0] != timeless[1])
    found += ["metrics.json"] * ((one / "metrics.json").read_bytes() != (other / "metrics.json").read_bytes())
    if (one / "predictions.npz").exists():
        x, y = (np.load(run / "predictions.npz") for run in (one, other))
        found += [f"predictions {key}" for key in x if not np.array_equal(x[key], y[key])]
    return found


def kill_often(stage: str, folder: Path, kills: int, epochs: int, draw: random.Random) -> tuple[list[str], dict[str, int]]:
    """Kill a run `kills` times and let it finish: (what differs from the whole run, kills by moment).

    Where it ends before it is killed, that result is compared too, and it begins anew.
    """
    flags = [*STAGES[stage], "--epochs", epochs, "--save_steps", 3]
    began = time.monotonic()
    whole = Processes(folder, [(stage, [*flags, "--output_dir", folder / "whole"])])
    assert whole.end(600) == {0: 0}, whole.output()
    span = (time.monotonic() - began) / max(kills, 1)
    moments, found = {"while saving": 0, "anywhere": 0}, []
    job, part = [(stage, [*flags, "--output_dir", folder / "cut"])], folder / "cut" / ".last.pth.part"
    while sum(moments.values()) < kills:
        run, moment = Processes(folder, job), draw.choice(list(moments))
        run.wait_for(lambda run=run: f"stage {1 if stage == 'pretrain' else 2}," in run.output())
        # Long enough for some progress and short enough for all the kills to fall into the run.
        time.sleep(draw.uniform(0, span))
        if moment == "while saving":
            run.wait_for(lambda run=run: part.exists() or (folder / "cut" / "metrics.json").exists())
        run.kill(0, signal.SIGKILL)
        if run.end() == {0: -signal.SIGKILL}:
            moments[moment] += 1
            continue
        assert run.end() == {0: 0}, run.output()
        found += differences(folder / "whole", folder / "cut")
        shutil.rmtree(folder / "cut")
    last = Processes(folder, job)
    assert last.end(600) == {0: 0}, last.output()
    return found + differences(folder / "whole", folder / "cut"), moments


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="over both stages")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, failed = random.Random(args.seed), False
    for i, stage in enumerate(STAGES):
        kills = (args.kills + 1 - i) // 2
        with tempfile.TemporaryDirectory() as folder:
            found, moments = kill_often(stage, Path(folder), kills, 2 + kills // 2, draw)
        failed |= bool(found)
        print(f"{stage}: killed {moments['while saving']} times while saving, {moments['anywhere']} times anywhere; "
              f"{'differs: ' + ', '.join(found) if found else 'equal to the uninterrupted run to the bit'}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
