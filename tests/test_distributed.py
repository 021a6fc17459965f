"""Several processes: the same numbers as one, and one end for all of them."""
import json
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import DECODER, TINY
from tests.processes import Processes
from util.checkpoint import load_checkpoint
from util.distributed import World

MAE, VIT = ["--model", "mae_vit_tiny_patch16"], ["--model", "vit_tiny_patch16"]
# 41 images in micro-batches of 11: a step an epoch, 4 micro-batches, the last one short.
DRAWS = ["--epochs", 20, "--batch_size", 11, "--hflip", .5]
MIXED = ["--mixup", .8, "--cutmix", 1, "--drop_path", .3, "--reprob", .5, "--smoothing", .1]


@pytest.fixture
def flags(data_flags):
    """flags(stage, output folder, ...): a command line of the small folder."""
    def of(stage, out, *more):
        return stage, [*data_flags, *TINY, *(MAE + DECODER if stage == "pretrain" else VIT), "--output_dir", out, *more]
    return of


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def result(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_two_and_three_processes_compute_what_one_does(tmp_path, flags, encoder):
    def jobs(name, accum_iter, batch):
        start = ["--finetune", encoder]
        batches = ["--batch_size", batch, "--accum_iter", accum_iter]
        return [flags("pretrain", tmp_path / f"{name}-mgp", *DRAWS, *batches),
                flags("finetune", tmp_path / f"{name}-bft", *DRAWS, *MIXED, *start, *batches, "--eval_every", 20)]
    runs = [Processes(tmp_path, jobs("one", 4, 11)), Processes(tmp_path, jobs("two", 2, 11), 2),
            Processes(tmp_path, jobs("three", 1, 15), 3), Processes(tmp_path, jobs("one-of-15", 3, 15))]
    assert [set(run.end(120).values()) for run in runs] == [{0}] * 4, runs[1].output()
    for one, several in (("one", "two"), ("one-of-15", "three")):
        for stage in ("mgp", "bft"):
            found, expected = losses(tmp_path / f"{several}-{stage}"), losses(tmp_path / f"{one}-{stage}")
            assert len(found) == 20 and found == pytest.approx(expected, rel=1e-5)
        assert len(set(losses(tmp_path / f"{one}-bft"))) == 20
        there, here = (np.load(tmp_path / f"{name}-bft" / "predictions.npz") for name in (one, several))
        assert (there["ids"] == here["ids"]).all() and (there["labels"] == here["labels"]).all()
        np.testing.assert_allclose(here["logits"], there["logits"], rtol=1e-3, atol=1e-4)


def test_without_mixup_one_process_of_twice_the_batch_is_the_same(tmp_path, flags, encoder):
    """A step an epoch, so that the log has the loss of each: masks, dropped paths and erased pieces belong to images."""
    drawn = ["--drop_path", .3, "--reprob", .5, "--smoothing", .1, "--finetune", encoder, "--eval_every", 20]

    def jobs(name, batch):
        batches = [*DRAWS, "--batch_size", batch, "--accum_iter", 2]
        return [flags("pretrain", tmp_path / f"{name}-mgp", *batches),
                flags("finetune", tmp_path / f"{name}-bft", *batches, *drawn)]
    runs = [Processes(tmp_path, jobs("one", 22)), Processes(tmp_path, jobs("two", 11), 2)]
    assert [set(run.end(120).values()) for run in runs] == [{0}, {0}], runs[1].output()
    for stage in ("mgp", "bft"):
        found, expected = losses(tmp_path / f"two-{stage}"), losses(tmp_path / f"one-{stage}")
        assert len(found) == len(set(found)) == 20 and found == pytest.approx(expected, rel=1e-5)
    there, here = (np.load(tmp_path / f"{name}-bft" / "predictions.npz") for name in ("one", "two"))
    np.testing.assert_allclose(here["logits"], there["logits"], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def nineteen(picture_folder, tmp_path_factory):
    """The small folder with 19 test images, which neither 2 nor 3 divide."""
    root = shutil.copytree(picture_folder, tmp_path_factory.mktemp("nineteen") / "data")
    for path in sorted((root / "test").rglob("*.png"))[:2]:
        path.unlink()
    return root


def test_evaluation_is_the_same_over_any_number_of_processes(tmp_path, finetune, nineteen):
    finetune(tmp_path / "run", "--data_path", nineteen)
    runs = {n: Processes(tmp_path, [("finetune", ["--eval", "--resume", tmp_path / "run" / "last.pth", "--data_path", nineteen,
                                                  "--device", "cpu", "--amp", "off", "--num_workers", 0, "--batch_size", 4,
                                                  "--output_dir", tmp_path / str(n)])], n) for n in (1, 2, 3)}
    assert all(set(run.end().values()) == {0} for run in runs.values()), runs[2].output()
    one = result(tmp_path / "1")
    assert one["num_samples"] == 19
    for n in (2, 3):
        several = result(tmp_path / str(n))
        for key, value in one.items():
            if key == "intervals":
                assert several[key]["overall"] == value["overall"]
            elif any(word in key for word in ("nll", "brier", "ece", "mce")):
                assert several[key] == pytest.approx(value, rel=1e-5), key
            else:  # accuracies, the confusion matrix and all else that is counted
                assert several[key] == value, key
        assert sum(map(sum, one["confusion_matrix"])) == 19
        there, here = (np.load(tmp_path / str(m) / "predictions.npz") for m in (1, n))
        assert (there["ids"] == here["ids"]).all() and (there["labels"] == here["labels"]).all()
        np.testing.assert_allclose(here["logits"], there["logits"], rtol=1e-5, atol=1e-6)


def test_fewer_images_than_processes_are_scored_too(tmp_path, finetune, picture_folder):
    root = shutil.copytree(picture_folder, tmp_path / "data")
    for path in sorted((root / "test").rglob("*.png"))[2:]:
        path.unlink()
    for name in ("dog", "elk"):
        (root / "test" / name).rmdir()
    (root / "classes.txt").write_text("cat\ndog\nelk\n")
    finetune(tmp_path / "run", "--data_path", root)
    evaluate = ["--eval", "--resume", tmp_path / "run" / "last.pth", "--device", "cpu", "--amp", "off", "--num_workers", 0]
    run = Processes(tmp_path, [("finetune", [*evaluate, "--output_dir", tmp_path / "three"])], 3)
    assert set(run.end().values()) == {0}, run.output()
    assert result(tmp_path / "three")["overall"] == result(tmp_path / "run")["overall"]
    assert result(tmp_path / "three")["num_samples"] == 2


def stop_in_the_second_step(rank):
    """SIGTERM in the second step that this process takes."""
    import os

    import util.steps
    step, seen = util.steps.Stepper.step, []

    def signalled(self, samples):
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, samples)
    util.steps.Stepper.step = signalled


def test_another_number_of_processes_goes_on_with_the_same_batch(tmp_path, flags):
    more = ["--epochs", 6, "--batch_size", 4, "--accum_iter", 2]
    whole = Processes(tmp_path, [flags("finetune", tmp_path / "whole", *more)], 2)
    cut = Processes(tmp_path, [flags("finetune", tmp_path / "cut", *more)], 2)
    cut.wait_for(lambda: (tmp_path / "cut" / "last.pth").exists())
    cut.kill(1, signal.SIGUSR2)  # one process is told, both stop
    assert set(cut.end().values()) == {75} and set(whole.end().values()) == {0}, cut.output()
    assert load_checkpoint(tmp_path / "cut" / "last.pth")["progress"]["epoch"] < 6
    four = Processes(tmp_path, [flags("finetune", tmp_path / "cut", *more)], 3)
    assert set(four.end().values()) == {2}
    words = "3 processes cannot go on with a run of 16 images a step: that is no multiple of --batch_size 4 x 3"
    assert any(words in four.output(rank) for rank in range(3))
    # One process goes on, is stopped, and goes on once more: the batch is still that of the beginning.
    first = Processes(tmp_path, [flags("finetune", tmp_path / "cut", *more)], before=stop_in_the_second_step)
    assert first.end() == {0: 75}, first.output()
    assert "1 process goes on with what 2 began, still with 16 images a step" in first.output()
    one = Processes(tmp_path, [flags("finetune", tmp_path / "cut", *more)])
    assert one.end() == {0: 0}, one.output()
    assert "3 steps of 16 images an epoch" in one.output()
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


# --- one end for all ---

def poison(rank):
    """The second process's loss is not finite from the fifth step on, in the second epoch."""
    import util.steps
    backward, seen = util.steps.Stepper.backward, []

    def poisoned(self, loss, weight):
        seen.append(1)
        backward(self, loss * float("nan") if rank == 1 and len(seen) > 4 else loss, weight)
    util.steps.Stepper.backward = poisoned


def test_what_is_not_finite_in_one_process_is_skipped_and_ends_in_all(tmp_path, flags):
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", "--max_bad_steps", 3, "--log_every", 1, "--epochs", 9)], 2,
                    before=poison)
    assert run.end() == {0: 1, 1: 1}
    text = run.output()
    assert "warning: loss or gradient was not finite in 3 steps in a row" in text and "Going back, once, to the check" in text
    assert "error: loss or gradient was not finite in 3 steps in a row (epoch" in text
    assert "gradient norm nan" in text and "images, by index" in text and ".png" in text and "lower --blr" in text
    assert "Traceback" not in text + run.output(1)
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_mistake_in_one_process_ends_all_with_its_code(tmp_path, flags):
    stage, good = flags("pretrain", tmp_path / "run", "--epochs", 500)
    # The second one's data are not there, as on a host that has not mounted them.
    run = Processes(tmp_path, [(stage, good)], 2, before=lose_data)
    assert run.end(30) == {0: 2, 1: 2}
    assert "error: --data_path /not/here" in run.output(1)
    assert "process 1 on" in run.output(0) and "/not/here" in run.output(0)


