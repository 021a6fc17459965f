"""--posthoc, --test_prior, --sampler and --loss_args through main([...]), against the arithmetic done by hand."""
import json

import numpy as np
import pytest
import torch

from util.checkpoint import load_checkpoint
from util.losses import build_loss
from util.posthoc import correct

COUNTS = np.array([24, 12, 5])
PI = COUNTS / COUNTS.sum()
NEW = np.array([0.2, 0.3, 0.5])


def logit(p):
    return np.log(p) - np.log1p(-p)


@pytest.fixture(scope="module")
def trained(finetune, encoder, tmp_path_factory):
    """{loss: run folder} of short stages 2."""
    folders = {}
    for loss in ("ce", "bce", "bal_ce", "bal_bce"):
        folders[loss] = tmp_path_factory.mktemp(loss) / "run"
        finetune(folders[loss], "--finetune", encoder, "--loss", loss, "--head_bias", "prior")
    return folders


@pytest.fixture
def evaluate(finetune, tmp_path):
    """evaluate(run folder, *flags) -> logits that were written, metrics that were written."""
    def run(folder, *flags):
        out = tmp_path / f"eval{len(list(tmp_path.iterdir()))}"
        finetune(out, "--eval", "--resume", folder / "last.pth", *flags)
        return np.load(out / "predictions.npz")["logits"].astype(float), json.loads((out / "metrics.json").read_text())
    return run


@pytest.fixture
def prior_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "prior.txt"
    path.write_text("0.2 0.3\n0.5\n")
    return path


def test_without_flags_evaluation_gives_the_numbers_of_training(trained, evaluate):
    for loss, folder in trained.items():
        logits, result = evaluate(folder)
        assert np.array_equal(logits, np.load(folder / "predictions.npz")["logits"].astype(float))
        assert result["overall"] == json.loads((folder / "metrics.json").read_text())["overall"]
        assert result["activation"] == ("sigmoid" if "bce" in loss else "softmax") and result["corrected"] is None


@pytest.mark.parametrize(("loss", "shift"), [
    ("ce", np.log(NEW) - np.log(PI)), ("bce", logit(NEW) - logit(PI)), ("bal_ce", np.log(NEW) - np.log(1 / 3)),
    ("bal_bce", logit(NEW) - logit(1 / 3))])
def test_a_trained_model_is_moved_to_another_test_distribution(trained, evaluate, prior_file, loss, shift):
    before, _ = evaluate(trained[loss])
    after, result = evaluate(trained[loss], "--test_prior", prior_file)
    assert np.allclose(after - before, shift, atol=1e-5) and "prior.txt" in result["corrected"]


def test_posthoc_equals_its_formula(trained, evaluate):
    z, _ = evaluate(trained["bce"])
    after, result = evaluate(trained["bce"], "--posthoc", "logit_adjust", "--tau", .5)
    assert np.allclose(after, z - .5 * logit(PI) + logit(1 / 3), atol=1e-5) and result["corrected"] == "posthoc logit_adjust"
    after, result = evaluate(trained["bce"], "--posthoc", "bayes")
    assert np.allclose(after, -np.logaddexp(0, -z) - np.log(PI) + np.log(1 / 3), atol=1e-5)
    z, _ = evaluate(trained["bal_bce"])
    after, result = evaluate(trained["bal_bce"], "--posthoc", "bayes")
    x = z + logit(PI) - logit(1 / 3)
    assert np.allclose(after, -np.logaddexp(0, -x) - np.log(PI) + np.log(1 / 3), atol=1e-5)
    assert result["activation"] == "softmax"


@pytest.mark.parametrize("loss", ["ce", "bal_ce", "cb_ce", "lade", "mislas", "focal", "bce", "bal_bce", "cb_bce"])
@pytest.mark.parametrize("method", ["logit_adjust", "bayes", "none"])
def test_a_model_that_knows_nothing_is_flat_after_the_correction(loss, method):
    """Its logits are the best constants of its loss; under a uniform test prior no class may come first."""
    criterion = build_loss(loss, [500, 60, 3])
    z = criterion.constant_logits().double()[None]
    scores, _ = correct(z, criterion, method, test_prior="uniform")
    assert float(scores.max() - scores.min()) < 1e-6


def test_a_prior_file_trains_thm_3_and_is_kept_by_its_numbers(finetune, tmp_path, prior_file):
    flags = ["--test_prior", prior_file, "--head_bias", "prior", "--lr", 0, "--min_lr", 0]
    finetune(tmp_path / "run", *flags)
    state = load_checkpoint(tmp_path / "run" / "last.pth")
    assert state["args"]["test_prior"] == [0.2, 0.3, 0.5]
    assert np.allclose(state["model"]["head.bias"], logit(NEW), atol=1e-5)  # logit pi - B
    prior_file.unlink()
    assert finetune(tmp_path / "eval", "--eval", "--resume", tmp_path / "run" / "last.pth")["num_samples"] == 21


def test_samplers_reach_the_batches_and_the_prior(finetune, tmp_path):
    finetune(tmp_path / "a", "--sampler", "class_aware", "--loss", "bce", "--head_bias", "prior", "--lr", 0, "--min_lr", 0)
    bias = load_checkpoint(tmp_path / "a" / "last.pth")["model"]["head.bias"]
    assert np.allclose(bias, logit(1 / 3), atol=1e-5)  # the prior that the sampler makes
    finetune(tmp_path / "b", "--sampler", "class_aware", "--prior", "data", "--lr", 0, "--min_lr", 0, "--loss", "bal_bce",
             "--test_prior", "none", "--head_bias", "prior")
    assert torch.equal(load_checkpoint(tmp_path / "b" / "last.pth")["model"]["head.bias"], torch.zeros(3))


def test_options_of_a_loss(finetune, tmp_path):
    def losses(name, *flags):
        finetune(tmp_path / name, *flags)
        return [json.loads(line)["train_loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    plain = losses("plain", "--loss", "bce")
    assert losses("same", "--loss", "nt_bce", "--loss_args", "lam=1") == pytest.approx(plain, rel=1e-5)
    assert losses("other", "--loss", "nt_bce", "--loss_args", "lam=3") != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize(("flags", "words"), [
    (["--loss", "ce"], "was trained with --loss bal_bce, not ce"), (["--tau", "0.5"], "was trained with --tau 1, not 0.5"),
    (["--test_prior", "nowhere.txt"], "no prior file at nowhere.txt"), (["--sampler", "sqrt"], "trained with --sampler random"),
    (["--loss_args", "lam=2"], "which --eval cannot change")])
def test_what_evaluation_cannot_change_is_refused(finetune, trained, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        finetune(tmp_path / "out", "--eval", "--resume", trained["bal_bce"] / "last.pth", *flags)
