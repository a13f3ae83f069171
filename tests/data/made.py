"""Files with faults, made by hand: what the gate has to refuse, byte for byte."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.data.volumes.gate import load_case, load_labels

SHAPE = (5, 6, 7)
IMAGE = np.random.default_rng(0).normal(100, 20, size=SHAPE).astype(np.float32)
LABEL = (IMAGE > 100).astype(np.uint8)
AFFINE = np.array([[-1.5, 0, 0, 40], [0, 0, 2, -30], [0, 1.25, 0, 11], [0, 0, 0, 1.0]])

# Offsets in a NIfTI-1 header, from nifti1.h.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN, QOFFSET, SROW, MAGIC = 252, 254, 256, 268, 280, 344


def nifti(
    path: Path,
    array: NDArray[Any] = IMAGE,
    affine: NDArray[np.float64] = AFFINE,
    codes: tuple[int, int] = (1, 1),
    **patches: Any,
) -> Path:
    """A NIfTI-1 file with both forms set; ``patches`` are ``at_OFFSET=(format, values...)`` in its little-endian header."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    for name, (form, *values) in patches.items():
        struct.pack_into("<" + form, content, int(name.removeprefix("at_")), *values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 6, mtime=0) if path.name.endswith(".gz") else content)
    return path


def case_of(image: Path, label: Path | None = None, mask: Path | None = None) -> Case:
    """A case with one channel, ``a``."""
    return Case("the-case", {"a": (image, None)}, label=label, mask=mask)


def _load(of: Case | Path, *, label: bool) -> None:
    if isinstance(of, Case):
        load_case(of, list(dict.fromkeys(["a", *of.images])), (0, 1))
    elif label:
        load_labels(of, "the-case", (0, 1))
    else:
        load_case(case_of(of), ("a",))


def refusal(of: Case | Path, *, label: bool = False) -> DataError:
    """The error with which the gate refuses a case, or a file as image or label; its four parts are written for it."""
    with pytest.raises(DataError) as raised:
        _load(of, label=label)
    error = raised.value
    assert error.exit_code == 65
    assert "the-case" in error.where
    assert error.what
    assert error.why not in ("", DataError.usual_why)
    assert error.fix not in ("", DataError.usual_fix)
    return error
