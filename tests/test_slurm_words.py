"""What submit.slurm makes of the words of a command line: recipes, folders, paths, and messages of what went wrong."""
# ruff: noqa: E402
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
