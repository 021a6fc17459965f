"""Data sets by name: `build_dataset(name, split, ...)`."""
from datasets.embedded import load as load_embedded
from datasets.folder import folder_images
from datasets.imageset import ArrayImages, ImageSet, Record


def _embedded(split: str, data_path: str | None, record: Record | None) -> ImageSet:
    from datasets import embedded
    if data_path is not None or record is not None:
        raise ValueError("--dataset embedded ships with the project and knows its statistics: leave out --data_path, "
                         "--mean and --std")
    images, labels, ids = load_embedded(split)
    return ArrayImages(images, labels, embedded.CLASS_NAMES, Record((embedded.MEAN,), (embedded.STD,)), ids,
                       source=f"{embedded.FILE.name}:{split}")


def _folder(split: str, data_path: str | None, record: Record | None) -> ImageSet:
    if data_path is None:
        raise ValueError("--dataset folder needs --data_path DIR, a tree DIR/train/<class>/*, DIR/test/<class>/*")
    if record is None:
        raise ValueError("--dataset folder needs the channel statistics of your images: --mean and --std, numbers in "
                         "[0, 1], one a channel (ImageNet's are --mean .485 .456 .406 --std .229 .224 .225)")
    return folder_images(data_path, split, record)


DATASETS = {"embedded": _embedded, "folder": _folder}


def build_dataset(name: str, split: str, data_path: str | None = None, mean: tuple[float, ...] | None = None,
                  std: tuple[float, ...] | None = None) -> ImageSet:
    """One split ("train", "val" or "test") of a data set of `DATASETS`.

    mean, std: channel statistics in [0, 1] for sets that have no record of their own. ValueError for an unknown name
    or split, a missing path, or statistics that are missing, superfluous or impossible.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std go together: give both or neither")
    record = None if mean is None else Record(tuple(mean), tuple(std))
    return DATASETS[name](split, data_path, record)
