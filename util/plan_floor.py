"""The floor that training has to beat: what a linear model makes of the same images in a minute or two."""
import numpy as np
import torch

from datasets.imageset import ImageSet
from datasets.longtail import draw
from datasets.transforms import eval_transform
from util import metrics
from util.linprobe import probe_logits
from util.probes import Features, features
from util.run import say
from util.seed import derive_seed
from util.trained import Trained, own_pool

SIDE = 16  # pixels of the pictures that the regression sees, at most


def sample(images: ImageSet, most: int) -> ImageSet:
    """At most so many of the images, but two of each class, one of which the probe holds out to choose its C: small classes
    whole, the large ones cut to one size."""
    counts = images.class_counts
    if len(images) <= most:
        return images
    low, high = min(2, int(counts.max())), int(counts.max())
    while low < high:  # the largest size to which the classes are cut
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= most else (low, middle - 1)
    return images.subset(draw(images.labels, np.minimum(counts, low), derive_seed("floor")))


def thinned(images: ImageSet, most: int) -> ImageSet:
    """At most so many of the images that are scored, drawn evenly, so that their classes keep their shares."""
    if len(images) <= most:
        return images
    # RandomState, because numpy promises never to change its stream.
    random = np.random.RandomState(np.random.MT19937(derive_seed("floor", len(images))))
    return images.subset(np.sort(random.permutation(len(images))[:most]))


def pixels(images: ImageSet, size: tuple[int, int]) -> Features:
    """The images as rows of small pictures in [0, 1]."""
    side = [min(SIDE, length) for length in size]
    small = eval_transform(tuple(side), 1.0)
    rows = [small(images.image(i)).flatten() for i in range(len(images))]
    return Features(torch.stack(rows).float() / 255, torch.from_numpy(images.labels))


def floor(train: ImageSet, scored: ImageSet, most: int, size: tuple[int, int], encoder: Trained | None,
          amp: torch.dtype | None) -> tuple[str, dict] | None:
    """(what it is, result of metrics.evaluate_logits) of a balanced linear model on at most `most` images of each set, or two
    of each class to fit; None where no class has a second training image, without which its C cannot be chosen.

    On the features of an encoder where there is one, else on small pixels; groups follow all training images.
    """
    if train.class_counts.max() < 2:
        return None
    fit, judged = sample(train, most), thinned(scored, most)
    if len(fit) > most:
        say(f"note: the floor is fitted to {len(fit):,} images, more than --floor_images {most}: two of each class are needed")
    if encoder:
        values = [features(encoder, images, own_pool(encoder), 64, amp=amp) for images in (fit, judged)]
        what = f"linear probe of {encoder.name}"
    else:
        values = [pixels(images, size) for images in (fit, judged)]
        what = f"balanced logistic regression on {min(SIDE, size[0])} x {min(SIDE, size[1])} pixels"
    logits = probe_logits(values[0], values[1].values, len(train.class_names), None, balanced=True)
    cut = f", {len(fit):,} images to fit and {len(judged):,} scored" * ((fit is not train) or (judged is not scored))
    return what + cut, metrics.evaluate_logits(logits, values[1].labels, train.group_counts)
