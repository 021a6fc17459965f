"""A table of the paper on a real SLURM: its encoder, the array that waits for it, and what a second call finds."""
# ruff: noqa: E402
import re
import shutil
import time

import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

from submit import reproduce, slurm
from submit.experiment import Table, finetune, jobs_of, metrics_row, pretrain

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not shutil.which("sbatch"), reason="no sbatch here: make test-slurm starts "
                                                    "a SLURM of one machine")]
SHORT = ("--epochs", 1, "--warmup_epochs", 0, "--batch_size", 512, "--lr", 1e-3, "--num_workers", 0)


def study() -> Table:
    """An encoder and two losses from it, an epoch each."""
    start = pretrain("embedded/pretrain", *SHORT)
    rows = tuple(metrics_row(loss, finetune("embedded/finetune", *SHORT, "--loss", loss, after=start), "- - - -")
                 for loss in ("bce", "bal_bce"))
    return Table("An epoch", "Each an epoch.", rows, (("bal_bce", "bce"),))


def run(*words):
    reproduce.main(reproduce.get_args_parser().parse_args(list(map(str, words))))


def test_a_table_is_handed_in_once_and_filled(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(reproduce.SCALES["small"], "table2", study)
    flags = ["table2", "--scale", "small", "--output_dir", tmp_path]
    place = ["--partition", "debug", "--time_limit", 60]
    run(*flags, *place)
    ids = dict(re.findall(r"^(\d+(?:_\d+)?): (\S+)$", capsys.readouterr().out, re.MULTILINE))
    ids = {place: number for number, place in ids.items()}
    jobs = jobs_of(study().runs, [0])
    assert set(ids) == {str(tmp_path / job.folder) for job in jobs} and set(ids.values()) <= slurm.queued()
    run(*flags, *place)  # while the first wait or run
    assert capsys.readouterr().out.count("in the queue already") == 3
    seconds = time.monotonic() + 300
    while set(ids.values()) & slurm.queued():
        assert time.monotonic() < seconds
        time.sleep(0.5)
    run(*flags, *place)
    assert "3 jobs, 3 of them finished" in capsys.readouterr().out
    run(*flags, "--report")
    text = (tmp_path / "reproduce.md").read_text()
    assert "not run" not in text and "| bal_bce - bce |" in text
