"""2D images (PNG, JPEG, TIFF, BMP, GIF, WebP) as volumes of one slice; the pages of a TIFF are slices.

A picture of W×H pixels is a volume (W, H, 1), one in colour (W, H, 1, 3) with red, green and blue on the last axis. Its pixels
have no size in mm that could be trusted (resolution tags are those of printers): one counts as 1 mm. Columns run to the patient's
right and rows to the back, so that a plane of a report shows the picture as it is.

Pillow and tifffile decode, in the decoder's process. What they would read in more than one way, or only in part, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cmt_med.base.errors import DataError
from cmt_med.data.volumes.header import IN_COLOUR, PICTURE, Opened, VolumeHeader, check_shape
from cmt_med.data.volumes.streams import CHUNK, Stream, readable_name

Image.MAX_IMAGE_PIXELS = None  # check_shape bounds them before they are unpacked, by an error and not by a warning
AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
_SIGNATURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WEBP"}
_PLAIN = {"L": "<u1", "I;16": "<u2", "I;16B": "<u2", "I;16L": "<u2", "I": "<i4", "F": "<f4"}
_ORIENTATION = 0x0112
_NO_SIZE = "pixels have no size in mm: one counts as 1 mm"
_TIFF_AXES = ("YX", "YXS", "SYX", "CYX", "ZYX", "IYX", "QYX", "ZYXS", "IYXS", "QYXS")
"""Orders of axes that are read: S are samples of a pixel, C channels, and Z, I and Q pages."""


def read(path: Path, stream: Stream, *, labels: bool = False) -> Opened:
    """Read a picture.

    Args:
        path: for messages.
        stream: of the file.
        labels: read it as a label map: of a palette in colour the indices, of colours ``IN_COLOUR`` + 65536 R + 256 G + B, one
            number for each pixel. Shades of grey are numbers either way.

    Raises:
        DataError: E_TRUNCATED, E_DECODE for damage; E_SIZE; E_NDIM for what moves or has several sizes; E_DTYPE for colours
            that are no red, green and blue, for transparency, and for what would be read with fewer bits than it has.
    """
    where = readable_name(path)
    try:
        content = b"".join(iter(lambda: stream.read(CHUNK), b""))
    finally:
        stream.close()
    kind = next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), "TIFF")
    pixels, notes = _tiff(content, where, labels) if kind == "TIFF" else _pillow(content, kind, where, labels)
    if pixels.dtype == bool:
        pixels = pixels.view(np.uint8) * np.uint8(255)
    if labels and pixels.ndim == 4:
        pixels = _packed(pixels)
    pages, height, width, *samples = pixels.shape
    check_shape((width, height, pages, *samples), pixels.itemsize, where)
    dtype = pixels.dtype.newbyteorder("<").str.replace("|", "<")
    stored = VolumeHeader(
        f"{kind} {PICTURE}", (width, height, pages, *samples), dtype, AFFINE, channels_first=bool(samples),
        notes=(_NO_SIZE, *notes),
    )  # fmt: skip
    return Opened(stored, _pieces(np.ascontiguousarray(pixels, dtype=dtype)))


def _pieces(pixels: NDArray[Any]) -> Iterator[bytes]:
    content = pixels.reshape(-1).view(np.uint8).data
    for start in range(0, len(content), CHUNK):
        yield bytes(content[start : start + CHUNK])


def _packed(pixels: NDArray[Any]) -> NDArray[Any]:
    """Colours (pages, H, W, 3) of 8 bits as one number each; of shades of grey the shade."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red
    wide = pixels.astype(np.uint32)
    return IN_COLOUR | (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


# ---- Pillow


def _pillow(content: bytes, kind: str, where: str, labels: bool) -> tuple[NDArray[Any], list[str]]:
    """Pixels (1, H, W) or (1, H, W, 3), and notes."""
    if kind == "PNG" and len(content) > 25 and content[24] == 16 and content[25] in (2, 4, 6):
        raise _unread("16 bits for each of several channels", where, "they would be read as 8", "save it as TIFF")
    try:
        if kind == "PNG":
            Image.open(io.BytesIO(content), formats=[kind]).verify()  # checksums of its chunks
        image: Image.Image = Image.open(io.BytesIO(content), formats=[kind])
        check_shape((image.width, image.height, 1, len(image.getbands())), 1, where)
        frames = 1 if kind == "JPEG" else getattr(image, "n_frames", 1)  # in a JPEG, the others are previews
        if frames > 1:
            raise DataError(
                f"the picture moves: it has {frames} frames", where=where, why="one image is expected of a file",
                fix="save the frame that is meant, or its frames as the pages of a TIFF", code="E_NDIM",
            )  # fmt: skip
        image.load()
        if kind == "GIF":  # Pillow stops at the first frame's end; a file that was cut has no trailer
            _require_trailer(content)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _damaged(where, f"it begins like a {kind} file, and goes on like none", "E_HEADER") from error
    except Exception as error:  # Pillow's plugins raise nearly anything for damage; nothing else is called here
        text = str(error) or type(error).__name__
        cut = "truncated" in text.lower() or isinstance(error, EOFError) or "not enough" in text.lower()
        raise _damaged(where, text[:200], "E_TRUNCATED" if cut else "E_DECODE") from error
    pixels, notes = _of_mode(image, where, labels)
    turned = int(image.getexif().get(_ORIENTATION, 1))
    if turned in range(2, 9):
        pixels, notes = _upright(pixels, turned), [*notes, "turned as its EXIF data say"]
    return pixels[None], notes


def _require_trailer(content: bytes) -> None:
    if not content.rstrip(b"\0").endswith(b";"):
        raise EOFError("the trailer is missing")


def _of_mode(image: Image.Image, where: str, labels: bool) -> tuple[NDArray[Any], list[str]]:
    """Pixels (H, W) or (H, W, 3)."""
    notes = []
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        _require_opaque(alpha, 255, where)
        notes.append("its alpha channel is opaque, and left out")
        if image.mode not in ("P", "L", "1", "I;16", "I"):
            image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode == "1":
        return np.asarray(image.convert("L")), notes
    if image.mode in _PLAIN:
        return np.asarray(image).astype(_PLAIN[image.mode]), notes
    if image.mode == "P":
        colours = np.asarray(image.convert("RGB"))
        if (colours == colours[..., :1]).all():
            return colours[..., 0], notes
        return (np.asarray(image), [*notes, "labels are the indices of its palette"]) if labels else (colours, notes)
    if image.mode == "RGB":
        return np.asarray(image), notes
    raise _unread(f"{image.mode} colours", where, "red, green and blue depend on a profile", "convert it to RGB")


# ---- tifffile


def _tiff(content: bytes, where: str, labels: bool) -> tuple[NDArray[Any], list[str]]:
    """Pixels (pages, H, W) or (pages, H, W, C), and notes."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = [part for part in file.series if part.kind != "thumbnail"]
            if len(series) != 1 or len(series[0].levels) > 1:
                raise DataError(
                    f"the TIFF has {len(series)} images of different kinds or sizes" if len(series) != 1
                    else "the TIFF is a pyramid of resolutions", where=where, why="one image is expected of a file",
                    fix="save the one that is meant", code="E_NDIM",
                )  # fmt: skip
            shape, axes = series[0].shape, series[0].axes
            check_shape(tuple(n for n in shape if n > 1) or (1,), series[0].dtype.itemsize, where)
            axes = "".join(a for a, n in zip(axes, shape, strict=True) if n > 1 or a in "YX")
            if axes not in _TIFF_AXES:
                raise DataError(
                    f"the TIFF has the axes {axes}", where=where, why=f"{', '.join(_TIFF_AXES)} are read",
                    fix="save one image, or a stack of slices", code="E_NDIM",
                )  # fmt: skip
            page = series[0].keyframe
            _require_whole(file, len(content), where)
            pixels = (
                series[0]
                .asarray()
                .reshape([n for a, n in zip(series[0].axes, shape, strict=True) if n > 1 or a in "YX"])
            )
            tag = page.tags.get("Orientation")
            turned = int(tag.value) if tag is not None else 1
            return _of_photometric(pixels, axes, page, turned, where, labels)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # tifffile raises nearly anything for damage; nothing else is called here
        raise _damaged(where, f"{type(error).__name__}: {str(error)[:200]}", "E_DECODE") from error


def _require_whole(file: tifffile.TiffFile, size: int, where: str) -> None:
    """Raise for strips that end behind the file: tifffile fills the gap with zeros."""
    for page in file.pages:
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=0) > size:
            raise _damaged(where, f"pixels should reach to byte {max(ends)}, and the file has {size}", "E_TRUNCATED")


def _of_photometric(
    pixels: NDArray[Any], axes: str, page: Any, turned: int, where: str, labels: bool
) -> tuple[NDArray[Any], list[str]]:
    notes: list[str] = []
    if axes in ("SYX", "CYX"):
        pixels, axes = np.moveaxis(pixels, 0, -1), "YXS"
    if axes[0] == "Y":
        pixels, axes = pixels[None], "Z" + axes
    kind = page.photometric.name
    if pixels.dtype.kind not in "buif" or pixels.dtype.str[1:] == "f2":
        raise _unread(f"pixels of {pixels.dtype}", where, "real numbers are read", "save it with 8, 16 or 32 bits")
    if kind == "PALETTE":
        colours = (page.colormap[:, pixels] >> 8).astype(np.uint8)  # (3, pages, H, W)
        if (colours == colours[:1]).all():
            pixels = colours[0]
        elif labels:
            notes.append("labels are the indices of its palette")
        else:
            pixels = np.moveaxis(colours, 0, -1)
    elif kind == "MINISWHITE" and pixels.dtype.kind in "bu":
        pixels = ~pixels
    elif kind not in ("MINISBLACK", "RGB", "YCBCR") or (kind == "YCBCR" and page.compression.name != "JPEG"):
        raise _unread(f"{kind} colours", where, "red, green and blue depend on a profile", "convert it to RGB")
    alone = page.samplesperpixel - len(page.extrasamples)
    if len(axes) == 4 and alone in (1, 3) and any(int(sample) in (1, 2) for sample in page.extrasamples):  # alpha
        highest = 1.0 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        _require_opaque(pixels[..., alone:], highest, where)
        notes.append("its alpha channel is opaque, and left out")
        pixels = pixels[..., :alone]
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if turned in range(2, 9):
        pixels, notes = np.stack([_upright(one, turned) for one in pixels]), [*notes, "turned as its tags say"]
    if labels and pixels.ndim == 4 and pixels.dtype != np.uint8:
        raise _unread(f"colours of {pixels.dtype}", where, "labels in colour have 8 bits", "save one number per pixel")
    return pixels, notes


# ---- both


def _upright(pixels: NDArray[Any], turned: int) -> NDArray[Any]:
    """Pixels (H, W, ...) as they are meant to be seen, from EXIF's orientation, 2 to 8."""
    if turned >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turned in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turned in (3, 4, 7, 8) else pixels


def _require_opaque(alpha: NDArray[Any], highest: float, where: str) -> None:
    clear = int(np.count_nonzero(alpha < highest))
    if clear:
        raise DataError(
            f"the picture is transparent in {clear} pixels", where=where,
            why="what they look like depends on what is behind them",
            fix="save it without an alpha channel, on the background that is meant", code="E_DTYPE",
        )  # fmt: skip


def _unread(what: str, where: str, why: str, fix: str) -> DataError:
    return DataError(f"the picture has {what}", where=where, why=why, fix=fix, code="E_DTYPE")


def _damaged(where: str, why: str, code: str) -> DataError:
    return DataError(
        "the file ends too early" if code == "E_TRUNCATED" else "the picture is damaged", where=where, why=why,
        fix="copy or download the file again", code=code,
    )  # fmt: skip
