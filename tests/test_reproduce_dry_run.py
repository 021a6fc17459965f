"""The script that `submit.reproduce --dry_run` prints, run by sh with a stand-in for Python; and runs that began too early."""
# ruff: noqa: E402
import json
import os
import subprocess

import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

from submit import reproduce, studies_small
from submit.experiment import jobs_of
from submit.filled import Results

# Writes its words down, and answers as submit.slurm does, with ids that count up; fails where its folder is named in $FAILS.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"--output_dir $FAILS"*) exit 1 ;; esac
echo "$(wc -l < "$CALLS"): somewhere"
"""


def run(*words):
    return reproduce.main(reproduce.get_args_parser().parse_args(list(map(str, words))))


@pytest.fixture
def table2():
    """The jobs of the small Table 2: one from nothing, two from one encoder."""
    return jobs_of(studies_small.table2().runs, [0])


@pytest.fixture
def shell(tmp_path, capsys):
    """shell(*flags, fails=folder) runs the script for Table 2: exit code, and the words of each call of python."""
    def call(*flags, fails="nowhere"):
        run("table2", "--scale", "small", "--dry_run", "--output_dir", tmp_path / "out", *flags)
        (tmp_path / "python").write_text(PYTHON)
        (tmp_path / "python").chmod(0o755)
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(["sh"], input=capsys.readouterr().out, text=True, capture_output=True, env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "FAILS": str(fails)})
        return done.returncode, [line.split() for line in calls.read_text().splitlines()]
    return call


def waits(words):
    """Ids behind --after."""
    return words[words.index("--after") + 1:] if "--after" in words else []


def test_on_a_cluster_each_job_waits_for_the_one_that_it_starts_from(shell, table2, tmp_path):
    code, calls = shell()
    assert code == 0 and [words[2] for words in calls] == [job.run.stage for job in table2]
    places = {job.hash: str(number + 1) for number, job in enumerate(table2)}
    assert [waits(words) for words in calls] == [[places[job.after.hash]] if job.after else [] for job in table2]
    assert any(map(waits, calls))
    assert [waits(words) for words in shell("--after", 70, 71)[1]] == [
        ["70", "71", *([places[job.after.hash]] if job.after else [])] for job in table2]


@pytest.mark.parametrize("flags", [[], ["--after", 70], ["--where", "local"]])
def test_the_script_ends_where_a_job_fails_that_others_start_from(flags, shell, table2, tmp_path):
    encoder = next(job for job in table2 if job.run.stage == "pretrain")
    code, calls = shell(*flags, fails=tmp_path / "out" / encoder.folder)
    assert code and len(calls) == 1 + table2.index(encoder)


def test_what_is_finished_or_in_the_queue_is_a_comment(tmp_path, table2, shell, monkeypatch, capsys):
    encoder = next(job for job in table2 if job.run.stage == "pretrain")
    first = next(job for job in table2 if job.run.stage == "finetune" and job.after is None)
    out = tmp_path / "out"
    (out / first.folder).mkdir(parents=True)
    (out / first.folder / "metrics.json").write_text("{}")
    (out / "jobs").mkdir()
    (out / reproduce.HANDED_IN).write_text(json.dumps({encoder.hash: "17_0"}))
    monkeypatch.setattr(reproduce.slurm, "queued", lambda: {"17_0"})
    run("table2", "--scale", "small", "--dry_run", "--output_dir", out)
    text = capsys.readouterr().out
    assert f"# {out / first.folder}: finished" in text and f"# 17_0: {out / encoder.folder}, in the queue already" in text
    assert [waits(words) for words in shell()[1]] == [["17_0"], ["17_0"]]


def test_a_stand_in_is_made_before_it_is_used(tmp_path, capsys):
    run("table7", "--scale", "small", "--dry_run", "--where", "local", "--output_dir", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    for name in ("fashion_100", "fashion_10"):
        made = next(i for i, line in enumerate(lines) if f"stand_ins.make('\"'\"'{name}'" in line)
        used = next(i for i, line in enumerate(lines) if line.startswith("python main_") and f"/data/{name} " in line)
        assert made < used


@pytest.mark.parametrize(("epochs", "counts"), [(None, True), ([60, 60], True), ([34, 60], False)])
def test_a_run_from_an_unfinished_encoder_is_not_that_of_the_table(epochs, counts, tmp_path, table2, capsys):
    job = next(job for job in table2 if job.after)
    (tmp_path / job.folder).mkdir()
    (tmp_path / job.folder / "args.json").write_text(json.dumps({"finetune_epochs": epochs}))
    (tmp_path / job.folder / "metrics.json").write_text('{"overall": 50.0}')
    assert job.finished(tmp_path) == counts and len(Results(tmp_path, [0], False).metrics(job.run)) == counts
    flags = ["table2", "--scale", "small", "--output_dir", tmp_path]
    run(*flags, "--list")
    assert f" {counts:d} finished" in capsys.readouterr().out
    if not counts:
        with pytest.raises(ValueError, match=f"{job.folder} started from {job.after.folder} when that had 34 of 60 epochs"):
            run(*flags, "--where", "local")
