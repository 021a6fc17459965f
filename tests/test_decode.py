"""Odd and damaged image files: both decoders show the same picture, or name the file and what is wrong with it."""
import contextlib
import io
import os
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageSequence
from sklearn.datasets import load_sample_images

from datasets.decode import ORIENTATION, UnreadableImage, read_image, read_pixels
from datasets.paths import printable

PHOTOGRAPHS = [Image.fromarray(pixels) for pixels in load_sample_images().images]
SMALL = PHOTOGRAPHS[0].resize((60, 40))
RAMP = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 27  # up to 64773: all of 16 bits


def encoded(image, kind="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(header: tuple, rows: bytes) -> bytes:
    """A PNG file of width, height, bit depth, colour type and filtered rows."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def array(picture) -> np.ndarray:
    """(H, W, C) int of either decoder's picture."""
    pixels = picture.permute(1, 2, 0).numpy() if isinstance(picture, torch.Tensor) else np.array(picture)
    return pixels.reshape(*pixels.shape[:2], -1).astype(int)


@pytest.fixture
def both(tmp_path):
    """both(data, channels) -> the picture (H, W, C), which the decoders must agree on to the byte."""
    def read(data, channels=3, name="image.jpg"):
        path = tmp_path / name
        path.write_bytes(data)
        image, pixels = read_image(path, channels), read_pixels(path, channels)
        assert image.mode == ("L" if channels == 1 else "RGB")
        assert pixels.dtype == torch.uint8 and pixels.shape == (channels, image.height, image.width)
        assert np.array_equal(array(image), array(pixels))
        return array(image)
    return read


@pytest.fixture
def refused(tmp_path, capfd):
    """refused(data) -> why, which the decoders must agree on; the message is one line and names the file."""
    def read(data=None, path=None):
        if path is None:
            (path := tmp_path / "image.jpg").write_bytes(data)
        reasons = []
        for decoder in (read_image, read_pixels):
            with pytest.raises(UnreadableImage) as error:
                decoder(path, 3)
            assert str(error.value).startswith(f"cannot read the image {path} ({error.value.reason}): replace it")
            assert len(str(error.value).splitlines()) == 1
            reasons.append(error.value.reason)
        assert reasons[0] == reasons[1]
        return reasons[0]
    return read


def test_without_torchvisions_decoder_the_pixels_are_the_same(both, monkeypatch):
    data = encoded(PHOTOGRAPHS[0])
    fast = both(data)
    monkeypatch.setattr("datasets.decode.decode_jpeg", None)
    assert np.array_equal(both(data), fast)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3},
                                     {"quality": 5}, {"optimize": True}], ids=str)
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_a_plain_jpeg_is_pillows_to_the_byte(both, photograph, options):
    data = encoded(photograph, **{"quality": 90, **options})
    assert np.array_equal(both(data), np.array(Image.open(io.BytesIO(data))))


def test_gray_and_colour_for_one_and_three_channels(both, tmp_path):
    gray = encoded(SMALL.convert("L"), quality=90)
    stored = np.array(Image.open(io.BytesIO(gray))).astype(int)
    assert np.array_equal(both(gray), np.stack([stored] * 3, 2)) and np.array_equal(both(gray, 1), stored[:, :, None])
    (tmp_path / "colour.jpg").write_bytes(encoded(PHOTOGRAPHS[1], quality=90))
    pixels, image = (array(read(tmp_path / "colour.jpg", 1)) for read in (read_pixels, read_image))
    assert pixels.shape == image.shape and np.abs(pixels - image).mean() < 0.6  # a JPEG stores the luminance itself


UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
           8: lambda a: np.rot90(a)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_the_picture(both, orientation, kind):
    exif, options = Image.Exif(), {"lossless": True} if kind == "WebP" else {}
    exif[ORIENTATION] = orientation
    plain = both(encoded(SMALL, kind, **options))
    assert np.array_equal(both(encoded(SMALL, kind, exif=exif, **options)), UPRIGHT[orientation](plain))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0MM\0*\xff\xff\xff\xff",
                                  b"Exif\0\0no TIFF header"], ids=repr)
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_damaged_exif_leaves_the_picture_as_it_is(both, exif):
    plain = encoded(SMALL)
    damaged = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(both(damaged), both(plain))


