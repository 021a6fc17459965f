"""A plan for a folder of pictures: what it proposes is what the stages take, and the README's five commands run."""
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_finetune
import main_pretrain
import predict
from datasets import build_dataset
from datasets.imageset import ArrayImages, Record
from tests.foreign import as_published, small_mae
from tests.report_cases import stand_in
from util import figures, metrics, plan, plan_cost, plan_floor, plan_recipe, report
from util.args import check_common
from util.args_finetune import check_finetune
from util.plan_cost import Cost

README = (Path(plan.__file__).parent.parent / "README.md").read_text()
STAGES = {"main_pretrain.py": main_pretrain, "main_finetune.py": main_finetune, "predict.py": predict, "util.report": report,
          "util.plan": plan}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One step of each kind is enough to see that it is timed, and two epochs that what is planned runs; nothing is drawn."""
    monkeypatch.setattr(plan_cost, "ENOUGH", 0.0)
    monkeypatch.setattr(plan_cost, "ROUNDS", 1)
    monkeypatch.setattr(plan_recipe, "LEAST", (2, 2))
    monkeypatch.setattr("datasets.loading.worker_count", lambda images, given, device=None: given or 0)
    monkeypatch.setattr(main_pretrain, "show_reconstructions", lambda *_: None)
    for name in ("training_curves", "per_class_accuracy", "reliability_diagram", "confusion"):
        monkeypatch.setattr(figures, name, lambda path, *_: path)
    stand_in(monkeypatch)


@pytest.fixture
def photographs(picture_folder, tmp_path, monkeypatch):
    """The small folder under the README's name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("photographs").symlink_to(picture_folder)
    return Path("photographs")


def called(command):
    """Run a printed command in this process."""
    _, *words = shlex.split(command)
    name, *flags = words[words[0] == "-m":]
    return STAGES[name].main(STAGES[name].get_args_parser().parse_args(flags))


def planned(*flags):
    return plan.main(plan.get_args_parser().parse_args(["--device", "cpu", "--amp", "off", *map(str, flags)]))


def flags_in(path):
    return dict(line.split(" ", 1) if " " in line else (line, "") for line in Path(path).read_text().splitlines()[1:])


def test_the_five_commands_of_the_readme(photographs, capsys):
    chapter = README[README.index("## Train on your own images"):]
    commands = re.search(r"```\n(.*?)```", chapter, re.DOTALL).group(1).splitlines()
    assert len(commands) == 5 and commands[0].startswith("python -m util.plan --data_path photographs --hours ")
    printed = called(re.sub(r"--hours \S+", "--hours 1e-9", commands[0]) + " --device cpu --amp off")
    out = capsys.readouterr().out
    assert printed == commands[1:] and all(f"\n  {command}\n" in out + "\n" for command in printed)
    assert "41 training images in 3 classes, 24 down to 5 (factor 4.8; 0 many, 1 medium, 2 few-shot); 21 of test" in out
    assert "shorter side 16 to 16 pixels" in out and "start: better from an existing MAE encoder: you have 41 images" in out
    assert "2 epochs of stage 1 and 2 of stage 2 with 64 images a step" in out
    assert "note: that is more than --hours 1e-09 although it is short" in out
    for command in printed:
        called(command)
    run = Path("runs/own")
    assert (run / "report.html").is_file() and len((run / "predictions.csv").read_text().splitlines()) == 1 + 21
    assert (run / "bft" / "metrics.json").is_file()
    with pytest.raises(ValueError, match="runs/own has pretrain.args, finetune.args, mgp, bft already: give another --out"):
        called(commands[0])


