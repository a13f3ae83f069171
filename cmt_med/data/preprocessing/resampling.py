"""Resampling in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import TraceableTransform
from monai.transforms.spatial.array import SpatialResample
from torch import Tensor

LARGE = 1 << 24  # voxels of the source above which this pays
SLAB = 1 << 21  # voxels of the result that are computed at once


class SlabResample(SpatialResample):
    """MONAI's resampling, in double precision as there, a few slices at a time: else it needs 50 bytes a voxel.

    Only where slices of the result are slices of the source, as after a change of spacing; anything else goes to MONAI as a
    whole. The inverse does, too. Nearest neighbours at equal distance may be the other one than MONAI's.
    """

    def __call__(
        self, img: Tensor, dst_affine: Any = None, spatial_size: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if img.numel() <= LARGE or img.ndim != 4 or not isinstance(img, MetaTensor) or dst_affine is None:
            return super().__call__(img, dst_affine, spatial_size, *args, **kwargs)
        source = img.affine.numpy().astype(np.float64)
        target = np.asarray(dst_affine, dtype=np.float64)
        to_source = np.linalg.solve(source, target)
        size = [int(n) for n in spatial_size]
        turned = np.abs(to_source[:3, :3] - np.diag(np.diag(to_source[:3, :3]))).max() > 1e-9
        same = np.allclose(to_source, np.eye(4), atol=1e-3) and tuple(size) == tuple(img.shape[1:])
        if turned or same:
            return super().__call__(img, dst_affine, spatial_size, *args, **kwargs)
        result = torch.empty((img.shape[0], *size))
        rows = max(1, SLAB // (size[1] * size[2]))
        for start in range(0, size[0], rows):
            stop = min(start + rows, size[0])
            ends = sorted(to_source[0, 0] * i + to_source[0, 3] for i in (start, stop - 1))
            low = int(np.clip(np.floor(ends[0]) - 1, 0, img.shape[1] - 1))
            high = int(np.clip(np.ceil(ends[1]) + 2, low + 1, img.shape[1]))
            moved = to_source.copy()
            moved[0, 3] += to_source[0, 0] * start - low
            part = img.as_tensor()[:, low:high].contiguous()
            with self.trace_transform(False):
                result[:, start:stop] = super().__call__(part, moved, (stop - start, *size[1:]), *args, **kwargs)
        return self._with_history(result, img, to_source, **kwargs)

    def _with_history(self, result: Tensor, img: MetaTensor, to_source: Any, **kwargs: Any) -> Tensor:
        """The note that MONAI takes, so that the way back is known."""
        align = kwargs.get("align_corners")
        noted = TraceableTransform.track_transform_meta(
            img,
            sp_size=result.shape[1:],
            affine=torch.as_tensor(to_source),
            extra_info={
                "dtype": "float64",
                "mode": kwargs.get("mode") or self.mode,
                "padding_mode": kwargs.get("padding_mode") or self.padding_mode,
                "align_corners": align if align is not None else "none",
                "src_affine": img.affine,
            },
            orig_size=img.shape[1:],
            transform_info=self.get_transform_info(),
            lazy=False,
        )
        return MetaTensor(result).copy_meta_from(noted)
