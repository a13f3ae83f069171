"""Work that is begun before its turn, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prefetcher(Generic[Item, Result]):
    """Does for one item at a time, ahead of its turn, what :meth:`take` would do in its turn.

    What goes wrong ahead is done again in its turn, where it is known whose fault it is.

    Args:
        work: from an item to a result; of no effect but its result, and able to run beside the main thread.
        early: the same where it is done ahead, which may refuse more; None for ``work`` itself.
    """

    def __init__(self, work: Callable[[Item], Result], early: Callable[[Item], Result] | None = None) -> None:
        self._work, self._early = work, early or work
        self._begun: tuple[Item, Future[Result]] | None = None

    def begin(self, item: Item) -> None:
        """Begin with an item; its turn must be the next."""
        future: Future[Result] = Future()
        self._begun = item, future
        # A daemon: a program that has been told to stop does not wait for it.
        threading.Thread(target=self._run, args=(item, future), daemon=True).start()

    def take(self, item: Item) -> Result:
        """The result for an item, waited for where it was begun."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is item and begun[1].exception() is None:
            return begun[1].result()
        return self._work(item)

    def _run(self, item: Item, future: Future[Result]) -> None:
        try:
            future.set_result(self._early(item))
        except BaseException as error:  # whatever it is, it comes again in its turn
            future.set_exception(error)
