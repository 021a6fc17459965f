"""Lists of the official size over links to a few tiny JPEGs: figures, memory, and loading workers that do not grow.

`make test-large` runs them and prints what was measured.
"""
import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, Subset

from datasets import build_dataset, verify
from datasets.prepared import read_description
from tests.made_up_trees import EVALUATION, build

pytestmark = pytest.mark.large

KINDS = {"imagenet_lt": ("imagenet", "flat", ""), "places_lt": ("places", "", "data_256"), "inat18": ("inat", "", "json")}
# Training images, classes, largest and smallest class, many / medium / few classes, images of the other splits.
FIGURES = {
    "imagenet_lt": ("115,846 1,000 1,280 5 385 479 136", {"val": 20_000, "test": 50_000}),
    "places_lt": ("62,500 365 4,980 5 131 163 71", {"val": 7_300, "test": 36_500}),
    "inat18": ("437,513 8,142 1,000 2 842 4076 3224", {"test": 24_426}),
}
# Runs one statement in a process of its own, and prints what it took as JSON on the last line. The peak is the kernel's
# own (VmHWM), above what the imports had taken; seconds are the processor's, since other processes may be busy.
MEASURE = """
import json, sys, time
{imports}
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before, start = peak(), time.process_time()
{statement}
print(json.dumps({{"seconds": time.process_time() - start, "MB": peak() - before}}))
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="the memory of a process is read in "
                                "/proc/<pid>, which this system has not")


def measure(imports, statement, *argv):
    """(what a statement printed, {"seconds": of the processor, "MB": growth of the peak over the imports})."""
    code = MEASURE.format(imports=imports, statement=statement)
    result = subprocess.run([sys.executable, "-c", code, *map(str, argv)], cwd=Path(__file__).parent.parent, check=True,
                            capture_output=True, text=True)
    *printed, last = result.stdout.splitlines()
    return printed, json.loads(last)


@pytest.fixture(scope="module", params=list(KINDS))
def official(request, tmp_path_factory):
    """(name, the made-up set, its prepared folder, what the command printed, what it took)."""
    kind, tree, lists = KINDS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    try:
        made = build(kind, root, images=1.0, evaluation=EVALUATION[kind], tree=tree, lists=lists, spare=0)
        out = root / "out"
        printed, cost = measure("from datasets.prepare import get_args_parser, main", "main(get_args_parser().parse_args())",
                                request.param, "--source", made.source, "--lists", made.lists, "--out", out)
        yield request.param, made, out, printed, cost
    finally:
        shutil.rmtree(root)


@needs_proc
def test_prepare_gives_the_official_figures(official):
    name, made, out, printed, cost = official
    train, others = FIGURES[name]
    rows = {line.split()[0]: line.split()[1:] for line in printed if line.strip()}
    assert rows["train"] == train.split() and not any(line.startswith("note") for line in printed)
    assert {split: int(row[0].replace(",", "")) for split, row in rows.items() if split in others} == others
    counts = json.loads((Path(__file__).parent.parent / "datasets" / "class_counts" / f"{name}.json").read_text())
    splits = read_description(out)["splits"]
    assert splits["train"]["class_counts"] == counts
    for split in others:
        assert set(splits[split]["class_counts"]) == {EVALUATION[KINDS[name][0]][split]}
        images = build_dataset(name, split, str(out))
        assert dict(zip(images.ids, images.labels.tolist(), strict=True)) == made.labels[split]
    print(f"{name}: prepare {cost}")
    assert cost["seconds"] < 15 and cost["MB"] < 400


@needs_proc
def test_an_index_loads_in_2_seconds_and_150_MB(official):
    name, _, out, *_ = official
    printed, cost = measure("from datasets import build_dataset",
                            "images = build_dataset(sys.argv[1], 'train', sys.argv[2]); print(len(images))", name, out)
    assert printed == [str(int(FIGURES[name][0].split()[0].replace(",", "")))]
    print(f"{name}: index {cost}")
    assert cost["seconds"] < 2 and cost["MB"] < 150


def test_verify_passes_and_then_names_a_file_that_is_gone(official, capsys):
    name, made, out, *_ = official
    args = verify.get_args_parser().parse_args([name, "--data_path", str(out)])
    assert verify.main(args) == 0
    path = (out / "train.txt").read_text().splitlines()[40_000].split()[0]
    target = os.readlink(made.source / path)
    os.remove(made.source / path)
    assert verify.main(args) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if "train.txt:40001" in line and path in line]
    os.symlink(target, made.source / path)


class Looks(Dataset):
    """Path and label of each image, and the picture of one in twenty: what could make a worker's memory its own."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        path, label = os.fsencode(self.images.ids[index]), int(self.images.labels[index])
        width = self.images.image(index).size[0] if index % 20 == 0 else 8
        return len(path), label, width


def private_megabytes(pid):
    """Memory of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def freeze(_worker):
    """The collector writes to every object it visits, so once in a while a worker copies all that the imports made."""
    gc.freeze()


def memory_of_workers(data, epochs):
    """([{pid: private MB} of eight workers after each epoch over data], labels (N,) of the last epoch)."""
    others = {process.pid for process in multiprocessing.active_children()}
    loader = DataLoader(data, batch_size=1024, shuffle=True, num_workers=8, persistent_workers=True, worker_init_fn=freeze)
    memory = []
    for _ in range(epochs):
        labels = np.concatenate([label.numpy() for _, label, _ in loader])
        workers = {process.pid for process in multiprocessing.active_children()} - others
        assert len(workers) == 8
        memory.append({pid: private_megabytes(pid) for pid in workers})
    return memory, labels


@needs_proc
def test_eight_workers_do_not_grow_with_epochs(official):
    name, _, out, *_ = official
    images = build_dataset(name, "train", str(out))
    # Workers that look at a few neighbours only: what they take over them is what looking at all images costs.
    (few,), _ = memory_of_workers(Subset(Looks(images), range(8 * 1024)), epochs=1)
    memory, labels = memory_of_workers(Looks(images), epochs=3)
    assert (np.bincount(labels) == images.class_counts).all()
    most = [max(workers.values()) for workers in (few, *memory)]
    print(f"{name}: private MB of the largest worker: few images {most[0]:.1f}, epochs {[round(mb, 1) for mb in most[1:]]}")
    assert max(memory[2][pid] - memory[0][pid] for pid in memory[0]) < 2 and most[3] - most[0] < 6
