"""What a user can get wrong: each is a ValueError of one line that says what was found and what to do."""
import json

import numpy as np
import pytest
import torch

from util.losses import LOSSES, build_loss, loss_options, read_prior

COUNTS = [30, 20, 5]
NEEDS_IMAGES = ["bal_ce", "bal_bce", "cb_ce", "cb_bce", "ldam", "lade", "ib", "nt_bal_bce"]


def refused(match, *args, **kwargs):
    with pytest.raises(ValueError, match=match) as error:
        build_loss(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_unknown_loss_lists_the_known():
    refused("unknown loss 'bal-bce'; known: ce, bal_ce, bce, bal_bce", "bal-bce", COUNTS)


def test_unknown_option_lists_the_known():
    refused("unknown option 'gama' of loss 'focal'; known: gamma", "focal", COUNTS, gama=2)
    refused("unknown option 'beta' of loss 'ce'; known: none", "ce", COUNTS, beta=0.9)
    refused("unknown option 'gamma' of loss 'bal_bce'; known: class_weights", "bal_bce", COUNTS, gamma=2)


@pytest.mark.parametrize("name", LOSSES)
def test_every_declared_option_is_accepted(name):
    build_loss(name, COUNTS, **loss_options(name))


@pytest.mark.parametrize("name", NEEDS_IMAGES)
def test_class_without_images_is_named(name):
    names = ["dog", "cat", "owl"]
    refused(r"class 1 \('cat'\) has no training image, .*drop the class", name, [5, 0, 2], class_names=names)
    refused(r"class 0 has no training image \(2 such classes", name, [0, 4, 0])


def test_losses_without_prior_take_an_empty_class():
    for name in set(LOSSES) - set(NEEDS_IMAGES):
        loss = build_loss(name, [5, 0, 2])
        assert loss(torch.zeros(1, 3), torch.tensor([0])).isfinite()
        with pytest.raises(ValueError, match="class 1 has no training image"):
            loss.initial_bias()


@pytest.mark.parametrize("counts, match", [
    ([5], "at least 2 classes"), ([0, 0], "all zero"), ([3, -1], "got -1.0 for class 1"),
    ([3, float("nan")], "finite"), ([[1, 2]], r"shape \(1, 2\)"), ("many", "sequence of numbers")])
def test_bad_counts(counts, match):
    refused(match, "bal_ce", counts)


@pytest.mark.parametrize("counts", [tuple(COUNTS), np.array(COUNTS), torch.tensor(COUNTS)])
def test_counts_of_any_sequence(counts):
    assert torch.equal(build_loss("bal_ce", counts).bias, build_loss("bal_ce", COUNTS).bias)


@pytest.mark.parametrize("tau", [-0.1, float("inf"), float("nan"), "1", None, True])
def test_bad_tau(tau):
    refused("tau must be a finite number >= 0", "bal_bce", COUNTS, tau=tau)


@pytest.mark.parametrize("prior, match", [
    ("prior.txt", "'uniform', 'none' or 3 probabilities.*read_prior"),
    ([0.5, 0.5], "3 probabilities, one a class, got 2"),
    ([0.5, 0.5, 0.0], "positive for every class, got 0.0 for class 2"), ([30, 20, 5], "sum to 1, got 55"),
    ([0.5, 0.4, float("nan")], "positive"), ([[1 / 3] * 3], "one dimension")])
def test_bad_test_prior(prior, match):
    refused(match, "bal_bce", COUNTS, test_prior=prior)
    refused(match, "bce", COUNTS, test_prior=prior)


def test_uniform_prior_as_a_list_is_uniform():
    for name in ("bal_ce", "bal_bce", "lade", "nt_bal_bce"):
        listed = build_loss(name, COUNTS, test_prior=np.full(3, 1 / 3, dtype=np.float32))
        torch.testing.assert_close(listed.bias, build_loss(name, COUNTS).bias)


@pytest.mark.parametrize("name, options, match", [
    ("bce", {"class_weights": [1, 2]}, "3 positive numbers"), ("bal_bce", {"class_weights": [1, 0, 1]}, "positive"),
    ("cb_ce", {"beta": 1.0}, "beta"), ("cb_bce", {"beta": -0.1}, "beta"), ("focal", {"gamma": -1}, "gamma"),
    ("ldam", {"scale": 0}, "scale > 0"), ("ldam", {"max_margin": -1}, "max_margin"),
    ("ldam", {"drw_epoch": 1.5}, "drw_epoch"), ("ib", {"warmup_epochs": -1}, "warmup_epochs"),
    ("lade", {"weight": -1}, "weight"), ("lade", {"remine_lambda": float("nan")}, "remine_lambda"),
    ("ib", {"alpha": 0}, "alpha > 0"), ("ib", {"epsilon": 0}, "epsilon > 0"),
    ("mislas", {"head_smoothing": 1.0}, "head_smoothing < 1"), ("mislas", {"tail_smoothing": 0.5}, "tail_smoothing"),
    ("mislas", {"shape": "flat"}, "known: concave, linear, convex"),
    ("nt_bce", {"lam": 0}, "lam"), ("nt_bal_bce", {"lam": float("inf")}, "lam")])
def test_bad_options(name, options, match):
    refused(match, name, COUNTS, **options)


def test_bad_batches():
    loss = build_loss("bal_bce", COUNTS)
    z, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    for logits, targets, match in (
        (torch.zeros(4, 5), y, r"shape \(N, 3\), got torch.float32 \(4, 5\): the head and class_counts"),
        (z.long(), y, "floating point"), (z[0], y, r"shape \(N, 3\)"), (z[:0], y[:0], "batch is empty"),
        (z, y[:2], r"labels of shape \(4,\)"), (z, y.float(), r"distributions of shape \(4, 3\)"),
        (z, torch.zeros(4, 3).long(), "integer labels"), (z, y.bool(), "torch.bool"),
        (z, torch.zeros(4, 2), "distributions"),
    ):
        with pytest.raises(ValueError, match=match):
            loss(logits, targets)


def test_missing_features():
    loss = build_loss("ib", COUNTS)
    for features in (None, torch.zeros(3), torch.zeros(2, 8)):
        with pytest.raises(ValueError, match=r"penultimate layer, \(4, D\).*features=features"):
            loss(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), features=features)


