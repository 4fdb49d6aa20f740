"""Functions that run side by side in one process, one at a time, and hand over where they choose to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any


class GivenUp(BaseException):
    """Ends a member that waits, because another one could not begin. No `Exception`: nobody is to handle it."""


class Turns:
    """Runs functions in threads of which exactly one is awake.

    Threads keep what belongs to a thread apart (autocast, gradient and inference modes); what the process has once, the
    states of its random generators above all, is saved and put back at every change. So each function computes what it
    would compute alone.

    Args:
        collect: gives the state that is every member's own.
        restore: puts such a state back.
    """

    def __init__(self, collect: Callable[[], Any], restore: Callable[[Any], None]) -> None:
        self._collect, self._restore = collect, restore
        self._changed = threading.Condition()
        self._awake = 0
        self._ended: list[bool] = []
        self._arrived: dict[str, set[int]] = {}
        self._errors: list[BaseException | None] = []
        self._given_up = False
        self._mine = threading.local()
        self._for_caller: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()

    @property
    def member(self) -> int:
        """Which of the functions asks."""
        number: int = self._mine.number
        return number

    def run(self, functions: Sequence[Callable[[], None]]) -> list[BaseException | None]:
        """Runs all to their ends.

        A KeyboardInterrupt of the calling thread does not end the wait: the members look at the process's flag
        (`runs.signals.interrupt`) and end in their own orderly ways.

        Returns:
            What each has raised, or None; `GivenUp` is among them after `give_up`.
        """
        n = len(functions)
        self._ended, self._arrived, self._errors = [False] * n, {}, [None] * n
        self._awake, self._given_up = 0, False
        start = self._collect()
        threads = [threading.Thread(target=self._whole, args=(i, f, start)) for i, f in enumerate(functions)]
        for thread in threads:
            thread.start()
        alive = n
        while alive:
            try:
                job = self._for_caller.get()
                if job is None:
                    alive -= 1
                else:
                    job()
            except KeyboardInterrupt:
                continue
        for thread in threads:
            thread.join()
        return self._errors

    def in_calling_thread(self, job: Callable[[], Any]) -> None:
        """Has the thread that called `run` do something, such as handle a signal, and waits for it."""
        done = threading.Event()

        def whole() -> None:
            try:
                job()
            finally:
                done.set()

        self._for_caller.put(whole)
        done.wait()

    def pass_on(self) -> None:
        """Lets the others go on, each up to a point like this one, and returns when it is this member's turn again.

        Raises:
            GivenUp: another member has called `give_up`.
        """
        state = self._collect()
        with self._changed:
            self._hand_over()
            self._wait()
        if self._given_up:
            raise GivenUp
        self._restore(state)

    def meet(self, place: str) -> None:
        """Returns when all members that have not ended have come to this place.

        Raises:
            GivenUp: another member has called `give_up`.
        """
        here = self._arrived.setdefault(place, set())
        here.add(self.member)
        while any(not ended and number not in here for number, ended in enumerate(self._ended)):
            self.pass_on()

    def give_up(self) -> None:
        """The others end where they wait: `GivenUp` is raised there."""
        self._given_up = True

    # -- the baton ---------------------------------------------------------------------------------------------------
    def _whole(self, number: int, function: Callable[[], None], start: Any) -> None:
        self._mine.number = number
        with self._changed:
            self._wait()
        try:
            if self._given_up:
                raise GivenUp
            self._restore(start)
            function()
        except BaseException as error:
            self._errors[number] = error
        finally:
            with self._changed:
                self._ended[number] = True
                self._hand_over()
            self._for_caller.put(None)

    def _wait(self) -> None:
        self._changed.wait_for(lambda: self._awake == self.member)

    def _hand_over(self) -> None:
        order = [(self.member + step) % len(self._ended) for step in range(1, len(self._ended) + 1)]
        self._awake = next((number for number in order if not self._ended[number]), -1)
        self._changed.notify_all()
