"""Tables and figures by name: their jobs, what each job is named by, and that every one of them can be built."""
# ruff: noqa: E402
import functools
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("submitit", reason="jobs are handed in by submitit, which is not installed")

import main_finetune
import main_pretrain
from datasets import find_record
from datasets.folder import folder_images
from datasets.imageset import Record
from datasets.records import OFFICIAL_SIZES
from datasets.transforms import eval_transform, train_transform
from models_mae import as_pair
from submit import cost, paper, reproduce, stand_ins, studies, studies_small
from submit.experiment import DATA, STAGES, Job, finetune, jobs_of, pretrain, training_counts
from util.args import PROJECT, check_common
from util.args_finetune import build_criterion, check_finetune, check_loss_flags, with_loss_defaults
from util.distributed import world
from util.lr import param_groups
from util.setup import Machine, build_training, plan_steps

# A network is built once: its flags, and those that were.
NETWORK = {"model", "patch_size", "embed_dim", "depth", "num_heads", "input_size", "cls_token", "drop_path", "layer_scale",
           "head_std", "norm_pix_loss", "decoder_embed_dim", "decoder_depth", "decoder_num_heads"}
MODELS: dict = {}
# Rows whose total is not the average of their groups, which the tables show.
OTHERWISE = ("ViT-Base, Bal-CE", "ViT-Base, BCE", "ViT-Base, Bal-BCE", "ViT-Large, Bal-CE", "ViT-Large, Bal-BCE")


@functools.cache
def all_jobs(scale):
    """Every job of a scale, seed 0."""
    return jobs_of([run for study in reproduce.SCALES[scale].values() for run in study().runs], [0])


def run(*words):
    return reproduce.main(reproduce.get_args_parser().parse_args(list(map(str, words))))


class Images:
    """What a stage asks of a data set before it reads a picture."""

    def __init__(self, job):
        args = job.parse()
        self.class_counts = training_counts(job.run.data, args.imb_factor)
        self.class_names = [f"class {k}" for k in range(len(self.class_counts))]
        self.record, self.source = find_record(args.dataset, args.mean, args.std), job.run.data

    def __len__(self):
        return int(self.class_counts.sum())


def build(job):
    """All that a job's command line names, at its own size, without memory for the weights; what its main() checks."""
    args, images = job.parse(), Images(job)
    check_common(args)
    machine = Machine(torch.device("cpu"), None, world())
    size, aa = as_pair(args.input_size), None
    if job.run.stage == "finetune":
        check_finetune(args)
        args, aa = with_loss_defaults(args, len(images.class_names)), None if args.aa == "none" else args.aa
        criterion = build_criterion(args, images.class_counts, images.class_names)
        check_loss_flags(args, criterion)
        main_finetune.build_targets(args, len(images.class_names))
        main_finetune.build_erasing(args, torch.device("cpu"))
    with torch.device("meta"):
        words = {name: value for name, value in vars(args).items() if name in NETWORK}
        cosine = job.run.stage == "finetune" and criterion.cosine_head
        key = repr((words, images.record.channels, len(images.class_names), cosine))
        if job.run.stage == "pretrain":
            model = MODELS.get(key) or main_pretrain.build_model(args, images.record.channels)
            groups = param_groups(model, args.weight_decay)
        else:
            model = MODELS.get(key) or main_finetune.build_model(args, images, criterion.cosine_head)
            groups = param_groups(model, args.weight_decay, args.layer_decay)
        MODELS[key] = model
        args = SimpleNamespace(**{**vars(args), "ema": None})  # timm copies no model without memory
        build_training(args, model, groups, plan_steps(args, images, machine.world), machine, 1e-3)
    picture = Image.new("RGB" if images.record.channels == 3 else "L", (40, 30))
    shape = (images.record.channels, *size)
    transform = train_transform(size, images.record, args.train_crop, tuple(args.scale), args.hflip, aa,
                                getattr(args, "color_jitter", 0.0))
    assert transform(picture).shape == shape
    assert eval_transform(size, getattr(args, "crop_pct", 1.0))(picture).shape == shape
    return model


@pytest.mark.parametrize("scale", reproduce.SCALES)
def test_every_job_builds(scale, monkeypatch):
    """Model at its own size, loss, optimiser and transforms; an encoder has the width and depth of the classifier behind it."""
    for place in ("timm.models.vision_transformer.trunc_normal_", "torch.nn.init.trunc_normal_"):
        monkeypatch.setattr(place, lambda weight, *_, **__: weight)  # most of the time, for weights that have no numbers
    built = {}
    for job in all_jobs(scale):
        built[job.hash] = build(job)
        if job.after:
            shapes = [(model.cls_token.shape, len(model.blocks)) for model in (built[job.after.hash], built[job.hash])]
            assert shapes[0] == shapes[1], job
            assert Images(job.after).record.channels == Images(job).record.channels, job


