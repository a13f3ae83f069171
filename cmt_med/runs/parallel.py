"""Folds on several devices: a process each, one at a time on each device."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence

from cmt_med.base.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SOME_FAILED, ConfigError, Interrupted
from cmt_med.compute.device import pick_device
from cmt_med.compute.machine import stop_listening

log = logging.getLogger(__name__)


def train_in_parallel(folds: Sequence[int], devices: Sequence[str], arguments: Sequence[str]) -> None:
    """Train each fold by a process of its own, one at a time on each device.

    Raises:
        Interrupted: if a fold was; ConfigError if one failed. The others are trained to their end.
    """
    for name in devices:
        pick_device(name)
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for fold in folds:
        todo.put(fold)
    codes: dict[int, int] = {}
    running: set[subprocess.Popen[bytes]] = set()
    stopped = threading.Event()

    def work(device: str) -> None:
        while not stopped.is_set():
            try:
                fold = todo.get_nowait()
            except queue.Empty:
                return
            log.info("fold %d on %s", fold, device)
            # Later options win, so that the command's own --device need not be taken out.
            # A session of its own: a Ctrl-C in the terminal reaches this process alone, which passes it on once. The second
            # signal makes a training leave without saving.
            process = subprocess.Popen(
                [sys.executable, "-m", "cmt_med.train", *arguments, "--fold", str(fold), "--device", device],
                start_new_session=True,
            )
            running.add(process)
            codes[fold] = process.wait()
            running.discard(process)
            if codes[fold] == EXIT_INTERRUPTED:
                stopped.set()

    stop_listening()  # a SIGTERM interrupts like a Ctrl-C
    workers = [threading.Thread(target=work, args=(device,)) for device in devices]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        stopped.set()
        for process in list(running):
            process.terminate()
        for worker in workers:
            worker.join()
    if stopped.is_set():
        raise Interrupted(
            "cross-validation was asked to stop", where=f"folds {', '.join(map(str, folds))}", why="a signal arrived",
            fix="the same command resumes it",
        )  # fmt: skip
    failed = {fold: code for fold, code in codes.items() if code not in (EXIT_DONE, EXIT_SOME_FAILED)}
    if failed:
        listed = ", ".join(f"{fold} (exit code {code})" for fold, code in sorted(failed.items()))
        raise ConfigError(f"training failed for fold {listed}", where="folds", why="see its messages above",
                          fix="mend that; the same command trains what is missing")  # fmt: skip
