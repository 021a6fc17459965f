"""From a file to a picture: Pillow is the reference, torchvision's JPEG decoder the fast way to the same pixels.

Both ways look at an image as a photograph program does: by its content, not its name; turned as EXIF says; the first frame
of an animation; 16 bits scaled to 8; palettes and CMYK as colours. Transparency is dropped, as Pillow's convert does and
with it the training code of the field, so a transparent pixel shows the colour that is stored for it.
"""
import contextlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from datasets.paths import open_file, printable

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that a later one goes without; Pillow gives the same pixels, slower
    decode_jpeg = None

REMEDY = "replace it or take it out of the data set; of training images, --skip_bad_images N passes over a few"
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


class UnreadableImage(ValueError):
    """An image file that no picture comes out of; the message names it, `reason` is why ("" where a worker raised it)."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def read_image(path: str | Path, channels: int) -> Image.Image:
    """The picture in a file: mode "L" for 1 channel, "RGB" for 3. UnreadableImage where there is none."""
    with named(path), open_file(path) as file:
        return decode_image(file, channels)


def read_pixels(path: str | Path, channels: int) -> torch.Tensor:
    """The same picture as (channels, H, W) uint8, channels last in memory. UnreadableImage where there is none."""
    with named(path), open_file(path) as file:
        return decode_pixels(file, channels)


def decode_image(file: BinaryIO, channels: int) -> Image.Image:
    """`read_image` of an open file or BytesIO; raises whatever Pillow does."""
    with Image.open(file) as image:
        return photograph(image, channels)


def decode_pixels(file: BinaryIO, channels: int) -> torch.Tensor:
    """`read_pixels` of an open file or BytesIO; raises whatever Pillow does."""
    with Image.open(file) as image:  # reads the header alone, and refuses more pixels than Pillow's limit
        if decode_jpeg and image.format == "JPEG" and image.mode in ("L", "RGB") and turn(image) is None:
            file.seek(0)
            data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
            # What torchvision refuses (arithmetic coding, damage) Pillow reads, or says what is wrong with it.
            with contextlib.suppress(RuntimeError):
                return decode_jpeg(data, ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB)
        return to_tensor(photograph(image, channels))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """PIL image -> (C, H, W) uint8, channels last in memory, as PIL and JPEG decoders have them."""
    array = np.array(image)  # a copy: PIL's buffer is read-only
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def photograph(image: Image.Image, channels: int) -> Image.Image:
    """An opened image -> its picture, upright, 8 bits a channel, mode "L" or "RGB"."""
    if image.format == "EPS":  # Pillow would have Ghostscript run it, where that is installed
        raise ValueError("PostScript, which is a program and no picture")
    image.load()
    upright = turn(image)
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM"):
        # Pillow's convert would clip at 255. The high byte, which is what Pillow takes of 16-bit colours.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32 bits a pixel ({image.mode}), which have no black and white: save it with 8 or 16")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without a warning for every file
    elif image.mode == "LAB":
        image = image.convert("RGB")  # Pillow knows no way from there to gray
    image = image.convert("L" if channels == 1 else "RGB")
    return image if upright is None else image.transpose(upright)


def turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an opened image upright; None where it is, or where its EXIF data are damaged."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # noqa: BLE001  the parsers of metadata raise anything; no picture is unreadable for them
        return None


@contextlib.contextmanager
def named(path: str | Path, remedy: str = REMEDY):
    """Turn whatever the body raises for an image into an UnreadableImage of one line that names it, and says the remedy."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  on damaged files image parsers raise anything from KeyError to struct.error
        why = reason(error, path)
        raise UnreadableImage(f"cannot read the image {printable(path)} ({why}): {remedy}", why) from None


def reason(error: Exception, path: str | Path) -> str:
    """One line that says why `path` is no picture."""
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"a link to {os.readlink(path)!r}, which is not there"
    if isinstance(error, UnidentifiedImageError):  # Pillow's message names an object in memory
        return "the file is empty" if os.path.isfile(path) and not os.path.getsize(path) else "no image that Pillow knows"
    words = " ".join((isinstance(error, OSError) and error.strerror or str(error)).split())
    usual = isinstance(error, OSError | SyntaxError | ValueError | Image.DecompressionBombError) and words
    return words if usual else f"{type(error).__name__} {words}".strip()
