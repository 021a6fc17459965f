"""Arrays as users hand them in: what they have to be, and blocks of rows for what is too large to be widened as a whole."""
import numpy as np

BLOCK_VALUES = 2**20  # 8 MB of float64: logits are widened a block of rows at a time, never as a whole


def as_array(values) -> np.ndarray:
    """A numpy array of anything array-like, torch tensors on any device included."""
    if hasattr(values, "detach"):  # numpy knows no bfloat16
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def as_logits(logits) -> np.ndarray:
    """Logits (N, C) of any real type, not copied. A ValueError for another shape or type, nan or inf."""
    logits = as_array(logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits of shape {logits.shape}; expected (N, C) with at least one image and one class")
    if logits.dtype.kind not in "fiu":
        raise ValueError(f"logits of type {logits.dtype}; expected real numbers")
    broken = sum(int((~np.isfinite(logits[rows]).all(axis=1)).sum()) for rows in row_blocks(logits))
    if broken:
        raise ValueError(f"{broken} of {len(logits)} rows of logits hold nan or inf; expected finite numbers")
    return logits


def as_labels(labels, name="labels") -> np.ndarray:
    """Labels (N,) as int64. A ValueError, which calls them `name`, for another shape or type."""
    labels = as_array(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{name} of shape {labels.shape} and type {labels.dtype}; expected (N,) integers")
    return labels.astype(np.int64)


def as_counts(class_counts) -> np.ndarray:
    """Training images of each class (C,) as float64. A ValueError where one is negative or not finite."""
    counts = np.asarray(as_array(class_counts), dtype=np.float64)
    if counts.ndim != 1 or not np.all(np.isfinite(counts) & (counts >= 0)):
        raise ValueError(f"class counts of shape {counts.shape}; expected (C,) finite numbers of at least 0")
    return counts


def check_pair(logits, labels) -> None:
    """ValueError unless each row of logits (N, C) has its label, all of them in 0 .. C - 1."""
    if len(logits) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(logits)} rows of logits; expected one label a row")
    check_range(labels, logits.shape[1], "labels")


def check_counts(counts, classes: int) -> None:
    """ValueError unless there is one count a class."""
    if len(counts) != classes:
        raise ValueError(f"{len(counts)} class counts for logits of {classes} classes; expected one count a class")


def check_range(values, num_classes: int, name: str) -> None:
    """ValueError, which calls the values `name`, unless all are in 0 .. num_classes - 1."""
    if len(values) and (values.min() < 0 or values.max() >= num_classes):
        raise ValueError(f"{name} from {values.min()} to {values.max()}; expected 0 to {num_classes - 1}")


def percent(part, whole) -> np.ndarray:
    """100 * part / whole in float64, nan where whole is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    # Multiplied first: the numbers of images are whole, so there is one rounding and 44 of 125 is 35.2.
    return np.divide(100.0 * np.asarray(part), whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def row_blocks(logits) -> list[slice]:
    """Slices over the rows of (N, C), each of about BLOCK_VALUES numbers and at least one row."""
    step = max(1, BLOCK_VALUES // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
