"""Which training images an epoch of stage 2 draws, and which prior a loss has to follow: `--sampler`, `--prior`.

An epoch is len(labels) draws whatever the sampler, and a function of (labels, sampler, seed, epoch) alone: every process
computes the same order and takes its own part of it.

    random       every image once
    class_aware  every class equally often (Shen et al., "Relay Backpropagation", ECCV 2016, section 3.2)
    sqrt         class k in proportion to sqrt(n_k) (Mahajan et al., "Exploring the Limits of Weakly Supervised
                 Pretraining", ECCV 2018, section 2.2)
"""
import numpy as np

from util.seed import derive_seed

# Relative frequency of the classes in an epoch, from their numbers of images (C,).
SAMPLERS = {
    "random": lambda counts: counts,
    "class_aware": np.ones_like,
    "sqrt": np.sqrt,
}

# Losses whose value depends on the class counts, so that a balancing sampler beside them would balance twice.
REBALANCING = {"bal_ce", "bal_bce", "nt_bal_bce", "cb_ce", "cb_bce", "ldam", "lade", "ib", "mislas"}
PRIORS = ("sampler", "data")


def expected_frequencies(kind, class_counts, class_names=None) -> np.ndarray:
    """Share of each class among the draws of an epoch: float64 (C,), sums to 1. It is the prior that training sees.

    kind: a key of SAMPLERS; class_counts: training images of each class (C,); class_names: C names for messages.
    ValueError for an unknown kind, counts that are none, or a class without images under class_aware.
    """
    if kind not in SAMPLERS:
        raise ValueError(f"unknown sampler {kind!r}; known: {', '.join(SAMPLERS)}")
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum() > 0:
        raise ValueError(f"class counts of shape {counts.shape}; expected (C,) finite numbers >= 0, not all of them 0")
    weights = SAMPLERS[kind](counts)
    impossible = np.flatnonzero((counts == 0) & (weights > 0))
    if len(impossible):
        k = int(impossible[0])
        name = f" ({class_names[k]!r})" if class_names is not None else ""
        more = f" ({len(impossible)} such classes in all)" if len(impossible) > 1 else ""
        raise ValueError(f"--sampler {kind} cannot draw class {k}{name}: it has no training image{more}; drop the class "
                         "from the data set, or use --sampler random or sqrt")
    return weights / weights.sum()


def epoch_order(kind, labels, num_classes, seed, epoch) -> np.ndarray:
    """Images that epoch `epoch` draws, in order: int64 (N,) positions in labels, N = len(labels).

    labels: integers (N,), each in [0, num_classes); kind: a key of SAMPLERS. Class k is drawn floor(N f_k) or
    ceil(N f_k) times, f of `expected_frequencies`, and N f_k times in expectation. Within a class every image is drawn
    floor or ceil of (draws / images) times, each image equally often in expectation. The order is shuffled as a whole.
    ValueError for an unknown kind, labels that are none, or a class that cannot be drawn.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"labels of type {labels.dtype}, shape {labels.shape}; expected integers (N,), N at least 1")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}")
    # RandomState, because numpy promises never to change its stream (as in datasets/longtail.py).
    random = np.random.RandomState(np.random.MT19937(derive_seed(seed, "order", kind, epoch)))
    images = np.bincount(labels, minlength=num_classes)
    draws = _round(len(labels) * expected_frequencies(kind, images), random)

    # A random permutation, sorted by class: within each class a permutation of its own, and the place of an image in it.
    shuffled = random.permutation(len(labels))
    shuffled = shuffled[np.argsort(labels[shuffled], kind="stable")]
    own = labels[shuffled]
    place = np.arange(len(labels)) - (np.cumsum(images) - images)[own]
    # Round-robin through the permutation: whole rounds, then the images at its head once more.
    times = draws[own] // images[own] + (place < draws[own] % images[own])
    return random.permutation(np.repeat(shuffled, times)).astype(np.int64)


def repeat_draws(order: np.ndarray, times: int) -> np.ndarray:
    """The head of an epoch's order (N,), each draw `times` times side by side: int64 (N,), N / times draws, the last cut short.

    Repeated augmentation (Hoffer et al., CVPR 2020): the copies stand at positions of their own, which is what their
    augmentations are drawn for.
    """
    return np.repeat(order[:-(-len(order) // times)], times)[:len(order)]


def _round(expected, random):
    """Integers (C,), each the floor or ceiling of expected (C,) and equal to it in the mean, with the same sum.

    Systematic sampling of the fractional parts: marks one apart, from a uniform start, on the parts laid end to end.
    The parts lie in random order, so that no two classes are bound to be rounded up, or never to be, together.
    """
    nearest = np.rint(expected)
    # N f_k that is a whole number must not be rounded, though its float is a last digit away from it.
    expected = np.where(np.isclose(expected, nearest, rtol=1e-12, atol=1e-12), nearest, expected)
    whole = np.floor(expected)
    order = random.permutation(len(expected))
    ends = np.cumsum((expected - whole)[order])
    ends[-1] = np.rint(ends[-1])  # a whole number by definition, but for float's last digit
    marks = np.minimum(np.floor(ends + random.random_sample()), ends[-1])  # 2 + (1 - 2^-53) is 3
    extra = np.empty_like(whole)
    extra[order] = np.diff(marks, prepend=0)
    return (whole + extra).astype(np.int64)


def check_prior_rule(loss_name, kind, prior, class_counts, class_names=None) -> np.ndarray:
    """Class counts (C,) float64 that the loss shall be built with, in images an epoch (fractions are expectations).

    The prior of a loss follows the distribution the sampler produces: N f_k. A loss of REBALANCING with a balancing
    sampler would balance twice or not at all, depending on what is meant, so it needs the word:
    prior "sampler" (what the sampler produces), "data" (the training images themselves), or None (not said).
    ValueError where the word is missing, or where it would do nothing (--sampler random). Groups and reports keep the
    training counts.
    """
    frequencies = expected_frequencies(kind, class_counts, class_names)
    counts = np.asarray(class_counts, dtype=np.float64)
    if prior not in (None, *PRIORS):
        raise ValueError(f"unknown prior {prior!r}; known: {', '.join(PRIORS)}")
    if kind == "random":
        if prior is not None:
            raise ValueError(f"--prior {prior} does nothing with --sampler random, which draws the data as they are: "
                             "leave it out")
        return counts
    if prior is None and loss_name in REBALANCING:
        raise ValueError(f"--loss {loss_name} and --sampler {kind} both re-balance the classes: say --prior sampler "
                         "(class counts as the sampler draws them) or --prior data (as the training set has them), or "
                         "leave one of the two out")
    return counts if prior == "data" else frequencies * counts.sum()
