"""2D images: read as Pillow or tifffile read them, or refused with a code."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cmt_med.base.errors import DataError
from cmt_med.data.case import COLOURS, Case
from cmt_med.data.volumes.decoder import decode
from cmt_med.data.volumes.gate import load_case, load_labels
from cmt_med.data.volumes.grid import Grid
from cmt_med.data.volumes.written import write_volume

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (11, 17), np.uint8)
DEEP = RNG.integers(0, 65536, (11, 17)).astype(np.uint16)
RGB = RNG.integers(0, 256, (11, 17, 3), np.uint8)
ALPHA = np.dstack([RGB, np.full((11, 17), 255, np.uint8)])
CLEAR = np.dstack([RGB, RNG.integers(0, 256, (11, 17), np.uint8)])
MASK = (GREY > 128).astype(np.uint8) * 255
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, *[0] * 756]
GREYS = [value for i in range(256) for value in (255 - i,) * 3]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def pillow(array: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    return saved(image.convert(mode) if mode else image, kind, **options)


def indexed(palette: list[int], kind: str, indices: np.ndarray | None = None) -> bytes:
    image = Image.fromarray(GREY % 4 if indices is None else indices).convert("L")
    found = Image.frombytes("P", image.size, image.tobytes())
    found.putpalette(palette)
    return saved(found, kind)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png_of(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def with_exif(turned: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turned
    return saved(Image.fromarray(RGB), kind, exif=exif.tobytes(), **options)


def by_pillow(content: bytes, mode: str | None = None) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    return np.asarray(image.convert(mode) if mode else image)


def moving(kind: str) -> bytes:
    frames = [Image.fromarray(np.roll(GREY, i, 0)) for i in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def with_previews() -> bytes:
    """A multi-picture JPEG, as telephones write it."""
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[:5, :5])]
    return saved(frames[0], "MPO", save_all=True, append_images=frames[1:])


ONE_BIT = GREY > 100
READ: dict[str, tuple[str, Callable[[], bytes], Callable[[bytes], np.ndarray]]] = {
    "grey png": ("a.png", lambda: pillow(GREY, "PNG"), lambda _: GREY),
    "16-bit grey png": ("a.png", lambda: pillow(DEEP, "PNG"), lambda _: DEEP),
    "1-bit png": ("a.png", lambda: pillow(ONE_BIT, "PNG"), lambda _: ONE_BIT.astype(np.uint8) * 255),
    "2-bit grey png": ("a.png", lambda: png_of(4, 1, 2, 0, b"\0\x1b"), lambda c: by_pillow(c, "L")),
    "4-bit grey png": ("a.png", lambda: png_of(4, 1, 4, 0, b"\0\x0f\x5a"), lambda c: by_pillow(c, "L")),
    "colour png": ("a.png", lambda: pillow(RGB, "PNG"), lambda _: RGB),
    "interlaced by another name": ("a.jpg", lambda: pillow(RGB, "PNG"), lambda _: RGB),
    "opaque alpha": ("a.png", lambda: pillow(ALPHA, "PNG"), lambda _: RGB),
    "opaque grey alpha": ("a.png", lambda: pillow(GREY, "PNG", "LA"), lambda _: GREY),
    "palette png": ("a.png", lambda: indexed(PALETTE, "PNG"), lambda c: by_pillow(c, "RGB")),
    "grey palette png": ("a.png", lambda: indexed(GREYS, "PNG", GREY), lambda c: by_pillow(c, "L")),
    "grey jpeg": ("a.jpeg", lambda: pillow(GREY, "JPEG"), lambda c: by_pillow(c)),
    "colour jpeg": ("a.JPG", lambda: pillow(RGB, "JPEG"), lambda c: by_pillow(c)),
    "progressive jpeg": ("a.jpg", lambda: pillow(RGB, "JPEG", progressive=True), lambda c: by_pillow(c)),
    "jpeg with previews": ("a.jpg", with_previews, lambda c: by_pillow(c)),
    **{f"exif {n}": ("a.jpg", lambda n=n: with_exif(n), lambda c: by_pillow(c)) for n in range(1, 9)},
    "exif 6 png": ("a.png", lambda: with_exif(6, "PNG"), lambda c: by_pillow(c)),
    "grey gif": ("a.gif", lambda: pillow(GREY, "GIF"), lambda c: by_pillow(c, "L")),
    "colour gif": ("a.gif", lambda: indexed(PALETTE, "GIF"), lambda c: by_pillow(c, "RGB")),
    "mask gif": ("a.gif", lambda: pillow(MASK, "GIF"), lambda _: MASK),
    "grey bmp": ("a.bmp", lambda: pillow(GREY, "BMP"), lambda _: GREY),
    "colour bmp": ("a.bmp", lambda: pillow(RGB, "BMP"), lambda _: RGB),
    "1-bit bmp": ("a.bmp", lambda: pillow(ONE_BIT, "BMP"), lambda _: ONE_BIT.astype(np.uint8) * 255),
    "colour webp": ("a.webp", lambda: pillow(RGB, "WEBP", lossless=True), lambda _: RGB),
    "lossy webp": ("a.webp", lambda: pillow(RGB, "WEBP"), lambda c: by_pillow(c, "RGB")),
    "grey tiff": ("a.tif", lambda: tiff(GREY), lambda _: GREY),
    "16-bit tiff": ("a.tiff", lambda: tiff(DEEP), lambda _: DEEP),
    "float tiff": ("a.tif", lambda: tiff(DEEP / np.float32(7)), lambda _: DEEP / np.float32(7)),
    "signed tiff": ("a.tif", lambda: tiff(DEEP.astype(np.int16)), lambda _: DEEP.astype(np.int16)),
    "big-endian tiff": ("a.tif", lambda: tiff(DEEP, byteorder=">"), lambda _: DEEP),
    "big tiff": ("a.tif", lambda: tiff(DEEP, bigtiff=True), lambda _: DEEP),
    "1-bit tiff": ("a.tif", lambda: tiff(ONE_BIT), lambda c: by_pillow(c, "L")),
    "colour tiff": ("a.tif", lambda: tiff(RGB, photometric="rgb"), lambda _: RGB),
    "planar colour tiff": (
        "a.tif", lambda: tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"), lambda _: RGB,
    ),
    "16-bit colour tiff": ("a.tif", lambda: tiff(np.dstack([DEEP] * 2 + [DEEP // 2]), photometric="rgb"),
                           lambda _: np.dstack([DEEP] * 2 + [DEEP // 2])),
    "opaque alpha tiff": ("a.tif", lambda: tiff(ALPHA, photometric="rgb", extrasamples=["unassalpha"]), lambda _: RGB),
    "white is zero": ("a.tif", lambda: tiff(GREY, photometric="miniswhite"), lambda _: 255 - GREY),
    "lzw": ("a.tif", lambda: tiff(GREY, compression="lzw"), lambda _: GREY),
    "deflate with predictor": ("a.tif", lambda: tiff(DEEP, compression="zlib", predictor=True), lambda _: DEEP),
    "packbits by pillow": ("a.tif", lambda: pillow(GREY, "TIFF", compression="packbits"), lambda _: GREY),
    "jpeg in tiff": ("a.tif", lambda: pillow(GREY, "TIFF", compression="jpeg"), lambda c: by_pillow(c)),
    "tiled": ("a.tif", lambda: tiff(GREY, tile=(16, 16)), lambda _: GREY),
    "pages": ("a.tif", lambda: tiff(np.stack([GREY, GREY.T.reshape(11, 17), 255 - GREY]), photometric="minisblack"),
              lambda _: np.stack([GREY, GREY.T.reshape(11, 17), 255 - GREY], -1)),
    "palette tiff": ("a.tif", lambda: indexed(PALETTE, "TIFF"), lambda c: by_pillow(c, "RGB")),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_as_the_libraries_read_it(tmp_path: Path, name: str) -> None:
    file, make, expected = READ[name]
    content = make()
    (tmp_path / file).write_bytes(content)
    volume = decode(tmp_path / file)
    wanted = expected(content)
    found = volume.array
    if name != "pages":
        assert found.shape[2] == 1
        found = found[:, :, 0]
    np.testing.assert_array_equal(np.swapaxes(found, 0, 1), wanted)
    assert volume.stored.is_picture


def cut(content: bytes, share: float = 0.5) -> bytes:
    return content[: int(len(content) * share)]


def flipped(content: bytes, place: float) -> bytes:
    at = int(len(content) * place)
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def bomb() -> bytes:
    """A PNG of 10 KB that claims 60,000 × 60,000 pixels."""
    return png_of(60_000, 60_000, 8, 0, b"\0" * 10_000_000)


REFUSED: dict[str, tuple[str, Callable[[], bytes], set[str]]] = {
    "transparent png": ("a.png", lambda: pillow(CLEAR, "PNG"), {"E_DTYPE"}),
    "transparent palette": ("a.gif", lambda: pillow(GREY % 4, "GIF", transparency=1), {"E_DTYPE"}),
    "transparent tiff": ("a.tif", lambda: tiff(CLEAR, photometric="rgb", extrasamples=["unassalpha"]), {"E_DTYPE"}),
    "transparent webp": ("a.webp", lambda: pillow(CLEAR, "WEBP", lossless=True), {"E_DTYPE"}),
    "16-bit colour png": ("a.png", lambda: png_of(2, 1, 16, 2, b"\0" * 13), {"E_DTYPE"}),
    "16-bit grey alpha png": ("a.png", lambda: png_of(2, 1, 16, 4, b"\0" * 9), {"E_DTYPE"}),
    "cmyk jpeg": ("a.jpg", lambda: pillow(RGB, "JPEG", "CMYK"), {"E_DTYPE"}),
    "cmyk tiff": ("a.tif", lambda: pillow(RGB, "TIFF", "CMYK"), {"E_DTYPE"}),
    "lab tiff": ("a.tif", lambda: pillow(RGB, "TIFF", "LAB"), {"E_DTYPE"}),
    "complex tiff": ("a.tif", lambda: tiff(GREY.astype(np.complex64)), {"E_DTYPE"}),
    "half tiff": ("a.tif", lambda: tiff(GREY.astype(np.float16)), {"E_DTYPE"}),
    "moving gif": ("a.gif", lambda: moving("GIF"), {"E_NDIM"}),
    "moving png": ("a.png", lambda: moving("PNG"), {"E_NDIM"}),
    "moving webp": ("a.webp", lambda: moving("WEBP"), {"E_NDIM"}),
    "pages of two sizes": (
        "a.tif", lambda: _two_sizes(), {"E_NDIM"},
    ),
    "time series": ("a.tif", lambda: tiff(np.stack([GREY] * 3), imagej=True, metadata={"axes": "TYX"}), {"E_NDIM"}),
    "truncated png": ("a.png", lambda: cut(pillow(RGB, "PNG")), {"E_TRUNCATED", "E_DECODE"}),
    "truncated jpeg": ("a.jpg", lambda: cut(pillow(RGB, "JPEG", quality=95)), {"E_TRUNCATED"}),
    "truncated gif": ("a.gif", lambda: cut(pillow(GREY, "GIF"), 0.9), {"E_TRUNCATED", "E_DECODE"}),
    "gif without its trailer": ("a.gif", lambda: pillow(GREY, "GIF")[:-1], {"E_TRUNCATED"}),
    "truncated bmp": ("a.bmp", lambda: cut(pillow(RGB, "BMP")), {"E_TRUNCATED"}),
    "truncated webp": ("a.webp", lambda: cut(pillow(RGB, "WEBP", lossless=True)), {"E_TRUNCATED", "E_DECODE", "E_HEADER"}),
    "truncated tiff": ("a.tif", lambda: cut(tiff(DEEP, metadata=None), 0.9), {"E_TRUNCATED", "E_DECODE"}),
    "truncated lzw": ("a.tif", lambda: cut(tiff(DEEP, compression="lzw", metadata=None), 0.9), {"E_TRUNCATED", "E_DECODE"}),
    "flipped bit in png": ("a.png", lambda: flipped(pillow(RGB, "PNG"), 0.6), {"E_DECODE"}),
    "flipped bit in its end": ("a.png", lambda: flipped(pillow(RGB, "PNG"), 0.97), {"E_DECODE", "E_TRUNCATED"}),
    "only a signature": ("a.png", lambda: b"\x89PNG\r\n\x1a\n" + b"x" * 60, {"E_HEADER", "E_DECODE", "E_TRUNCATED"}),
    "no pixels": ("a.png", lambda: png_of(0, 4, 8, 0, b"\0"), {"E_NDIM", "E_HEADER", "E_DECODE"}),
    "bomb": ("a.png", bomb, {"E_SIZE"}),
    "huge tiff": ("a.tif", lambda: _claims_much(), {"E_SIZE", "E_TRUNCATED"}),
    "png as a volume": ("a.nii.gz", lambda: pillow(GREY, "PNG"), {"E_FORMAT"}),
    "volume as a picture": ("a.png", lambda: b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0" + b"\0" * 99, {"E_FORMAT", "E_HEADER"}),
    "text as a picture": ("a.png", lambda: b"no picture", {"E_FORMAT"}),
    "gzipped png": ("a.png", lambda: __import__("gzip").compress(pillow(GREY, "PNG")), {"E_FORMAT"}),
    "empty": ("a.png", lambda: b"", {"E_FORMAT"}),
    "a pdf": ("a.tif", lambda: b"%PDF-1.7" + b"\0" * 99, {"E_FORMAT"}),
}  # fmt: skip


def _two_sizes() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(GREY, metadata=None)
        writer.write(GREY[:5, :5], metadata=None)
    return stream.getvalue()


def _claims_much() -> bytes:
    content = tiff(GREY, metadata=None)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tags = [file.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for at in tags:
        content = content[:at] + struct.pack("<H", 60_000) + content[at + 2 :]
    return content


def test_sixty_pictures_and_more() -> None:
    assert len(READ) + len(REFUSED) > 60


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_code(tmp_path: Path, name: str) -> None:
    file, make, codes = REFUSED[name]
    (tmp_path / file).write_bytes(make())
    with pytest.raises(DataError) as caught:
        decode(tmp_path / file)
    assert caught.value.code in codes, caught.value.message()


def case_of(path: Path, channels: tuple[str, ...]) -> Case:
    return Case("a", {name: (path, i if len(channels) > 1 else None) for i, name in enumerate(channels)})


def test_grey_is_every_colour_and_equal_colours_are_grey(tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(pillow(GREY, "PNG"))
    (tmp_path / "same.png").write_bytes(pillow(np.dstack([GREY] * 3), "PNG"))
    (tmp_path / "colour.png").write_bytes(pillow(RGB, "PNG"))
    for name in ("grey", "same"):
        image = load_case(case_of(tmp_path / f"{name}.png", COLOURS), COLOURS).image
        np.testing.assert_array_equal(image, np.stack([GREY.T[..., None]] * 3))
        image = load_case(case_of(tmp_path / f"{name}.png", ("image",)), ("image",)).image
        np.testing.assert_array_equal(image, GREY.T[None, ..., None])
    with pytest.raises(DataError, match="4D is expected"):  # other channels than colours are not alike in grey
        load_case(case_of(tmp_path / "grey.png", ("t1", "t2", "flair")), ("t1",))
    with pytest.raises(DataError, match="in colour") as caught:
        load_case(case_of(tmp_path / "colour.png", ("image",)), ("image",))
    assert caught.value.code == "E_CHANNEL"


def test_masks_become_labels(tmp_path: Path) -> None:
    """Of a palette the indices, of 0/255 the values, of colours what the case list says."""
    (tmp_path / "indexed.png").write_bytes(indexed(PALETTE, "PNG"))
    np.testing.assert_array_equal(load_labels(tmp_path / "indexed.png", "a")[0][..., 0], (GREY % 4).T)
    (tmp_path / "two.gif").write_bytes(pillow(MASK, "GIF"))
    np.testing.assert_array_equal(load_labels(tmp_path / "two.gif", "a", [0, 255])[0][..., 0], MASK.T)
    colours = np.array([[0, 0, 0], [255, 0, 0], [10, 20, 30]], np.uint8)[GREY % 3]
    (tmp_path / "colours.png").write_bytes(pillow(colours, "PNG"))
    meaning = {0: 0, 0xFF0000: 2, 0x0A141E: 1}
    found, _ = load_labels(tmp_path / "colours.png", "a", [0, 1, 2], colours=meaning)
    np.testing.assert_array_equal(found[..., 0], np.array([0, 2, 1])[GREY % 3].T)
    with pytest.raises(DataError, match="in colour") as caught:
        load_labels(tmp_path / "colours.png", "a", [0, 1, 2])
    assert caught.value.code == "E_LABEL"
    (tmp_path / "blue.png").write_bytes(pillow(np.array([[0, 0, 0], [0, 0, 255]], np.uint8)[GREY % 2], "PNG"))
    blue, _ = load_labels(tmp_path / "blue.png", "a", [0, 1], colours={0: 0, 0x0000FF: 1})  # not the shade of grey 255
    np.testing.assert_array_equal(blue[..., 0], (GREY % 2).T)
    with pytest.raises(DataError, match="#0a141e") as caught:
        load_labels(tmp_path / "colours.png", "a", [0, 1, 2], colours={0: 0, 0xFF0000: 2})
    assert caught.value.code == "E_LABEL"


@pytest.mark.parametrize("values", [[0, 255], range(256)])
def test_a_smoothed_mask_is_refused_with_its_values(tmp_path: Path, values: Any) -> None:
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) < 15
    Image.fromarray(disc.astype(np.uint8) * 255).save(tmp_path / "lossy.jpg", quality=60)
    with pytest.raises(DataError, match="shades of grey: 0, ") as caught:
        load_labels(tmp_path / "lossy.jpg", "a", list(values))
    assert caught.value.code == "E_LABEL"
    assert "threshold" in caught.value.fix
    Image.fromarray(np.arange(0, 121, 10, np.uint8).repeat(4)[None]).save(tmp_path / "many.png")
    load_labels(tmp_path / "many.png", "a", range(0, 121, 10))  # as many labels that are named are labels


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([".png", ".tif", ".nii.gz"]),
    st.integers(0, 99),
)
@example(1, 5, 2, ".tif", 0)
@example(7, 1, 3, ".tif", 0)
@example(1, 1, 3, ".tif", 0)
def test_label_maps_come_back(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, pages: int, ending: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    shape = (width, height, 1 if ending == ".png" else pages)
    labels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    affine = np.diag([1.0, -1, 1, 1])
    write_volume(folder / f"x{ending}", labels, Grid(shape, affine), folder / "source.png")
    found, grid = load_labels(folder / f"x{ending}", "a", range(257))
    np.testing.assert_array_equal(found, labels)
    assert grid.equals(Grid(shape, affine))
