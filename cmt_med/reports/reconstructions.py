"""Reports on pretraining: pictures of what was hidden, and what the network made of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmt_med.base.errors import DataError
from cmt_med.data.case import Case
from cmt_med.inference.reconstruction import Reconstruction
from cmt_med.reports.answers import RecordEvaluation

HEIGHT = 160
"""Pixels of a row of pictures."""


@dataclass(frozen=True)
class ReconstructionEvaluation(RecordEvaluation):
    """Reconstructions of cases, by name."""

    found: Mapping[str, Reconstruction] = field(default_factory=dict)

    def record(self, name: str) -> dict[str, Any]:
        """Error and variance in the hidden blocks of a case."""
        if name not in self.found:
            raise DataError("there is no reconstruction", where=f"case {name}", fix="train again", code="E_MISSING")
        one = self.found[name]
        return {"error": one.error, "variance": one.variance, "hidden_voxels": int(one.hidden.sum())}

    def picture(self, case: Case) -> bytes:
        """A PNG of two patches: the image, what was shown, and the answer in the hidden blocks; volumes by their middle slice."""
        one = self.found[case.name]
        rows = []
        for number in range(min(2, len(one.whole))):
            hidden = one.hidden[number, 0].cpu().numpy()
            answer = np.where(hidden, one.found[number, -1].cpu().numpy(), one.whole[number, -1].cpu().numpy())
            shown = np.where(hidden, np.nan, one.shown[number, -1].cpu().numpy())
            whole = one.whole[number, -1].cpu().numpy()
            low, high = np.percentile(whole, [1, 99])
            rows.append(np.concatenate([_grey(part, low, high) for part in (whole, shown, answer)], axis=1))
        sheet = Image.fromarray(np.concatenate(rows))
        scale = HEIGHT * len(rows) / sheet.height
        sheet = sheet.resize((round(sheet.width * scale), round(sheet.height * scale)))
        stream = io.BytesIO()
        sheet.save(stream, format="png", optimize=True)
        return stream.getvalue()


def _grey(values: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """A slice, its first axis to the right and its second one upwards; what is hidden is dark."""
    plane = values if values.ndim == 2 else values[..., values.shape[2] // 2]
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 215 + 40
    grey = np.where(np.isnan(plane), 0, scaled).astype(np.uint8).T[::-1]
    return np.pad(grey, 2)
