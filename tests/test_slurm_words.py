"""What submit.slurm makes of the words of a command line: recipes, folders, paths, and messages of what went wrong."""
# ruff: noqa: E402
import os
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

from submit import slurm
from util.args import PROJECT


def run(*words):
    return slurm.main(slurm.get_args_parser().parse_args(list(map(str, words))))


def jobs(*words):
    return slurm.build_jobs(slurm.get_args_parser().parse_args(list(map(str, words))))


def test_a_recipe_is_read_when_the_job_is_handed_in(tmp_path, monkeypatch):
    """Wherever it lies, and with the paths in it; what becomes of it later, or elsewhere, changes nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.args").write_text("--tau 3 # of another recipe\n")
    (tmp_path / "my.args").write_text("@inner.args\n--finetune mgp/last.pth\n--output_dir out\n--opt_betas 0.9 0.99\n")
    (job, folder), = jobs("finetune", f"@{PROJECT}/recipes/embedded/finetune.args", "@my.args")
    for name in ("my.args", "inner.args"):
        (tmp_path / name).unlink()
    monkeypatch.chdir("/")
    assert not [word for word in job.argv if word.startswith("@")] and folder == tmp_path / "out"
    _, args = job.parse()
    assert (args.tau, args.opt_betas, args.epochs) == (3, [0.9, 0.99], 60)
    assert args.finetune == str(tmp_path / "mgp/last.pth") and args.output_dir == str(tmp_path / "out")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_weights_of_either_stage_are_named_from_the_root(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (job, _), = jobs(stage, "--output_dir", "a", "--finetune", "mae.pth")
    (again, _), = jobs(stage, "--output_dir", "a", "--resume=mae.pth")
    assert job.parse()[1].finetune == again.parse()[1].resume == str(tmp_path / "mae.pth")


def test_from_another_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("finetune", f"@{PROJECT}/recipes/embedded/finetune.args", "--output_dir", "a", "--dry_run")
    assert f"--output_dir {tmp_path}/a" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--output_dir=a"], ["--output_dir", "b", "--output_dir", "a"]])
def test_the_folder_is_the_one_that_the_stage_would_write(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (job, folder), = jobs("pretrain", *words)
    assert str(folder) == job.parse()[1].output_dir == str(tmp_path / "a")


def test_paths_of_a_sweep_do_not_depend_on_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [job.parse()[1].finetune for job, _ in jobs("finetune", "--output_dir", "a", "--array", "finetune=b/c.pth,d.pth")]
    assert found == [str(tmp_path / "b/c.pth"), str(tmp_path / "d.pth")]


@pytest.mark.parametrize("word", ["tau=1,2,1", "finetune=a/b.pth,a_b.pth"])
def test_two_jobs_of_a_sweep_do_not_write_one_folder(word, tmp_path):
    with pytest.raises(ValueError, match=f"--array gives two jobs the folder {tmp_path}/(tau_1|finetune_a_b.pth): "):
        jobs("finetune", "--output_dir", tmp_path, "--array", word)


@pytest.mark.parametrize(("words", "message"), [
    (["--output_dir"], "argument --output_dir: expected one argument"),
    (["@nowhere.args", "--output_dir", "a"], "No such file or directory: 'nowhere.args'"),
    (["--output_dir", "a", "--taau", "1"], "unrecognized arguments: --taau 1")])
def test_usage_errors_name_the_module(words, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="submit.slurm")))
    with pytest.raises(SystemExit) as stop:
        run("finetune", *words, "--dry_run")
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert lines[0].endswith("(see python -m submit.slurm --help)")


def test_a_job_that_ended_before_its_stage_tells_why():
    printed = "error: the last but one\nerror: no file x.args\nsrun: error: node1: task 0: Exited with exit code 2\n"
    error = RuntimeError(f"Job 17 (task: 0)\nError stream produced:\n-----\n{printed}slurmstepd: error: *** STEP: _step_signal")
    assert slurm.message_of(error, printed) == "no file x.args"
    assert slurm.message_of(RuntimeError("Traceback\nValueError: no data\n---"), printed) == "no data"
    assert slurm.message_of(RuntimeError("Job 17\nlost"), "") == "lost"


@pytest.mark.parametrize(("words", "message"), [
    (["--where", "local", "--nodes", 4], "--nodes is the cluster's and does nothing with --where local"),
    (["--where", "local", "--partition", "gpu"], "--partition is the cluster's"),
    (["--where", "local", "--after", 99], "--after is the cluster's"),
    (["--side_by_side", 2], "--side_by_side 2 is of --where local: on a cluster use --parallel"),
    (["--gpus_per_node", 2, "--tasks_per_node", 4], "--tasks_per_node 4 is for runs without GPUs"),
    (["--nodes", 0], "--nodes must be at least 1, not 0"),
    (["--gpus_per_node", -2], "--gpus_per_node must be at least 0, not -2"),
    (["--tasks_per_node", 0], "--tasks_per_node must be at least 1, not 0"),
    (["--time_limit", 0], "--time_limit must be at least 1, not 0"),
    (["--parallel", 0], "--parallel must be at least 1, not 0"),
    (["--where", "local", "--side_by_side", 0], "--side_by_side must be at least 1, not 0")])
def test_flags_of_the_cluster_act_or_are_refused(words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run("pretrain", "--dataset", "embedded", "--output_dir", tmp_path, "--dry_run", *words)


def test_here_no_script_of_sbatch_is_printed(tmp_path, capsys):
    run("pretrain", "--dataset", "embedded", "--output_dir", tmp_path, "--dry_run", "--where", "local", "--tasks_per_node", 2)
    text = capsys.readouterr().out
    assert text == f"# main_pretrain.py --dataset embedded --output_dir {tmp_path} --output_dir {tmp_path}\n"


def test_what_sbatch_refuses_is_told_in_its_words(tmp_path, monkeypatch, capsys):
    refuses = ("echo 'sbatch: error: invalid partition specified: nope' >&2\n"
               "echo 'sbatch: error: Batch job submission failed: Invalid partition name' >&2\nexit 1\n")
    for name, text in (("srun", ""), ("sbatch", refuses), ("scontrol", "echo 'MaxArraySize = 1001'\n")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match="^sbatch has not taken the jobs: invalid partition specified: nope; Batch job "
                                         "submission failed: Invalid partition name$"):
        run("pretrain", "--dataset", "embedded", "--output_dir", tmp_path / "out", "--array", "mask_ratio=.5,.7",
            "--partition", "nope")
    assert capsys.readouterr().err == ""