def test_an_encoder_of_others_takes_the_place_of_stage_1(photographs, capsys):
    path = as_published(small_mae().state_dict(), "mae.pth")
    with pytest.raises(ValueError, match="32 wide, which is none of the named sizes"):
        planned("--data_path", photographs, "--finetune", path)
    torch.manual_seed(0)
    own = small_mae().state_dict()
    Path("mae").mkdir()
    as_published(own, "mae/pytorch_model.bin")
    Path("mae/config.json").write_text('{"num_attention_heads": 2, "image_size": 16}')
    commands = planned("--data_path", photographs, "--finetune", "mae", "--hours", "1e-9")
    out = capsys.readouterr().out
    assert "start: from mae, without stage 1" in out and "linear probe of mae, " in out and "ImageNet's, as MAE's" in out
    assert [command.split()[1] for command in commands] == ["main_finetune.py", "-m", "predict.py"]
    assert "--finetune mae " in commands[0] and not Path("runs/own/pretrain.args").exists()
    flags = flags_in("runs/own/finetune.args")
    assert [flags[f"--{name}"] for name in ("input_size", "patch_size", "embed_dim", "depth", "num_heads")] == [
        "16", "4", "32", "2", "2"]
    called(commands[0])
    assert "the published form of MAE and LiVT: 28 tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize(("present", "flag", "looked_at"), [
    (["train", "val"], ("--split", "val"), "val"), (["train"], ("--val_fraction", "0.2"), "train")])
def test_what_is_scored_where_there_is_no_test(photographs, present, flag, looked_at, capsys):
    Path("some").mkdir()
    for split in present:
        (Path("some") / split).symlink_to((photographs / split).resolve())
    *_, fine, _, prediction = planned("--data_path", "some", "--hours", "1e-9", "--floor_images", 0)
    assert flags_in("runs/own/finetune.args")[flag[0]] == flag[1] and f" some/{looked_at} " in prediction
    assert flag[0] not in flags_in("runs/own/pretrain.args")
    seen = f"\n  {prediction}  # trained on four fifths of them: new pictures tell more\n"
    assert (seen in capsys.readouterr().out) == (looked_at == "train")
    assert main_finetune.get_args_parser().parse_args(shlex.split(fine)[2:]).data_path == "some"


def test_gray_pictures_and_a_name_with_blanks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a b", "#c"):
            folder = tmp_path / "my 'pictures'" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(draw.integers(0, 256, (40, 90), dtype=np.uint8)).save(folder / f"{i}.png")
    first = planned("--data_path", "my 'pictures'", "--hours", "1e-9", "--out", "a plan")[0]
    args = main_pretrain.get_args_parser().parse_args(shlex.split(first)[2:])
    assert args.data_path == "my 'pictures'" and len(args.mean) == 1 and args.input_size == [32]
    assert args.device == "cpu" and args.amp == "off"  # as it was timed
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "my 'pictures'/train").glob("*/*"))]) / 255
    assert args.mean[0] == pytest.approx(pixels.mean(), abs=1e-4) and args.std[0] == pytest.approx(pixels.std(), abs=1e-4)


@pytest.mark.parametrize(("flags", "words"), [
    (["--hours", "0"], "--hours must be a finite number above 0, not 0"),
    (["--floor_images", "-1"], "--floor_images must not be negative: -1"),
    (["--out", "file/x/y"], "--out file/x/y cannot be written: "), (["--out", "file"], "/file is no folder; give another"),
    (["--data_path", "nowhere"], "nowhere has no folder train/")])
def test_what_cannot_be_planned(photographs, flags, words):
    Path("file").touch()
    with pytest.raises(ValueError, match=re.escape(words)):
        planned("--data_path", photographs, *flags)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the image .*a/x.png .UnidentifiedImageError.: find all of these with"):
        planned("--data_path", tmp_path)


