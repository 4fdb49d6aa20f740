"""Whose turn it is."""

from __future__ import annotations

import threading
import time

from clt_lightning.server.turns import Turns


def test_what_a_person_waits_for_comes_first() -> None:
    turns, order = Turns(), []

    def take(name: str) -> None:
        with turns.now() if name.startswith("now") else turns.later():
            order.append(name)

    threads = []
    with turns.later():
        for name in ("later 1", "later 2", "now 1", "now 2"):
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            time.sleep(0.05)
    for thread in threads:
        thread.join(5)
    assert sorted(order[:2]) == ["now 1", "now 2"]
    assert sorted(order[2:]) == ["later 1", "later 2"]


def test_one_at_a_time_even_after_an_error() -> None:
    turns, inside, most = Turns(), 0, 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        try:
            with turns.now() if number % 2 else turns.later():
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with lock:
                    inside -= 1
                if number % 3 == 0:
                    raise ValueError
        except ValueError:
            pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert most == 1
