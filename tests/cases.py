"""Logits and labels that several tests of metrics share."""
import numpy as np


def random_case(seed, images=400, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += rng.uniform(0, 3, images)
    return (logits * rng.uniform(0.3, 3)).astype(np.float32), labels
