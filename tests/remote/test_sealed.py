"""An answer is a client's own where it has the secret of its message, and has so many bytes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from bhfl.remote import allowance as allowances
from bhfl.remote import sealed
from bhfl.remote.allowance import MOST_QUESTION, MOST_UNASKED, Allowance, TooManyBytesError
from bhfl.remote.app.frames import SECRET
from bhfl.remote.relay import Answer
from bhfl.remote.sealed import Sealed

PUSH = b"/v1/fleet/push-object"
ASK = b"/v1/fleet/pull-messages"


class Carrier:
    """A Grid that keeps what it is given, and brings what a test says."""

    def __init__(self) -> None:
        self.most_bytes = 1000
        self.sent: list[bytes] = []
        self.answers: list[Answer] = []

    def nodes(self) -> list[int]:
        return [10, 11]

    def restore(self) -> None:
        pass

    def push(self, messages: Any, seconds: float, round: int) -> list[str]:
        first = len(self.sent) + 1
        self.sent += [data for _, data in messages]
        return [str(id) for id in range(first, len(self.sent) + 1)]

    def pull(self, ids: list[str]) -> list[Answer]:
        return [answer for answer in self.answers if answer.id in ids]


def keyed(nodes: Any) -> dict[int, int]:
    return {node: node - 10 for node in nodes}


@pytest.fixture
def carrier() -> Carrier:
    return Carrier()


@pytest.fixture
def allowance() -> Allowance:
    return Allowance(10**6)


@pytest.fixture
def grid(carrier: Carrier, allowance: Allowance) -> Sealed:
    return Sealed(carrier, keyed, allowance)  # type: ignore[arg-type]


def test_an_answer_comes_back_as_it_was_made(carrier: Carrier, grid: Sealed) -> None:
    ids = grid.push([(node, b"a task") for node in grid.nodes()], 1.0, 3)
    first, second = (data[:SECRET] for data in carrier.sent)
    assert first != second
    assert [data[SECRET:] for data in carrier.sent] == [b"a task"] * 2
    carrier.answers = [Answer("1", first + b"an answer", ""), Answer("2", b"", "it broke")]
    assert grid.pull(["1", "2"]) == [Answer("1", b"an answer", ""), Answer("2", b"", "it broke")]
    assert ids == ["1", "2"]


@pytest.mark.parametrize("of", ["another client", "an earlier message", "nobody"])
def test_an_answer_with_another_secret_is_refused(carrier: Carrier, grid: Sealed, of: str) -> None:
    grid.push([(10, b"a task")], 1.0, 3)
    grid.push([(11, b"a task")], 1.0, 3)
    grid.push([(10, b"a task")], 1.0, 4)
    earlier, others = (data[:SECRET] for data in carrier.sent[:2])
    secret = {"another client": others, "an earlier message": earlier, "nobody": b""}[of]
    carrier.answers = [Answer("3", secret + b"an answer", "")]
    told = "the answer does not hold the secret of its message"
    assert grid.pull(["3"]) == [Answer("3", b"", told)]


def test_an_answer_to_an_earlier_message_does_not_count(carrier: Carrier, grid: Sealed) -> None:
    grid.push([(10, b"a task")], 1.0, 3)
    grid.push([(10, b"a task")], 1.0, 4)
    carrier.answers = [Answer("1", carrier.sent[0][:SECRET] + b"late", "")]
    assert grid.pull(["1", "2"]) == []


def test_answers_are_asked_for_when_they_may_be_whole(
    carrier: Carrier, grid: Sealed, allowance: Allowance, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    for module in (sealed, allowances):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    asked: list[list[str]] = []
    monkeypatch.setattr(carrier, "pull", lambda ids: asked.append(ids) or [])
    grid.push([(10, b"a task"), (11, b"a task")], 1.0, 3)
    # Flower may have an answer of its own for each
    grid.pull(["1", "2"])
    allowance.count(0, PUSH, 1, 1)
    grid.pull(["1", "2"])
    now[0] = 101.0
    grid.pull(["1", "2"])
    assert asked == [["1", "2"], ["1"]]
    now[0] = 111.0
    grid.pull(["1", "2"])
    assert asked[2:] == [["1", "2"]]
    # what is on its way is not waited for
    now[0] = 122.0
    allowance.count(1, PUSH, 1, 1)
    grid.pull(["1", "2"])
    assert asked[3:] == [["1"]]
    grid.push([(10, b"a task")], 1.0, 4)
    grid.pull(["3"])
    assert len(asked) == 4


def test_a_client_that_sends_too_much_is_told_of_at_once(
    grid: Sealed, allowance: Allowance
) -> None:
    grid.push([(10, b"a task")], 1.0, 3)
    grid.push([(11, b"a task")], 1.0, 3)
    with pytest.raises(TooManyBytesError, match="client 1 has sent more bytes than an answer may"):
        allowance.count(1, PUSH, 1251, 1251)
    told = "it sent more bytes than an answer may have"
    assert grid.pull(["1", "2"]) == [Answer("2", b"", told)]
    # it is asked again
    (id,) = grid.push([(11, b"a task")], 1.0, 4)
    assert grid.pull([str(id)]) == []


def test_a_client_may_bring_so_much_in_all_requests_together(allowance: Allowance) -> None:
    allowance.grant(0, 1000)
    allowance.grant(1, 1000)
    for _ in range(2):
        allowance.count(0, PUSH, 500, 500)
    with pytest.raises(TooManyBytesError):
        allowance.count(0, b"/v1/fleet/push-messages", 1, 1)
    allowance.count(1, PUSH, 1000, 1000)
    allowance.count(0, ASK, 500, 500)
    assert allowance.overdrawn == {0}
    allowance.grant(0, 1)
    assert allowance.overdrawn == set()


def test_what_is_granted_while_bytes_are_counted_is_not_lost() -> None:
    """An old answer may still be on its way when its client is asked again."""
    allowance = Allowance(10**6)

    class Slow(dict[int, int]):
        """Numbers between whose reading and writing somebody else has time."""

        def get(self, *key: Any) -> Any:
            value = super().get(*key)
            if granting.ident is None:
                granting.start()
            granting.join(0.05)
            return value

    granting = threading.Thread(target=allowance.grant, args=[0, 1000])
    allowance._left = Slow()
    allowance.count(0, PUSH, 900, 900)
    granting.join(5)
    allowance.check(0, PUSH, 1000, 1000)


def test_what_is_said_to_come_is_refused_and_does_not_count(allowance: Allowance) -> None:
    allowance.grant(0, 1000)
    allowance.check(0, PUSH, 1000, 1000)
    allowance.count(0, PUSH, 1000, 1000)
    with pytest.raises(TooManyBytesError):
        allowance.check(0, PUSH, 1, 1)


def test_requests_that_ask_are_short_and_old_answers_bounded() -> None:
    allowance = Allowance(2 * MOST_UNASKED)
    with pytest.raises(TooManyBytesError, match=f"at most {MOST_QUESTION:,} bytes"):
        allowance.check(0, ASK, MOST_QUESTION + 1, 0)
    allowance.count(0, PUSH, MOST_UNASKED, MOST_UNASKED)
    with pytest.raises(TooManyBytesError, match="client 0 has sent more bytes"):
        allowance.count(0, PUSH, 1, 1)