def lose_data(rank):
    """The second process looks for its images elsewhere."""
    import main_pretrain
    load = main_pretrain.load_images

    def elsewhere(args, split):
        args.data_path = "/not/here"
        return load(args, split)
    if rank == 1:
        main_pretrain.load_images = elsewhere


def other_names(rank):
    """The second process finds a class to score under another name, in a folder that sorts alike."""
    import main_finetune
    load = main_finetune.load_for_training

    def renamed(args):
        train, test = load(args)
        test.class_names = ["cat", "dog", "emu"]
        return train, test
    if rank == 1:
        main_finetune.load_for_training = renamed


def another_test_set(rank):
    """The second process scores other images."""
    import main_finetune
    load = main_finetune.load_for_training

    def fewer(args):
        train, test = load(args)
        return train, test.subset(range(20))
    if rank == 1:
        main_finetune.load_for_training = fewer


@pytest.mark.parametrize("before", [other_names, another_test_set])
def test_hosts_whose_classes_or_test_images_differ_are_refused(tmp_path, flags, before):
    run = Processes(tmp_path, [flags("finetune", tmp_path / "run")], 2, before=before)
    assert run.end() == {0: 2, 1: 2}
    assert "error: process 1 reads other images from " in run.output(1)
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_killed_ends_the_others_and_is_named(tmp_path, flags):
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", "--epochs", 5000, "--save_every", 100)], 2)
    run.wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists() and "epoch   1" in run.output())
    run.kill(1, signal.SIGKILL)
    assert run.end(30) == {0: 1, 1: -9}
    assert "error: process 1 (" in run.output() and "of 2 died or hangs: look at its own output" in run.output()
    assert "Traceback" not in run.output()