@pytest.mark.parametrize("scale", reproduce.SCALES)
def test_every_printed_command_parses_as_its_job(scale, capsys, tmp_path):
    run("all", "--scale", scale, "--dry_run", "--where", "local", "--output_dir", tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python main_")]
    jobs = all_jobs(scale)
    assert len(lines) == len(jobs) == len(set(lines))
    for job, line in zip(jobs, lines, strict=True):
        python, script, *words = shlex.split(line)
        stage = {"main_pretrain.py": main_pretrain, "main_finetune.py": main_finetune}[script]
        args = stage.get_args_parser().parse_args([word.replace("@", f"@{PROJECT}/") for word in words])
        assert args.output_dir == str(tmp_path / job.folder) and args.seed == job.seed
        assert (args.data_path is None) == (job.run.data == "embedded")
        assert args.finetune == str(tmp_path / job.after.folder / "last.pth") if job.after else "--finetune" not in words
        now, then = (vars(one) for one in (args, job.parse()))
        assert {name for name in now if now[name] != then[name]} <= {"output_dir", "data_path", "finetune", "given"}


def test_counts_are_those_of_the_papers_sets():
    official = {("imagenet_lt", None): 115_846, ("inat18", None): 437_513, ("places_lt", None): 62_500,
                ("imagenet_bal", None): 160_000, ("imagenet_bal_116", None): 116_000, ("cifar10_lt", 100): 12_406,
                ("cifar10_lt", 10): 20_431, ("cifar100_lt", None): 10_847, ("cifar100_lt", 10): 19_573,
                ("cifar100_folder", None): 10_847, ("embedded", None): 4_479,
                ("imagenet_1k", None): OFFICIAL_SIZES["imagenet_1k"]["train"]}
    for (name, factor), images in official.items():
        counts = training_counts(name, factor)
        assert counts.sum() == images and len(counts) == DATA[name].classes


@pytest.mark.parametrize("name", stand_ins.FACTORS)
def test_a_stand_in_has_the_images_that_it_says(name, tmp_path, monkeypatch):
    most = 150 if name == "fashion_100" else 30  # the rule is the same, and a thousand files are slow
    monkeypatch.setattr(stand_ins, "N_MAX", most)
    monkeypatch.setattr(stand_ins, "TEST_IMAGES", 40)
    folder = stand_ins.make(name, tmp_path / name)
    record = Record((0.3,), (0.3,))
    train, test = (folder_images(folder, split, record) for split in ("train", "test"))
    counts = stand_ins.counts_of(name)
    assert train.class_counts.tolist() == counts.tolist() and train.class_names == test.class_names and len(test) == 40
    factor = stand_ins.FACTORS[name]
    assert counts[0] == most and int(most / factor) == counts[-1] and (np.diff(counts) <= 0).all()
    # The label of a file is that of its pixels in the embedded set.
    pixels, labels = stand_ins.available()
    place = len(train) // 2
    found = np.flatnonzero((pixels == np.asarray(train.image(place))).all(axis=(1, 2)))
    names = {stand_ins.file_name(label) for label in labels[found]}
    assert names == {train.class_names[train.labels[place]]}
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    stand_ins.make(name, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == written


def test_the_estimate_is_the_model_that_is_stated():
    mgp = pretrain("imagenet_lt/pretrain")
    job = Job(finetune("imagenet_lt/finetune", after=mgp), 0)
    assert cost.gpu_hours(job, 500) == pytest.approx(115_846 * 100 / 500 / 3600)
    # 49 of 196 patches and the class token in twelve blocks of 768, all of them in eight of 512.
    encoder = 12 * (12 * 50 * 768**2 + 2 * 50**2 * 768)
    decoder = 8 * (12 * 197 * 512**2 + 2 * 197**2 * 512)
    whole = 12 * (12 * 197 * 768**2 + 2 * 197**2 * 768)
    assert cost.gpu_hours(job.after, 500) == pytest.approx(115_846 * 800 / 500 / 3600 * (encoder + decoder) / whole)


def test_list_says_what_is_needed_and_what_is_finished(tmp_path, capsys):
    done = jobs_of(studies_small.figure3().runs, [0])[1]
    (tmp_path / done.folder).mkdir()
    (tmp_path / done.folder / "metrics.json").write_text("{}")
    run("figure3", "figure4", "--scale", "small", "--list", "--output_dir", tmp_path)
    first, second, together, words = capsys.readouterr().out.splitlines()
    assert "1 + 5 jobs of stage 1 + 2, 1 finished" in first and "core minutes; CIFAR-100-LT, factor 100" in first
    assert second.startswith("figure4   no runs") and "1 + 5 jobs" in together and "images x epochs" in words


@pytest.mark.parametrize(("words", "message"), [
    (["table12"], "'table12' is no table or figure: table1, "),
    (["table3", "--scale", "small"], "table3 has no version at --scale small; those that have one: table2, "),
    (["figure3", "--data_path", "DIR"], "takes NAME=DIR with NAME of imagenet_lt, .*, not 'DIR'"),
    (["figure3", "--data_path", "embedded=DIR"], "not 'embedded=DIR'"),
    (["figure3", "--list", "--report", "--dry_run"], "--list and --report and --dry_run print different things: give one"),
    (["figure3", "--batch_size", 0, "--dry_run"], "--batch_size must be at least 1, not 0"),
    (["figure3", "--num_workers", -1, "--dry_run"], "--num_workers must be at least 0, not -1"),
    (["figure3", "--list", "--images_per_second", 0], "--images_per_second must be a finite number above 0, not 0"),
    (["figure3", "--list", "--images_per_second", -5], "--images_per_second must be a finite number above 0, not -5"),
    (["figure3", "--dry_run", "--images_per_second", 900], "--images_per_second 900 is for the GPU hours of --list"),
    (["figure3", "--list", "--scale", "small", "--images_per_second", 900], "is for the GPU hours of --list --scale paper"),
    (["figure3", "--dry_run", "--nodes", 0], "--nodes must be at least 1, not 0"),
    (["figure3", "--scale", "small", "--where", "local"], "no folder data/cifar100_folder for CIFAR-100-LT.*: give --data_path "
     "cifar100_folder=DIR")])
def test_mistakes(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_commands_for_a_cluster(capsys, tmp_path):
    run("figure3", "--dry_run", "--gpus_per_node", 8, "--partition", "gpu", "--batch_size", 32, "--output_dir", tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "submit.slurm" in line]
    assert [line.split("=$(")[-1].split()[:4] for line in lines[:2]] == [["python", "-m", "submit.slurm", stage]
                                                                         for stage in STAGES]
    assert len(lines) > 2 and all(" --batch_size 32 --gpus_per_node 8 --partition gpu" in line for line in lines)
    run("figure3", "--dry_run", "--where", "local", "--gpus_per_node", 8)
    assert "\ntorchrun --nproc_per_node 8 main_pretrain.py @recipes/places_lt/pretrain.args" in capsys.readouterr().out


def test_numbers_of_tables_without_groups():
    """Tables 1, 5 and 7, in which no number follows from others."""
    def numbers(table, columns):
        return {row.name: [row.cells[column].paper for column in columns] for row in table.rows}
    assert numbers(studies.table1(), ("BAL", "LT")) == {"ViT": [38.7, 31.6], "DeiT III": [67.2, 48.4], "MAE": [69.2, 54.5]}
    five = numbers(studies.table5(), ("many", "med.", "few", "all", "ECE", "MCE"))
    assert {name: values for name, values in five.items() if None not in values} == {
        "BAL, CE": [63.7, 57.1, 52.4, 55.9, 1.2, 3.4], "LT, CE": [64.5, 57.5, 52.7, 56.4, 1.2, 3.1],
        "BAL, Bal-BCE": [53.3, 58.8, 60.7, 59.0, 0.8, 1.6], "LT, Bal-BCE": [56.5, 60.8, 61.6, 60.7, 1.0, 2.9]}
    columns = ("CIFAR-10-LT 100", "CIFAR-10-LT 10", "CIFAR-100-LT 100", "CIFAR-100-LT 10")
    assert numbers(studies.table7(), columns) == {
        "CE": [79.2, 89.5, 50.9, 66.1], "CB": [82.0, 89.9, 52.0, 66.8], "LDAM": [78.6, 88.6, 52.56, 66.1],
        "LADE": [68.8, 81.7, 56.7, 68.2], "IB": [75.4, 79.2, 50.8, 51.6], "Bal-CE": [84.4, 90.7, 56.8, 68.1],
        "Bal-BCE": [86.3, 91.3, 58.2, 69.2]}


def test_numbers_of_the_paper():
    """Rows against facts that stand elsewhere in it: totals are averages of the groups, to a rounding."""
    checked = 0
    for study in (studies.table2, studies.table3, studies.table4, studies.table6, studies.table11):
        table = study()
        for row in table.rows:
            numbers = [row.cells[title].paper for title in ("many", "med.", "few", "all")]
            if row.source or None in numbers:
                continue
            total = np.dot(numbers[:3], table.group_sizes) / sum(table.group_sizes)
            assert (total == pytest.approx(numbers[3], abs=0.11)) == (row.name not in OTHERWISE), (table.title, row.name)
            checked += 1
    assert checked > 20
    assert [len(of) for of in (paper.TABLE_2_CITED, paper.TABLE_3_CITED, paper.TABLE_4_CITED)] == [20, 22, 19]