@pytest.mark.parametrize("images", [50, 4_999, 5_000, 20_000, 115_846, 1_281_167])
@pytest.mark.parametrize("side", [28, 64, 100, 375])
def test_every_proposal_is_one_that_the_stages_take(images, side, tmp_path):
    found = plan_recipe.networks(side, images)
    assert [n.name.split("_")[0] for n in found] == ["tiny", "tiny", "small", "base"][:1 + (images >= 5e3) + (images >= 2e4)
                                                                                      + (images >= 1e5)]
    assert all(max(n.size) >= min(side, 224) for n in found)
    data = {"dataset": "folder", "data_path": "x", "mean": [0.5], "std": [0.5]}
    for network in found:
        for share in (0.0, 0.3, 1.0):
            length = plan_recipe.length(network, images, share, True)
            assert length.batches[0] * 25 <= max(images, 64 * 25)
            for stage, flags in plan_recipe.recipe(data, network, length, 16).items():
                path = tmp_path / f"{stage}.args"
                path.write_text(plan_recipe.text("title", flags))
                main = STAGES[f"main_{'pretrain' if stage == 'pretrain' else 'finetune'}.py"]
                args = main.get_args_parser().parse_args([f"@{path}"])
                check_common(args)
                if stage == "pretrain":
                    model = main.build_model(args, 1) if network.small else None
                    assert model is None or model.patch_size == network.patch
                else:
                    check_finetune(args)
                assert args.effective_batch_size % args.batch_size == 0
    if images == 115_846 and side == 375:  # the paper's
        assert plan_recipe.length(found[-1], images, 1.0, True) == ((800, 100), (4096, 1024), 10)


def test_the_largest_network_for_which_the_time_is_enough(monkeypatch, capsys):
    images = ArrayImages(np.zeros((20_000, 2, 2), np.uint8), np.arange(20_000) % 2, ["a", "b"], Record((.5,), (.5,)),
                         np.arange(20_000), "made up")
    data = plan.Pictures(images, images.subset(np.arange(2)), {}, 32)
    costs = {96: 1e-6, 192: 1e-4, 384: 1e-3}  # 600 epochs of 20,000 images: .003, .33 and 3.3 hours
    monkeypatch.setattr(plan, "measure", lambda network, *_: Cost(costs[network.width], costs[network.width], 0., 64, None))
    candidates = plan_recipe.networks(32, 20_000)
    for hours, width, epochs in ((12, 384, (400, 200)), (1, 384, (120, 60)), (.8, 192, (400, 200)), (1e-5, 96, (2, 2))):
        args = plan.get_args_parser().parse_args(["--data_path", "x", "--hours", str(hours)])
        network, cost, length = plan.choose(args, data, candidates, torch.device("cpu"), None)
        assert (network.width, length.epochs) == (width, epochs)
    assert "3.3 hours for 400 + 200 epochs" in capsys.readouterr().out
    assert sum(cost.hours(20_000, 2, (400, 200), 10)) == pytest.approx(600 * 20_000 * 1e-6 / 3600)


def test_too_much_at_once_is_halved(picture_folder, monkeypatch):
    images = build_dataset("folder", "train", picture_folder, (.3,) * 3, (.2,) * 3)
    network = plan_recipe.networks(16, 41)[0]

    def steps(*args):
        if args[-2] > fits:
            raise torch.OutOfMemoryError("too much")
        return [1.0, 2.0, 0.5]
    monkeypatch.setattr(plan_cost, "steps", steps)
    monkeypatch.setattr(plan_cost, "loading", lambda *_: [0.25, 0.25, 0.25])
    fits = 16
    cost = plan_cost.measure(network, images, torch.device("cpu"), None, 64)
    assert (cost.batch_size, cost.pretrain, cost.finetune, cost.evaluate) == (16, 1.25, 2.25, 0.75)
    fits = 0
    with pytest.raises(ValueError, match="does not fit into the memory of cpu"):
        plan_cost.measure(network, images, torch.device("cpu"), None, 64)