def test_a_cosine_head_has_no_bias():
    with pytest.raises(ValueError, match="cosine classifier.*--head_bias zero"):
        build_loss("ldam", COUNTS).initial_bias()


def test_read_prior(tmp_path):
    values = [0.5, 0.3, 0.2]
    files = {"a.txt": "0.5 0.3\n0.2\n", "b.json": json.dumps(values), "c.npy": None}
    for name, text in files.items():
        path = tmp_path / name
        np.save(path, values) if text is None else path.write_text(text)
        torch.testing.assert_close(read_prior(path, 3), torch.tensor(values, dtype=torch.float64))
        torch.testing.assert_close(build_loss("bal_ce", COUNTS, test_prior=read_prior(str(path), 3)).bias,
                                   build_loss("bal_ce", COUNTS, test_prior=values).bias)


@pytest.mark.parametrize("name, content, match", [
    ("a.txt", b"0.5 0.5", "3 probabilities, one a class, got 2"), ("a.txt", b"0.5 x 0.2", "could not convert"),
    ("a.txt", b"3 2 1", "sum to 1, got 6"), ("a.txt", b"", "got 0"), ("b.json", b"{}", "sequence of numbers"),
    ("b.json", b"[0.5,", "no prior"), ("c.npy", b"not numpy", "no prior"), ("d.txt", b"\xff\xfe", "no prior")])
def test_bad_prior_files(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as error:
        read_prior(path, 3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_prior_file(tmp_path):
    with pytest.raises(ValueError, match="no prior file at"):
        read_prior(tmp_path / "none.txt", 3)
