"""Functions that take turns: one at a time, each with the process's random state of its own."""

from __future__ import annotations

import threading

import pytest
import torch

from clt_lightning.callbacks import random_state
from clt_lightning.runs.turns import GivenUp, Turns


def made() -> Turns:
    return Turns(random_state.collect, random_state.restore)


def test_each_draws_what_it_would_draw_alone() -> None:
    torch.manual_seed(3)
    state, alone = torch.get_rng_state(), torch.rand(6)
    torch.set_rng_state(state)
    turns, drawn = made(), [torch.zeros(6), torch.zeros(6), torch.zeros(6)]

    def draw(number: int) -> None:
        for i in range(6):
            drawn[number][i] = torch.rand(1)
            if i % (number + 1) == 0:
                turns.pass_on()

    assert turns.run([lambda n=n: draw(n) for n in range(3)]) == [None] * 3  # type: ignore[misc]
    for found in drawn:
        assert torch.equal(found, alone)


def test_one_is_awake_and_they_go_round() -> None:
    turns, order = made(), []
    awake = threading.Semaphore(1)

    def go(number: int) -> None:
        for step in range(3 - number):
            assert awake.acquire(blocking=False)
            order.append((step, number))
            awake.release()
            turns.pass_on()

    turns.run([lambda n=n: go(n) for n in range(3)])  # type: ignore[misc]
    assert order == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


def test_they_meet_whoever_has_ended() -> None:
    turns, seen = made(), []

    def go(number: int) -> None:
        for place in range(3):
            if number == 2 and place == 1:
                raise ValueError("gone")
            seen.append(place)
            turns.meet(str(place))

    errors = turns.run([lambda n=n: go(n) for n in range(3)])  # type: ignore[misc]
    assert seen == [0, 0, 0, 1, 1, 2, 2]
    assert errors[:2] == [None, None]
    assert isinstance(errors[2], ValueError)


def test_giving_up_ends_those_that_wait_and_those_that_have_not_begun() -> None:
    turns, begun = made(), []

    def go(number: int) -> None:
        begun.append(number)
        if number == 1:
            turns.give_up()
            raise ValueError("no")
        turns.meet("begun")

    errors = turns.run([lambda n=n: go(n) for n in range(4)])  # type: ignore[misc]
    assert begun == [0, 1]
    assert [type(error) for error in errors] == [GivenUp, ValueError, GivenUp, GivenUp]


def test_the_caller_does_what_it_alone_may() -> None:
    turns, where = made(), []
    turns.run([lambda: turns.in_calling_thread(lambda: where.append(threading.current_thread()))])
    assert where == [threading.current_thread()]


def test_an_interrupt_of_the_caller_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, ended = made(), []

    def go() -> None:
        turns.in_calling_thread(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        ended.append(True)

    assert turns.run([go]) == [None]
    assert ended