@pytest.mark.parametrize("make", [
    lambda: encoded(Image.fromarray(RAMP), "PNG"), lambda: encoded(Image.fromarray(RAMP), "TIFF"),
    lambda: b"P5 60 40 65535\n" + RAMP.astype(">u2").tobytes(),
    lambda: encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"),
    lambda: png((60, 40, 16, 2), b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in RAMP))],
    ids=["png", "tiff", "pgm", "big-endian tiff", "colour png"])
def test_16_bits_are_scaled_to_8(both, make):
    assert np.array_equal(both(make()), np.repeat(RAMP[:, :, None] // 256, 3, 2))


def test_cmyk_is_seen_in_its_colours(both):
    data = encoded(SMALL.convert("CMYK"), quality=95)  # inverted, as Adobe's programs write it
    assert Image.open(io.BytesIO(data)).mode == "CMYK" and np.abs(both(data) - np.array(SMALL).astype(int)).mean() < 3


def test_lab_is_seen_in_its_colours_and_in_gray(both):
    # L of 0 to 255 for black to white; a and b around 0, the neutral tones.
    neutral = np.stack([np.linspace(0, 255, 2400).reshape(40, 60).astype(np.uint8), *np.zeros((2, 40, 60), np.uint8)], 2)
    data = encoded(Image.frombytes("LAB", (60, 40), neutral.tobytes()), "TIFF")
    colours, gray = both(data), both(data, 1)
    assert np.abs(colours - gray).max() <= 2 and gray[0, 0, 0] <= 1 and gray[-1, -1, 0] >= 254


def test_palettes_and_transparency(both):
    palette = SMALL.quantize(16)
    colours = np.array(palette.convert("RGB"))
    alpha = Image.fromarray(np.arange(2400).reshape(40, 60).astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(both(encoded(palette, "PNG")), colours)
        assert np.array_equal(both(encoded(palette, "PNG", transparency=bytes(range(16)))), colours)
        assert np.array_equal(both(encoded(palette, "PNG", transparency=3)), colours)
        see_through = SMALL.copy()
        see_through.putalpha(alpha)
        assert np.array_equal(both(encoded(see_through, "PNG")), np.array(SMALL))  # transparency is dropped
        assert set(np.unique(both(encoded(SMALL.convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(both, kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WebP" else {}))
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 2
    assert np.array_equal(both(data), np.broadcast_to([255, 0, 0], (6, 8, 3)))


def test_content_decides_not_the_name(both):
    assert np.array_equal(both(encoded(SMALL, "PNG"), name="image.jpg"), np.array(SMALL))
    assert np.array_equal(both(encoded(SMALL), name="image.png"), both(encoded(SMALL)))


def resized_header(data: bytes, side: int) -> bytes:
    """A JPEG that claims to be side x side."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4:]


@pytest.mark.parametrize(("make", "words"), [
    (lambda: b"", "the file is empty"), (lambda: b"<html>404 Not Found</html>", "no image that Pillow knows"),
    (lambda: encoded(SMALL)[:300], ""), (lambda: encoded(SMALL)[:-20], "image file is truncated"),
    (lambda: encoded(SMALL)[:-1], "image file is truncated"), (lambda: encoded(SMALL, progressive=True)[:-30], "truncated"),
    (lambda: encoded(SMALL, "PNG")[:500], "truncated"), (lambda: encoded(SMALL, "GIF")[:-500], "truncated"),
    (lambda: encoded(SMALL)[:-300] + b"\xff\xd9" + bytes(9), None),
    (lambda: resized_header(encoded(SMALL), 60000), "exceeds limit of"),
    (lambda: png((60000, 60000, 8, 2), b""), "exceeds limit of"),
    (lambda: encoded(SMALL, "EPS"), "PostScript, which is a program and no picture"),
    (lambda: encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "32 bits a pixel (I)"),
    (lambda: encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "32 bits a pixel (F)")])
def test_what_is_no_picture_is_refused_by_both(both, refused, make, words):
    if words is None:  # cut within, but with an end: what Pillow shows of it both show
        both(make())
    else:
        assert words in refused(make())


def test_a_bomb_reaches_no_decoder(refused, monkeypatch):
    bomb = resized_header(encoded(SMALL), 60000)
    monkeypatch.setattr("datasets.decode.decode_jpeg", lambda *_: pytest.fail("10 GB of pixels"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("10 GB of pixels"))
    assert "exceeds limit of" in refused(bomb)


def bind_socket(path):
    """A socket's file, by a short relative path: a longer one does not fit into its address."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def test_files_that_cannot_be_opened(refused, tmp_path):
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    (tmp_path / "a.jpg").symlink_to("b.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    bind_socket(tmp_path / "socket.jpg")
    for name, words in (
            ("broken.jpg", "a link to 'gone.jpg', which is not there"), ("none.jpg", "No such file or directory"),
            ("a.jpg", "Too many levels of symbolic links"), ("folder.jpg", "a folder, not a file"),
            ("pipe.jpg", "a pipe, not a file"), ("socket.jpg", "a socket, not a file"), ("/dev/full", "a device, not a file")):
        assert refused(path=tmp_path / name) == words


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(refused, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(encoded(SMALL))
    (tmp_path / "mine.jpg").chmod(0)
    assert refused(path=tmp_path / "mine.jpg") == "Permission denied"


@pytest.mark.parametrize("name", [b"two\nlines.jpg", b"latin-\xe9.jpg"])
def test_odd_file_names_are_read_and_named_in_one_line(tmp_path, name):
    path = os.path.join(tmp_path, os.fsdecode(name))
    with open(path, "wb") as file:
        file.write(encoded(SMALL))
    assert array(read_image(path, 3)).shape == array(read_pixels(path, 3)).shape == (40, 60, 3)
    os.truncate(path, 0)
    with pytest.raises(UnreadableImage, match="the file is empty") as error:
        read_pixels(path, 3)
    assert len(str(error.value).encode().splitlines()) == 1 and printable(path) in str(error.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=str)
def test_the_decoders_agree_on_every_damage(tmp_path, capfd, options):
    """A hundred files with a few bytes changed: readable for both or for none, and then the same picture."""
    draw, data = np.random.default_rng(0), encoded(SMALL, **options)
    path, readable = tmp_path / "image.jpg", 0
    for _ in range(100):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = draw.integers(len(data), size=draw.integers(1, 4))
        damaged[places] = draw.integers(256, size=len(places))
        path.write_bytes(damaged.tobytes())
        found = []
        for decoder in (read_image, read_pixels):
            try:
                found.append(array(decoder(path, 3)).tolist())
            except UnreadableImage as error:
                found.append(error.reason)
        older = tuple(int(n) for n in torchvision.__version__.split(".")[:2]) < (0, 29)
        if older and options.get("progressive") and isinstance(found[0], list) and isinstance(found[1], list):
            # Where coefficients are missing, the libjpeg of torchvision 0.26 smooths otherwise than Pillow's.
            assert np.abs(np.subtract(*found)).mean() < 2
        else:
            assert found[0] == found[1]
        readable += isinstance(found[0], list)
    assert 10 < readable < 95


def resident() -> float:
    """MiB of memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_decoding_does_not_grow(tmp_path):
    for name, data in (("good.jpg", encoded(PHOTOGRAPHS[0])), ("cut.jpg", encoded(PHOTOGRAPHS[0])[:-50]),
                       ("good.png", encoded(SMALL, "PNG"))):
        (tmp_path / name).write_bytes(data)

    def rounds(count):
        for _ in range(count):
            for name in ("good.jpg", "cut.jpg", "good.png"):
                try:
                    read_pixels(tmp_path / name, 3)
                except UnreadableImage:
                    assert name == "cut.jpg"
        return resident()
    # A picture is 0.8 MiB, so that a leak would be 48 in 60 rounds; the allocator's own cache moves by some.
    before = rounds(100)
    assert rounds(60) - before < 24
