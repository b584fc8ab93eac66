"""The queue and the history of the embedded core."""

from __future__ import annotations

import pytest

from function.engine.embedded.prompts import Outcome, PromptQueue, QueuedPrompt


def item(number: float, prompt_id: str) -> QueuedPrompt:
    """A queued prompt."""
    return QueuedPrompt(number, prompt_id, {"1": {}}, {"a": 1}, ("1",))


class Queue(PromptQueue):
    """A queue that remembers its length after each change."""

    def __init__(self) -> None:
        super().__init__(on_change=lambda: self.lengths.append(self.remaining()))
        self.lengths: list[int] = []


@pytest.fixture
def queue() -> Queue:
    """An empty queue."""
    return Queue()


def finished(queue: PromptQueue, *prompt_ids: str) -> None:
    """Run these prompts to their end."""
    for prompt_id in prompt_ids:
        queue.put(item(0, prompt_id))
        taken = queue.take()
        assert taken is not None
        queue.finish(taken, Outcome(success=True))


def test_smallest_number_first(queue: Queue) -> None:
    """Prompts leave in the order of their numbers; of equal numbers the first that came."""
    for number, prompt_id in ((2, "b"), (-1, "front"), (2, "c"), (1, "a")):
        queue.put(item(number, prompt_id))
    taken = [queue.take() for _ in range(4)]
    assert [each.prompt_id for each in taken if each] == ["front", "a", "b", "c"]


def test_every_change_is_told(queue: Queue) -> None:
    """Putting, taking and finishing each tell the length, the running prompt counted."""
    finished(queue, "a")
    assert queue.lengths == [1, 1, 0]


def test_same_id_and_number_twice(queue: Queue) -> None:
    """Two prompts of one id and number, with other graphs, are two prompts."""
    queue.put(item(7, "dup"))
    queue.put(QueuedPrompt(7, "dup", {"2": {}}, {}, ("2",)))
    assert [queue.take(), queue.take()] != [None, None]


def test_free_memory_goes_before_prompts(queue: Queue) -> None:
    """The wish to free memory is handed out once, before the next prompt."""
    queue.put(item(0, "a"))
    queue.free_memory()
    assert queue.take() is None
    assert queue.take() == item(0, "a")


def test_history_entry(queue: Queue) -> None:
    """A finished prompt is kept as it was queued, with what it left behind."""
    finished(queue, "a")
    assert queue.entry("a") == {
        "a": {
            "prompt": [0, "a", {"1": {}}, {"a": 1}, ["1"]],
            "outputs": {},
            "status": {"status_str": "success", "completed": True, "messages": []},
            "meta": {},
        }
    }
    assert queue.entry("b") == {}


def test_history_is_a_ring() -> None:
    """Beyond its size the history forgets the oldest prompt."""
    queue = PromptQueue(on_change=lambda: None, history_size=2)
    finished(queue, "a", "b", "c")
    assert list(queue.history()) == ["b", "c"]


def test_repeated_id_is_the_newest(queue: Queue) -> None:
    """A prompt that ran again under its id moves to the end of the history."""
    finished(queue, "a", "b", "a")
    assert list(queue.history()) == ["b", "a"]