def test_the_floor_is_a_balanced_regression_on_small_pictures(picture_folder):
    from sklearn.linear_model import LogisticRegression
    train, test = (build_dataset("folder", split, picture_folder, (.3,) * 3, (.2,) * 3) for split in ("train", "test"))
    what, result = plan_floor.floor(train, test, 1000, (32, 32), None, None)
    assert what == "balanced logistic regression on 16 x 16 pixels"
    x, queries = (np.stack([np.asarray(images.image(i)).transpose(2, 0, 1).ravel() for i in range(len(images))]) / 255
                  for images in (train, test))
    mean, std = x.mean(0), np.sqrt(x.var(0) + 1e-6)
    model = LogisticRegression(C=1e-4, class_weight="balanced", max_iter=1000).fit((x - mean) / std, train.labels)
    expected = metrics.evaluate_logits(model.decision_function((queries - mean) / std), test.labels, train.class_counts)
    assert result["overall"] == expected["overall"] and result["nll"] == pytest.approx(expected["nll"], rel=1e-3)


def test_the_floor_is_fitted_to_small_classes_whole():
    labels = np.repeat([0, 1, 2], [500, 40, 3])
    images = ArrayImages(np.zeros((543, 2, 2), np.uint8), labels, list("abc"), Record((.5,), (.5,)), np.arange(543), "made up")
    assert plan_floor.sample(images, 100).class_counts.tolist() == [57, 40, 3]
    assert plan_floor.sample(images, 2).class_counts.tolist() == [2, 2, 2]  # one of them chooses C
    assert plan_floor.sample(images, 543) is images
    assert len(plan_floor.thinned(images, 100)) == 100


def test_a_thousand_classes_and_more_have_a_floor(monkeypatch, capsys):
    labels = np.repeat(np.arange(1001), 3)
    images = ArrayImages(np.zeros((3003, 2, 2), np.uint8), labels, list(map(str, range(1001))), Record((.5,), (.5,)),
                         np.arange(3003), "made up")
    asked = []

    def fitted(train, queries, classes, *_, **__):
        asked.append(np.bincount(train.labels, minlength=classes))
        return np.zeros((len(queries), classes))
    monkeypatch.setattr(plan_floor, "probe_logits", fitted)
    what, _ = plan_floor.floor(images, images.subset(np.arange(10)), 2000, (2, 2), None, None)
    assert asked[0].tolist() == [2] * 1001 and "2,002 images to fit and 10 scored" in what
    assert "fitted to 2,002 images, more than --floor_images 2000: two of each class are needed" in capsys.readouterr().out
    alone = images.subset(np.arange(0, 3003, 3))
    assert plan_floor.floor(alone, alone, 2000, (2, 2), None, None) is None


def test_the_recipes_are_there_whatever_becomes_of_the_floor(photographs, monkeypatch):
    def failing(*_):
        raise ValueError("no floor")
    monkeypatch.setattr(plan, "floor", failing)
    with pytest.raises(ValueError, match="no floor"):
        planned("--data_path", photographs, "--hours", "1e-9")
    assert Path("runs/own/pretrain.args").is_file() and Path("runs/own/finetune.args").is_file()


def test_images_are_normalised_as_the_weights_say(tmp_path):
    torch.manual_seed(0)
    state, folder = small_mae().state_dict(), tmp_path / "timm"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    config = {"model_args": {"num_heads": 2}, "pretrained_cfg": {"mean": [.5, .5, .5], "std": [.5, .5, .5]}}

    def start(*flags):
        args = plan.get_args_parser().parse_args(["--data_path", "x", *map(str, flags)])
        encoder, words = plan.start_of(args, torch.device("cpu"))
        return encoder and (encoder.record.mean, encoder.record.std), words
    (folder / "config.json").write_text(json.dumps(config))
    assert start("--finetune", folder) == (((.5,) * 3, (.5,) * 3), f", those of {folder}")
    given = ["--mean", .1, .2, .3, "--std", .4, .5, .6]
    assert start("--finetune", folder, *given) == (((.1, .2, .3), (.4, .5, .6)), ", those given")
    config.pop("pretrained_cfg")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="timm's form and does not say how its images are normalised: give --mean and --std"):
        start("--finetune", folder)
    as_published(state, folder / "pytorch_model.bin")
    statistics, words = start("--finetune", folder)
    assert statistics == plan.IMAGENET and "as MAE's published weights have them" in words
    with pytest.raises(ValueError, match="give them with --finetune"):
        start(*given)
