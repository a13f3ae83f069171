"""Curves for TensorBoard: its records, written by the package's one writer.

TensorBoard's own writer works in a thread; on a full disk that thread ends, and training waits for it for ever.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text

from cmt_med.base.files import append_bytes

FLUSH_SECONDS = 20.0


class Board:
    """``tensorboard/`` of a run.

    Args:
        folder: for the event files.
        step: steps that the run has done; later ones in files of earlier parts of it are not shown.
        notice: a text for all to see.
    """

    def __init__(self, folder: Path, *, step: int, notice: str = "") -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.cmt_med"
        self._buffer = io.BytesIO()
        self._last = time.monotonic()
        self._add(file_version="brain.Event:2")
        self._add(step=step, session_log=SessionLog(status=SessionLog.START))
        if notice:
            self._add(summary=text("notice", notice))
        self.flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        self._add(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
        if time.monotonic() - self._last > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since.

        Raises:
            OutputError: if it cannot be written.
        """
        content, self._buffer, self._last = self._buffer.getvalue(), io.BytesIO(), time.monotonic()
        append_bytes(self.path, content)

    def _add(self, **fields: Any) -> None:
        RecordWriter(self._buffer).write(Event(wall_time=time.time(), **fields).SerializeToString())