@pytest.mark.parametrize(("hung", "words"), [(1, ["error: process 1 (", "of 2 died or hangs: look at its own output"]),
                                             (0, ["error: process 0", " answer"])])
def test_a_process_that_hangs_ends_the_others_in_time_and_is_named(tmp_path, flags, hung, words):
    job = ["--epochs", 5000, "--save_every", 5000, "--dist_timeout", 5]
    run = Processes(tmp_path, [flags("pretrain", tmp_path / "run", *job)], 2)
    run.wait_for(lambda: "epoch   1" in run.output())
    run.kill(hung, signal.SIGSTOP)  # the first one holds the store that the others ask
    run.running[1 - hung].join(40)
    run.kill(hung, signal.SIGKILL)
    assert run.end() == {1 - hung: 1, hung: -9}
    assert all(word in run.output(1 - hung) for word in words), run.output(1 - hung)


def test_the_watcher_ends_a_process_whose_store_hangs(monkeypatch, capsys):
    class Ended(BaseException):
        """Stands for the end of the process."""

    def end(code):
        raise Ended(code)
    asked, hung = [], threading.Event()

    def check(keys):
        asked.append(keys)
        return len(asked) > 2 and not hung.wait()  # twice it answers
    monkeypatch.setattr("util.distributed.WATCH_SECONDS", .01)
    monkeypatch.setattr("util.distributed.GRACE_SECONDS", .01)
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(Ended, match="1"):
        World(rank=1, size=2, timeout=.1).watch(SimpleNamespace(check=check))
    hung.set()
    assert len(asked) == 3 and "process 0 on its host failed, so process 1 ends too: no answer for 0.1 s, it died or hangs" \
        in capsys.readouterr().err


def test_a_process_that_does_not_come_is_named(tmp_path, flags):
    job = [flags("pretrain", tmp_path / "run", "--dist_timeout", 1)]
    run = Processes(tmp_path, job, 3, ranks=[0, 2])
    assert run.end(30) == {0: 2, 2: 2}
    assert "error: waited 1 s, and 1 of 3 processes did not come: 1 (process 0 is on" in run.output()
    assert any(word in run.output(2) for word in ("did not come: 1", "process 0 has left meanwhile"))
    alone = Processes(tmp_path, job, 2, ranks=[1])
    assert alone.end(30) == {1: 2} and "for process 0 at 127.0.0.1:" in alone.output(1)
    assert not (tmp_path / "run").exists()
