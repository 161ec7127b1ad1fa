"""Which processors this thread may go to, and that it does."""

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency.devices import processors
from latency.devices.processors import move_on

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a thread cannot choose its processor here")


def in_a_thread(allowed: set[int], moves: int) -> tuple[list[bool], list[int], set[int]]:
    """What `moves` calls say, where the thread was after each, and what it may use in the end."""
    said: list[bool] = []
    places: list[int] = []
    end = set[int]()

    def work() -> None:
        os.sched_setaffinity(0, allowed)
        for _ in range(moves):
            said.append(move_on())
            places.append(processors._running_on())
        end.update(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return said, places, end


@pytest.fixture
def one_node(tmp_path, monkeypatch) -> set[int]:
    """All processors share memory."""
    allowed = os.sched_getaffinity(0)
    write_node(tmp_path, 0, ",".join(map(str, sorted(allowed))))
    monkeypatch.setattr(processors, "NODES", tmp_path)
    return allowed


def write_node(folder, number: int, processors: str) -> None:
    (folder / f"node{number}").mkdir()
    (folder / f"node{number}" / "cpulist").write_text(f"{processors}\n")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_a_thread_visits_its_processors_in_turn_and_is_bound_to_none(one_node) -> None:
    two = set(sorted(one_node)[:2])
    said, places, end = in_a_thread(two, 6)
    assert all(said)
    assert set(places) == two  # nearly always in turn; the system may move it, too
    assert end == two


def test_a_thread_bound_to_one_processor_stays(one_node) -> None:
    only = {min(one_node)}
    assert in_a_thread(only, 2) == ([False, False], [min(only)] * 2, only)


def test_memory_stays_near(tmp_path, monkeypatch) -> None:
    here = sorted(os.sched_getaffinity(0))
    for number, processor in enumerate(here):
        write_node(tmp_path, number, str(processor))
    monkeypatch.setattr(processors, "NODES", tmp_path)
    assert in_a_thread(set(here), 2)[0] == [False, False]


def test_where_the_system_does_not_say_a_thread_stays(one_node, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(processors, "NODES", tmp_path / "nothing")
    assert in_a_thread(one_node, 1)[0] == [False]
    monkeypatch.setattr(processors, "NODES", tmp_path)
    monkeypatch.setattr(processors, "THREAD", tmp_path / "nothing")
    assert not move_on()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert not move_on()


@given(st.sets(st.integers(0, 300)))
def test_lists_of_processors_are_read_as_linux_writes_them(wanted: set[int]) -> None:
    starts = sorted(one for one in wanted if one - 1 not in wanted)
    ends = sorted(one for one in wanted if one + 1 not in wanted)
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    assert processors._parsed(text + "\n") == wanted
