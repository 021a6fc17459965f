"""Class counts, training and test priors, and the class weights that are made out of them.

Everything here runs once, when a loss is built, and in float64: the training loop never touches it.
"""
import json
import math
import numbers
from pathlib import Path

import numpy as np
import torch


def as_vector(values, what):
    """values: a sequence, array or tensor of numbers -> float64 CPU tensor (C,). ValueError if it is anything else."""
    try:
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values)  # torch takes no negative strides, such as those of a reversed array
        vector = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be a sequence of numbers, one a class, got {values!r}") from error
    if vector.ndim != 1:
        raise ValueError(f"{what} must have one dimension (C,), got shape {tuple(vector.shape)}")
    return vector.detach().clone()


def check_counts(class_counts):
    """class_counts: training images of each class -> float64 (C,).

    Zeros are allowed here: only a loss that needs the prior of every class refuses them (`require_images`).
    Fractions are allowed as well, so that a sampler's expected frequencies can stand in for the counts.
    ValueError for fewer than two classes, a negative or non-finite count, or no image at all.
    """
    counts = as_vector(class_counts, "class_counts")
    if len(counts) < 2:
        raise ValueError(f"class_counts must hold at least 2 classes, got {len(counts)}")
    bad = torch.nonzero(~torch.isfinite(counts) | (counts < 0)).flatten()
    if len(bad):
        k = int(bad[0])
        raise ValueError(f"class_counts must be finite and not negative, got {float(counts[k])} for class {k}")
    if counts.sum() == 0:
        raise ValueError("class_counts are all zero: count the training images before the loss is built")
    return counts


def require_images(counts, loss_name, class_names=None, instead="train with 'ce' or 'bce', which need no prior"):
    """Raise ValueError naming the first class without a training image, for losses that need every prior."""
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if not empty:
        return
    k = empty[0]
    name = f" ({class_names[k]!r})" if class_names is not None else ""
    more = f" ({len(empty)} such classes in all)" if len(empty) > 1 else ""
    raise ValueError(
        f"class {k}{name} has no training image{more}, so loss {loss_name!r} has no prior for it: "
        f"drop the class from the data set, or {instead}"
    )


def check_tau(tau):
    """tau -> float. ValueError unless it is a finite number that is not negative."""
    if isinstance(tau, bool) or not isinstance(tau, numbers.Real) or not math.isfinite(tau) or tau < 0:
        raise ValueError(f"tau must be a finite number >= 0 (0 is the plain loss, 1 the paper's), got {tau!r}")
    return float(tau)


def check_test_prior(test_prior, num_classes):
    """test_prior -> float64 (C,) that sums to 1, or None where the pi^t terms are dropped.

    test_prior: "uniform" (1 / C each, Eq. 10), "none" (Thm. 1 and 2), or C positive probabilities (Thm. 3).
    ValueError for another word, a wrong length, a value that is not positive, or a sum that is not 1.
    """
    if isinstance(test_prior, str):
        if test_prior == "none":
            return None
        if test_prior == "uniform":
            return torch.full((num_classes,), 1.0 / num_classes, dtype=torch.float64)
        raise ValueError(
            f"test_prior must be 'uniform', 'none' or {num_classes} probabilities, got {test_prior!r} "
            "(a file of probabilities is read with util.losses.read_prior)"
        )
    prior = as_vector(test_prior, "test_prior")
    if len(prior) != num_classes:
        raise ValueError(f"test_prior must hold {num_classes} probabilities, one a class, got {len(prior)}")
    bad = torch.nonzero(~(torch.isfinite(prior) & (prior > 0))).flatten()
    if len(bad):
        k = int(bad[0])
        raise ValueError(f"test_prior must be positive for every class, got {float(prior[k])} for class {k}")
    total = float(prior.sum())
    # wide enough for float32 files of thousands of classes, narrow enough to catch counts or per cents
    if abs(total - 1.0) > 1e-4:
        raise ValueError(f"test_prior must sum to 1, got {total:.6g}: divide every entry by the sum")
    return prior / total


def read_prior(path, num_classes):
    """Read C probabilities from a text file (numbers between white space), a .json list or a .npy array.

    path: str or Path; num_classes: C. -> float64 (C,), checked as `check_test_prior` does.
    ValueError where the file is missing, is no list of numbers, or is no distribution over C classes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no prior file at {path}: give a text, .json or .npy file of {num_classes} probabilities")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".json":
            values = json.loads(path.read_text())
        else:
            values = [float(word) for word in path.read_text().split()]
        vector = as_vector(values, "the prior")
        return check_test_prior(vector, num_classes)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no prior over {num_classes} classes: {error}") from error


def effective_number_weights(counts, beta):
    """Class weights (1 - beta) / (1 - beta^n_k), scaled to sum to C (Cui et al., CVPR 2019, Eq. 2 and section 4).

    counts: float64 (C,), all positive; beta in [0, 1). -> float64 (C,). ValueError for another beta.
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta must be in [0, 1) (0: no re-weighting, .9999: the paper's), got {beta!r}")
    # -expm1(n log beta) keeps its digits where beta^n is close to 1, as it is for every tail class
    effective = -torch.expm1(counts * math.log(beta)) if beta > 0 else torch.ones_like(counts)
    weights = (1.0 - beta) / effective
    return weights * (len(counts) / weights.sum())
