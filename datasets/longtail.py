"""The long-tail rule: how many images each class gets, and which ones. Pure functions, no global random state."""

import hashlib
import math

import numpy as np

HOLD_OUT_SEED = 0x686F6C64  # "hold"


def longtail_counts(n_max, factor, num_classes):
    """Images of each class by the CIFAR rule, n_i = int(n_max * (1 / factor) ** (i / (C - 1))).

    n_max: images of the largest class (position 0), at least 1.
    factor: imbalance factor, largest over smallest class, finite and at least 1 (1: balanced).
    num_classes: C, at least 1; with C = 1 the result is [n_max].
    Returns int64 (C,), never increasing. The rule truncates, so a class is empty where n_max < factor.
    Raises ValueError for a value outside these ranges.
    """
    if not n_max >= 1:
        raise ValueError(f"n_max is {n_max}; expected at least 1 image in the largest class")
    if not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"the imbalance factor is {factor}; expected a finite number >= 1 (1: balanced)")
    if not num_classes >= 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    last = max(num_classes - 1, 1)
    return np.array([int(n_max * (1 / factor) ** (i / last)) for i in range(num_classes)], dtype=np.int64)


def longtail_counts_of(class_counts, factor, class_names=None):
    """Images of each class when a long tail is drawn out of a set that has class_counts (C,): int64 (C,).

    The rule of `longtail_counts` in label order, with the largest n_max for which no class has too few images; for a
    balanced set that is all images of a class. ValueError where a class would have none.
    """
    have = _integers(class_counts, "class_counts")
    if not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"--imb_factor is {factor:g}; expected a finite number >= 1 (1: balanced)")
    low, high = 0, int(have.max(initial=0))
    while low < high:  # the rule grows with n_max, so the largest that fits is found by halving
        middle = (low + high + 1) // 2
        fits = (longtail_counts(middle, factor, len(have)) <= have).all()
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = longtail_counts(low, factor, len(have)) if low else np.zeros_like(have)
    if not counts.size or counts.min() < 1:
        k = int(counts.argmin()) if counts.size else 0
        name = f" ({class_names[k]!r})" if class_names is not None and counts.size else ""
        raise ValueError(f"--imb_factor {factor:g} leaves class {k}{name} without an image: these classes have "
                         f"{min(have.tolist(), default=0)} to {have.max(initial=0)} images; use a smaller factor")
    return counts


def hold_out(labels, class_counts, fraction):
    """Split a training set to choose settings on: positions (N - M,) to train on and (M,) to score, both ascending.

    Of each class fraction of its images, rounded, but at least one where it has two, and never the last one. Which ones
    is a function of (labels, fraction) alone, so that every run and seed is scored on the same images; a smaller slice is
    part of a larger one. ValueError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"--val_fraction is {fraction:g}; expected a share of the training images between 0 and 1")
    counts = _integers(class_counts, "class_counts")
    held = np.clip(np.floor(counts * fraction + 0.5).astype(np.int64), 1, np.maximum(counts - 1, 0))
    # A key of its own: by seed 0 a drawn long tail would hold out what its draw took first.
    scored = draw(labels, np.where(counts > 1, held, 0), HOLD_OUT_SEED)
    return np.setdiff1d(np.arange(len(labels)), scored, assume_unique=True), scored


def draw(labels, counts, seed):
    """Draw counts[k] images of each class k without replacement.

    labels: integers (N,), each in [0, C).  counts: integers (C,), images asked of each class.
    seed: integer >= 0.
    Returns the drawn positions in labels, int64 (sum of counts,), ascending.

    The draw is a function of (labels, counts, seed) alone. Class k takes a prefix of its own permutation, keyed by
    (seed, k): its images do not depend on the other classes' counts, and a smaller draw is part of every larger one.
    Raises ValueError for labels outside [0, C), a negative count or seed, or more images than a class has.
    """
    labels, counts = _integers(labels, "labels"), _integers(counts, "counts")
    if seed < 0:
        raise ValueError(f"the seed of the draw is {seed}; expected an integer >= 0")
    if labels.size and not (labels.min() >= 0 and labels.max() < len(counts)):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {len(counts) - 1}, "
                         f"since counts names {len(counts)} classes")
    drawn = [np.empty(0, dtype=np.int64)]
    for k, count in enumerate(counts.tolist()):
        members = np.flatnonzero(labels == k)
        if not 0 <= count <= len(members):
            raise ValueError(f"class {k}: found {len(members)} images, asked for {count}; "
                             f"ask for 0 to {len(members)} (a smaller n_max, or a larger imbalance factor)")
        # RandomState, because numpy promises never to change its stream; spawn_key keeps (seed, k) pairs distinct.
        bits = np.random.MT19937(np.random.SeedSequence(seed, spawn_key=(k,)))
        drawn.append(members[np.random.RandomState(bits).permutation(len(members))[:count]])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def indices_hash(indices):
    """SHA-256 (64 hex digits) of integers (N,) as little-endian int64 bytes: the identity of a draw, order included.

    Raises ValueError if indices are not integers in one dimension.
    """
    return hashlib.sha256(_integers(indices, "indices").astype("<i8").tobytes()).hexdigest()


def _integers(values, name):
    """values as an int64 array (N,); ValueError if they are not integers in one dimension."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: found dtype {array.dtype}, shape {array.shape}; expected integers of shape (N,)")
    return array.astype(np.int64)
