"""Flags, and how recipes are read: no flag that nothing reads, a typing mistake is an error."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import main_finetune
import main_pretrain

PROJECT = Path(main_pretrain.__file__).parent
STAGES = {"pretrain": main_pretrain, "finetune": main_finetune}


def attributes_read(stage: str) -> set[str]:
    """Flags that the code of a stage reads as args.NAME. (test_flags_act shows that they act.)"""
    read = set()
    for path in [PROJECT / f"main_{stage}.py", *PROJECT.glob("util/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                read.add(node.attr)
    return read


@pytest.mark.parametrize("stage", STAGES)
def test_no_flag_that_nothing_reads(stage):
    parser = STAGES[stage].get_args_parser()
    names = {action.dest for action in parser._actions} - {"help"}
    assert names - attributes_read(stage) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_help_parses_and_explains(stage):
    run = subprocess.run([sys.executable, PROJECT / f"main_{stage}.py", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "--effective_batch_size" in run.stdout and run.stderr == ""


def test_recipes_take_comments_and_later_flags_win(tmp_path):
    recipe = tmp_path / "a.args"
    recipe.write_text("# a comment\n\n--epochs 7   # another\n--input_size 16 24\n--norm_pix_loss\n")
    args = main_pretrain.get_args_parser().parse_args([f"@{recipe}", "--epochs", "9"])
    assert (args.epochs, args.input_size, args.norm_pix_loss) == (9, [16, 24], True)


@pytest.mark.parametrize("text", ["--epoch 7\n", "epochs 7\n", "--epochs seven\n", "--epochs\n"])
def test_a_recipe_line_that_nothing_knows_is_an_error(tmp_path, text, capsys):
    (tmp_path / "a.args").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main_pretrain.get_args_parser().parse_args([f"@{tmp_path / 'a.args'}"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_happens_at_import():
    code = "import main_pretrain, main_finetune, sys; print(len(sys.argv))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert (run.stdout, run.stderr) == ("1\n", "")
