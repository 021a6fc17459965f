"""Flags and recipes: each flag acts, each recipe parses and builds, a typing mistake is an error."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import main_finetune
import main_pretrain

PROJECT = Path(main_pretrain.__file__).parent
STAGES = {"pretrain": main_pretrain, "finetune": main_finetune}
RECIPES = sorted((PROJECT / "recipes").glob("*/*.args"))


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


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_parses_and_says_what_it_is(path):
    stage = "pretrain" if path.name.startswith("pretrain") else "finetune"
    args = STAGES[stage].get_args_parser().parse_args([f"@{path}"])
    assert args.epochs > args.warmup_epochs and path.read_text().startswith("# Stage")


# Table 10 of the paper, row by row.
TABLE_10 = {
    "imagenet_lt": dict(mgp=(800, 40, 4096, 224), bft=(100, 10, 1024, 224), drop_path=0.1, tau=1),
    "inat18": dict(mgp=(800, 40, 4096, 128), bft=(100, 10, 1024, 224), drop_path=0.2, tau=1),
    "places_lt": dict(mgp=(800, 40, 4096, 224), bft=(30, 5, 1024, 224), drop_path=0.1, tau=1.05),
}


@pytest.mark.parametrize("name", TABLE_10)
def test_recipes_equal_the_papers_tables_9_and_10(name):
    row = TABLE_10[name]
    mgp, bft = (STAGES[s].get_args_parser().parse_args([f"@{PROJECT / 'recipes' / name / s}.args"]) for s in STAGES)
    for args, expected in ((mgp, row["mgp"]), (bft, row["bft"])):
        assert (args.epochs, args.warmup_epochs, args.effective_batch_size, *args.input_size) == expected
        assert args.weight_decay == 0.05 and args.hflip == 0.5 and args.train_crop == "rrc"
    assert (mgp.blr, mgp.min_lr, mgp.opt_betas, mgp.mask_ratio, mgp.scale) == (1.5e-4, 0, [0.9, 0.95], 0.75, [0.2, 1])
    assert (mgp.decoder_embed_dim, mgp.decoder_depth, mgp.decoder_num_heads, mgp.norm_pix_loss) == (512, 8, 16, True)
    assert (bft.blr, bft.min_lr, bft.opt_betas, bft.layer_decay) == (1e-3, 1e-6, [0.9, 0.99], 0.75)
    assert (bft.drop_path, bft.tau, bft.loss, bft.test_prior) == (row["drop_path"], row["tau"], "bal_bce", "uniform")
    assert (bft.aa, bft.mixup, bft.cutmix, bft.reprob, bft.remode) == ("rand-m9-mstd0.5-inc1", 0.8, 1, 0.25, "pixel")


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
