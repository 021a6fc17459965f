"""What is handed to SLURM, without one: the script, the sweep, the flags; and the same jobs on this machine."""
import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from tests.killing import STAGES
from util.args import PROJECT
from util.provenance import git_revision

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")
from submit import slurm, snapshot, sweep  # noqa: E402

GOLDEN = Path(__file__).parent / "golden_sbatch.txt"


def run(*words):
    return slurm.main(slurm.get_args_parser().parse_args(list(map(str, words))))


def test_the_script_is_that_of_the_golden_file(capsys):
    stage = ["@recipes/embedded/finetune.args", "--output_dir", "/runs/tau", "--finetune", "/runs/mgp/last.pth",
             "--num_workers", 7]
    place = ["--nodes", 2, "--gpus_per_node", 8, "--partition", "gpu", "--account", "lab", "--qos", "high", "--constraint",
             "h100", "--mem", "400G", "--time_limit", 600, "--parallel", 2]
    run("finetune", *stage, *place, "--array", "tau=0.5,1,1.5", "--after", "17", "18", "--dry_run")
    assert capsys.readouterr().out == GOLDEN.read_text()


@pytest.mark.parametrize(("flags", "cpus"), [
    (["--dataset", "embedded"], 1), (["--dataset", "cifar100_lt", "--data_path", "/data"], 1),
    (["--dataset", "imagenet_lt", "--data_path", "/data"], 11), (["--dataset", "embedded", "--num_workers", 3], 4),
    (["--dataset", "embedded", "--gpus_per_node", 1], 1),
    (["--dataset", "cifar100_lt", "--data_path", "/data", "--train_crop", "rrc", "--gpus_per_node", 1], 11)])
def test_a_process_asks_for_a_core_and_one_a_loader_worker(flags, cpus, capsys):
    run("pretrain", "@recipes/embedded/pretrain.args", *flags, "--output_dir", "/runs/a", "--dry_run")
    assert capsys.readouterr().out.count(f"--cpus-per-task={cpus}\n") == 1


def test_points_of_a_sweep():
    assert sweep.points([]) == [{}]
    assert sweep.points(["tau=.5,1", "loss=ce,bce"]) == [
        {"tau": ".5", "loss": "ce"}, {"tau": ".5", "loss": "bce"}, {"tau": "1", "loss": "ce"}, {"tau": "1", "loss": "bce"}]
    assert sweep.flags_of({"loss_args": "lam=2 class_weights=None"}) == ["--loss_args", "lam=2", "class_weights=None"]
    assert sweep.folder_of({"tau": ".5", "finetune": "runs/a/last.pth"}) == "tau_.5-finetune_runs_a_last.pth"


@pytest.mark.parametrize(("word", "message"), [
    ("tau", "takes NAME=V1,V2, such as tau=0.5,1,1.5, not 'tau'"), ("tau=", "takes NAME=V1,V2"),
    ("output_dir=a,b", "every job has an --output_dir of its own")])
def test_a_sweep_that_is_none(word, message):
    with pytest.raises(ValueError, match=message):
        sweep.points([word])


def test_a_mistake_in_the_stages_flags_is_told_at_submission(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("finetune", "@recipes/embedded/finetune.args", "--output_dir", tmp_path, "--array", "taau=1,2", "--dry_run")
    assert stop.value.code == 2 and "--taau" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--output_dir is missing"):
        run("finetune", "@recipes/embedded/finetune.args", "--dry_run")


def test_without_sbatch_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no sbatch here: submit from a node of the cluster, or use --where local"):
        run("pretrain", "@recipes/embedded/pretrain.args", "--output_dir", tmp_path / "out")


def test_paths_do_not_depend_on_the_folder():
    found = slurm.absolute("finetune", ["--output_dir", "runs/a", "--data_path", "pipe:cat x/{file}", "--test_prior", "uniform",
                                        "--finetune", "b.pth", "--tau=1", "--resume=c.pth", "--data_path=s3://x"])
    here = str(Path.cwd())
    assert found == ["--output_dir", f"{here}/runs/a", "--data_path", "pipe:cat x/{file}", "--test_prior", "uniform",
                     "--finetune", f"{here}/b.pth", "--tau=1", "--resume", f"{here}/c.pth", "--data_path", "s3://x"]
    with pytest.raises(ValueError, match="--output_dir is empty"):
        slurm.absolute("finetune", ["--output_dir", ""])


def test_the_snapshot_has_the_code_and_no_data(tmp_path):
    code = snapshot.take(tmp_path / "code")
    for name in ("main_pretrain.py", "util/args.py", "recipes/embedded/pretrain.args", "datasets/embedded/__init__.py"):
        assert (code / name).read_bytes() == (PROJECT / name).read_bytes()
    assert not (code / ".git").exists() and not (code / "runs").exists()


@pytest.mark.parametrize("revision", ["a" * 40 + "-dirty", None])
def test_a_job_knows_the_revision_of_its_submission(tmp_path, monkeypatch, revision):
    """Wherever the copy lies: within another git checkout, whose revision is not the code's, too."""
    monkeypatch.setattr(snapshot, "git_revision", lambda: revision)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "another"]
    subprocess.run(commit, check=True, cwd=tmp_path)
    code = snapshot.take(tmp_path / "code")
    spec = importlib.util.spec_from_file_location("copied_provenance", code / "util" / "provenance.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert copied.git_revision() == revision


def test_the_same_jobs_on_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = [*STAGES["pretrain"], "--epochs", 1, "--warmup_epochs", 0, "--batch_size", 512]
    run("pretrain", *few, "--output_dir", tmp_path, "--array", "mask_ratio=.5,.75", "--where", "local", "--side_by_side", 2,
        "--tasks_per_node", 2)
    text = capsys.readouterr().out
    assert text.count(": done") == 2
    for ratio in (".5", ".75"):
        record = json.loads((tmp_path / f"mask_ratio_{ratio}" / "args.json").read_text())
        assert record["args"]["mask_ratio"] == float(ratio) and record["processes"] == 2
        assert record["git"] == git_revision()
    with pytest.raises(SystemExit):
        run("pretrain", *few, "--output_dir", tmp_path / "bad", "--dataset", "folder", "--data_path", "/nowhere", "--where",
            "local")
    assert "FAILED: --dataset folder needs the channel statistics of your images" in capsys.readouterr().out


def test_the_queue_is_read_from_squeue(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.queued() == set()
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\ntest "$4" = --array && echo 17 && echo 18_0 && echo 18_1\n')
    squeue.chmod(0o755)
    assert slurm.queued() == {"17", "18_0", "18_1"}
    squeue.write_text("#!/bin/sh\necho 'error: no\ncontroller' >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"squeue does not answer \(error: no controller\), so it is not known which"):
        slurm.queued()
