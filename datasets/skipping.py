"""Training images of which a few may be unreadable: `--skip_bad_images N`."""
import multiprocessing
from collections.abc import Iterable

import numpy as np

from datasets.decode import UnreadableImage
from datasets.imageset import ImageSet
from datasets.paths import printable

REASON_BYTES = 200


class SkipUnreadable:
    """An image set in which up to `limit` distinct unreadable images are replaced; in all else it is `images`.

    An unreadable image shows the next readable one of its class in index order, wrapping: a function of the files alone,
    so that it does not matter which process reads. What was found is shared with the workers, forked or spawned, and kept
    in checkpoints: the limit is that of a run, however often it is continued.
    """

    def __init__(self, images: ImageSet, limit: int):
        self.images, self.limit = images, limit
        # Locks and memory of the spawn context can be handed to workers of any start method.
        context, slots = multiprocessing.get_context("spawn"), min(limit, len(images))
        self._found = context.Array("q", 1 + slots)  # how many, then their indices
        self._reasons = context.Array("c", slots * REASON_BYTES, lock=False)

    def __getattr__(self, name: str):
        if name.startswith("__"):  # pickle asks before there is an `images`
            raise AttributeError(name)
        return getattr(self.images, name)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int):
        """The image as PIL holds it, or its replacement."""
        return self._readable(self.images.image, index)

    def pixels(self, index: int):
        """The image as a tensor, or its replacement."""
        return self._readable(self.images.pixels, index)

    @property
    def found(self) -> list[tuple[int, str]]:
        """(index, reason) of what was replaced so far, in the order in which it was found."""
        indices = self._indices()
        reasons = [self._reasons[i * REASON_BYTES:(i + 1) * REASON_BYTES].rstrip(b"\0") for i in range(len(indices))]
        return [(index, reason.decode(errors="replace")) for index, reason in zip(indices, reasons, strict=True)]

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(id, reason) of what was replaced so far, in the order of the ids."""
        return sorted((printable(self.images.ids[index]), reason) for index, reason in self.found)

    def remember(self, found: Iterable[tuple[int, str]]) -> None:
        """Take down what other processes, or a run before it was continued, have found, as `found` has it.

        Raises UnreadableImage where that makes more than are allowed.
        """
        together = dict(self.found)
        for index, reason in found:
            together.setdefault(index, reason)
        if len(together) > self.limit:
            names = sorted(printable(self.images.ids[index]) for index in together)
            raise UnreadableImage(f"{len(names)} images cannot be read, more than --skip_bad_images {self.limit} allows: "
                                  f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}: repair the data, or allow more")
        for index, reason in together.items():
            self._count(index, UnreadableImage("", reason))

    def _indices(self) -> list[int]:
        found = self._found.get_obj()
        return found[1:1 + found[0]]

    def _readable(self, read, index: int):
        bad = self._indices()
        if index not in bad:
            try:
                return read(index)
            except UnreadableImage as error:
                self._count(index, error)
        # Only now the others of the class: in all of training that is done for a few images.
        same = np.flatnonzero(self.images.labels == self.images.labels[index])
        for other in np.roll(same, -1 - int(np.searchsorted(same, index)))[:-1].tolist():
            if other not in bad:
                try:
                    return read(other)
                except UnreadableImage as error:
                    self._count(other, error)
        name = self.images.class_names[self.images.labels[index]]
        raise UnreadableImage(f"no image of the class {name!r} can be read, the last one {printable(self.images.ids[index])} "
                              f"({dict(self.found)[index]}): check where the images are")

    def _count(self, index: int, error: UnreadableImage) -> None:
        """Take down an unreadable image, or raise where it is one too many."""
        with self._found.get_lock():
            found, known = self._found.get_obj(), self._indices()
            if index in known:
                return
            if len(known) == self.limit:
                names = [printable(self.images.ids[i]) for i in known[:3]]
                raise UnreadableImage(
                    f"{len(known) + 1} images cannot be read, more than --skip_bad_images {self.limit} allows: now "
                    f"{printable(self.images.ids[index])} ({error.reason}), before it {', '.join(names)}"
                    f"{', ...' if len(known) > 3 else ''}: repair the data, or allow more")
            text = error.reason.encode(errors="replace")[:REASON_BYTES]
            start = len(known) * REASON_BYTES
            self._reasons[start:start + len(text)] = text
            found[1 + len(known)] = index
            found[0] = len(known) + 1  # last: others read without the lock
