"""benchmarks.processes: its table, and that no run is left behind."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import processes
from util.args import run_command


def command(monkeypatch, *flags):
    """The command as the command line does it."""
    monkeypatch.setattr(sys, "argv", ["processes.py", *flags])
    run_command(processes.get_args_parser(), processes.main)


class MadeUpRun:
    """A run of training that has written what it would, and ends with an exit code when one waits for it."""

    def __init__(self, out: Path, speeds: list[float], returncode: int):
        out.mkdir()
        (out / "log.jsonl").write_text("\n".join(json.dumps({"images_per_second": value}) for value in speeds))
        self.code, self.returncode, self.terminated = returncode, None, False

    def wait(self) -> int:
        self.returncode = self.code
        return self.code

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.terminated = True


def test_the_table_of_processes(monkeypatch, capsys):
    """First and last epochs that are far off; between them 1000 images a second of one, 2400 of three together, 800, 900 and
    1000 of those apart, and in the second round half of one's speed and a third of the others': ratios are of a round's own."""
    def started(words, **_):
        count, out = int(words[words.index("--nproc_per_node") + 1]), Path(words[words.index("--output_dir") + 1])
        index, run = map(int, out.name.split("-"))  # five folders a round
        kind, later = index % 5, index // 5
        assert count == (3 if kind == 1 else 1)
        speed = (1000, 2400, 800 + 100 * run)[kind] / (1 + later * (2 if kind else 1))
        first, last = {(1, 0): (1, 2), (2, 1): (1, 1.5), (2, 2): (1.5, 1)}.get((kind, run), (1, 1))  # at other times
        return MadeUpRun(out, [9e6, first * speed, speed, last * speed, 9e6], 0)
    monkeypatch.setattr(subprocess, "Popen", started)
    command(monkeypatch, "--processes", "3", "--rounds", "2", "--epochs", "5")
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    rows = [["1", "process", "750", "1.00", "1.00", "-", "1.00", "1000", "1.00"],
            ["3", "together", "1600", "2.00", "1.80", "-", "2.20", "4800", "4.80"],
            ["3", "apart", "1800", "2.25", "2.02", "-", "2.48", "3200", "3.20"]]
    assert table == [["pretrain"], *rows, ["finetune"], *rows]


def test_a_run_that_fails_ends_those_beside_it(monkeypatch, capsys):
    runs = []

    def started(words, **_):
        fails = len(runs) == 3  # the second of three apart
        runs.append(MadeUpRun(Path(words[words.index("--output_dir") + 1]), [1, 1, 1], 2 if fails else 0))
        return runs[-1]
    monkeypatch.setattr(subprocess, "Popen", started)
    failed = "main_pretrain.py (processes together: 1; run 2 of 3) ended with exit code 2"
    for flags, message in ((["--processes", "3"], failed), (["--epochs", "2"], "at least 3")):
        with pytest.raises(SystemExit) as ended:
            command(monkeypatch, *flags)
        assert ended.value.code == 2 and message in capsys.readouterr().err
    assert [run.terminated for run in runs] == [False] * 4 + [True]
    assert all(run.poll() is not None for run in runs)
