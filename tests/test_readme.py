"""What README.md shows is what runs."""
import importlib
import re
import shlex
from pathlib import Path

import pytest

import main_finetune
import main_pretrain
import predict

PROJECT = Path(main_pretrain.__file__).parent
README = (PROJECT / "README.md").read_text()
STAGES = {"main_pretrain.py": main_pretrain, "main_finetune.py": main_finetune, "predict.py": predict}


def commands():
    """Every command of the README's code blocks that starts a stage, continuation lines joined."""
    for block in re.findall(r"```(?:\w*)\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            # Recipes that util.plan has yet to write: tests/test_plan.py runs these.
            if re.match(r"python (main_|predict\.py|-m (datasets|util|submit|benchmarks)\.)", line) and "@runs/" not in line:
                yield line


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_parses(command, monkeypatch):
    monkeypatch.chdir(PROJECT)
    script, *flags = shlex.split(command, comments=True)[1:]
    if script == "-m":
        if flags[0] in ("submit.slurm", "submit.reproduce"):
            pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")
        # util.metrics is a library that many import; its command lies beside it
        module = importlib.import_module(flags[0].replace("util.metrics", "util.metrics_command"))
        parser, flags = module.get_args_parser(), flags[1:]
    else:
        parser = STAGES[script].get_args_parser()
    parser.parse_args([flag for flag in flags if flag not in ("[runs/other", "...]")])


def test_the_five_lines_of_python_run_as_they_stand(capsys):
    section = README[README.index("use the losses in your own project"):]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert len(code.strip().splitlines()) == 5
    names = {}
    exec(code, names)
    assert names["loss"].isfinite() and names["logits"].grad.shape == names["logits"].shape


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:[\w]+/)*[\w]+\.(?:py|md|args|txt))`", README))
    ignored = {"prior.txt", "pretrain.args", "finetune.args", "ImageNet_LT_test.txt"}  # a user's
    ignored |= {"bad_images.txt", "bad_step.txt"}  # a run's
    assert named and [name for name in named - ignored if not name.startswith("DIR/") and not (PROJECT / name).exists()] == []
    pictures = set(re.findall(r"]\((docs/\S+)\)", README + (PROJECT / "RESULTS.md").read_text()))
    assert pictures and [name for name in pictures if not (PROJECT / name).exists()] == []


def test_every_test_that_is_named_exists():
    named = set(re.findall(r"`(tests/\w+\.py)::(\w+)`", README))
    assert len(named) > 30
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in (PROJECT / path).read_text()] == []
    assert "`::" not in README


def test_no_path_of_a_machine_in_the_repository():
    import subprocess
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    files = listed.stdout.split() if listed.returncode == 0 else []
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|mnt|scratch|Users)/\w")
    found = [f"{name}: {match.group()}" for name in files if name.endswith((".py", ".md", ".args", ".toml", "Makefile"))
             for match in pattern.finditer((PROJECT / name).read_text()) if name != "tests/test_readme.py"]
    assert found == []
