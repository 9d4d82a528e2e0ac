"""Clients that drop out, whose updates are lost on the way, or that do a part of their steps: by
chance, or as a file says.

What happens to a client is a function of the seed, the round and its id, and of nothing that any
client does: all methods with one seed meet the same, and whoever needs it can compute it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from bhfl.checks import checked, count, suggestion, within
from bhfl.engine.random import RandomKeys
from bhfl.files import user_path
from bhfl.files.lines import Line, number_cell, read_lines, sha256_of, whole_cell
from bhfl.recorded import Recorded
from bhfl.settings import Settings
from bhfl.tags import Status

Failure = Literal["dropout", "loss"]
"""How an attempt may end: nothing was sent, or it was sent and lost."""
STRAGGLER = "straggler"
ANY_PART = (0.0, 1.0)
_share = within("[0, 1]")
_some = within("(0, 1]")
_not_all = within("[0, 1)")


@dataclass(frozen=True)
class Course:
    """What happens to one client in one round."""

    failures: tuple[Failure, ...] = ()
    """How its attempts ended that came to nothing, in their order."""
    arrives: bool = True
    """Whether the attempt after them delivers its update."""
    part: float = 1.0
    """The part of its planned steps that it makes."""

    @property
    def status(self) -> Status:
        """What becomes of its update, if nothing else does."""
        if self.arrives:
            return "ok"
        return "dropped" if self.failures[-1] == "dropout" else "lost"

    @property
    def retries(self) -> int:
        """How often it was asked again."""
        return len(self.failures) + self.arrives - 1

    @property
    def downloads(self) -> int:
        """How often it was sent the model and trained: anew after each dropout.

        A client whose update was lost has it still, and sends it again.
        """
        asked_again = self.arrives or self.failures[-1] != "dropout"
        return self.failures.count("dropout") + asked_again

    @property
    def uploads(self) -> int:
        """How often it sent its update."""
        return self.failures.count("loss") + self.arrives

    def unsent(self) -> "Course":
        """The same for a client that has nothing to send, of which nothing can be lost."""
        if "loss" not in self.failures:
            return self
        return replace(self, failures=self.failures[: self.failures.index("loss")], arrives=True)


WHOLE = Course()
"""All goes as planned."""


@dataclass
class _Traced:
    """What a file says of a client in a round."""

    failures: list[Failure] = field(default_factory=list)
    part: float | None = None


class Availability(Recorded):
    """What keeps a client of a round from all of its work, or its update from the server.

    A client that drops out has received the model and trained, and is gone before it sends: it is
    sent the model again and begins anew, as often as `retries` allows. An update that is lost on
    its way is sent again. All bytes are counted, and all seconds on a simulated network.

    Args:
        dropout: The share of attempts in which a client drops out, in [0, 1), drawn for each
            client, round and attempt.
        loss: The share of updates that are lost on their way, likewise.
        stragglers: The share of a round's clients that make a part of their steps, in [0, 1].
        part: How large that part is, in (0, 1]: a number, or the ends of the range that it is
            drawn from evenly. At least one step is made.
        retries: How often the server asks a client again within a round.
        trace: A CSV file with the columns ``client,round,event[,part]`` that says what happens, in
            place of shares: the event is ``dropout``, ``loss``, or ``straggler`` with its part.
            Rounds count from 1; each dropout or loss of a client in a round is one more attempt.

    Raises:
        ValueError: An argument is out of its range, or there are shares beside a trace, which is
            no such table.
        FileNotFoundError: There is no file `trace`.
    """

    def __init__(
        self,
        dropout: float = 0.0,
        loss: float = 0.0,
        stragglers: float = 0.0,
        part: float | Sequence[float] = ANY_PART,
        retries: int = 0,
        trace: str | Path | None = None,
    ) -> None:
        self.dropout = checked("availability.dropout", dropout, _not_all)
        self.loss = checked("availability.loss", loss, _not_all)
        self.stragglers = checked("availability.stragglers", stragglers, _share)
        self.part = checked("availability.part", part, _part_problem)
        self.retries = checked("availability.retries", retries, count(0, 100))
        self.trace = trace
        self._traced: dict[tuple[int, int], _Traced] = {}
        """What a file says, by round from 1 and client."""
        if trace is None:
            return
        given = {"dropout": dropout, "loss": loss, "stragglers": stragglers}
        for key, value in given.items():
            if value:
                raise ValueError(
                    f"availability.trace replaces dropout, loss and stragglers: leave out "
                    f"availability.{key}, got {value} beside {str(trace)!r}"
                )
        path = user_path(trace)
        if not path.is_file():
            raise FileNotFoundError(f"availability.trace must name a file, got {str(trace)!r}")
        for line in read_lines(path, ("client", "round", "event"), ("part",)):
            place = whole_cell(line, "round", 1), whole_cell(line, "client")
            _take(self._traced.setdefault(place, _Traced()), line)
        self.file_digests = {"trace": sha256_of(path)}

    @property
    def has_stragglers(self) -> bool:
        """Whether clients may make unequal parts of their steps."""
        if self.trace is not None:
            return any(one.part is not None for one in self._traced.values())
        return self.stragglers > 0

    def least_part(self, client: int) -> float:
        """The least part of its steps that a client may make in any round; 0 where it may be as
        little as one likes.
        """
        if self.trace is not None:
            told = [one.part for (_, id), one in self._traced.items() if id == client]
            return min((part for part in told if part is not None), default=1.0)
        if not self.stragglers:
            return 1.0
        return float(self.part[0] if isinstance(self.part, Sequence) else self.part)

    def problem(self, num_clients: int, max_rounds: int) -> str:
        """What is wrong with the file for such a run; empty if nothing is, or there is none.

        Args:
            num_clients: Size of the fleet.
            max_rounds: How many rounds there are to be.

        Returns:
            A sentence that names the option.
        """
        if self.trace is None:
            return ""
        client = max(client for _, client in self._traced)
        if client >= num_clients:
            return (
                f"availability.trace must name clients from 0 to {num_clients - 1}, got client "
                f"{client} in {str(self.trace)!r}"
            )
        # one that goes on after the last round is made for a longer run
        first = min(round for round, _ in self._traced)
        if first > max_rounds:
            return (
                f"availability.trace must tell of a round from 1 to {max_rounds}, the rounds of "
                f"the run, got rounds from {first} on in {str(self.trace)!r}"
            )
        return ""

    def course(self, seed: int, round: int, client: int) -> Course:
        """What happens to a client.

        Args:
            seed: The run's.
            round: Rounds finished.
            client: Its id.

        Returns:
            The same at every call.
        """
        if self.trace is not None:
            traced = self._traced.get((round + 1, client), _Traced())
            part = 1.0 if traced.part is None else traced.part
            return self._course(traced.failures, part)
        rng = RandomKeys(seed, round, client)
        late, how_much = rng.numpy("availability", 0).random(2)
        # two draws an attempt, so that neither share and no number of retries shifts the others
        attempts = rng.numpy("availability", 1).random((self.retries + 1, 2))
        failures: list[Failure] = []
        for dropped, lost in attempts:
            if dropped >= self.dropout and lost >= self.loss:
                break
            failures.append("dropout" if dropped < self.dropout else "loss")
        part = self._drawn(float(how_much)) if late < self.stragglers else 1.0
        return self._course(failures, part)

    def _course(self, failures: Sequence[Failure], part: float) -> Course:
        """The course of a client that fails so often, as far as it has attempts."""
        made = tuple(failures[: self.retries + 1])
        return Course(made, len(failures) <= self.retries, part)

    def _drawn(self, draw: float) -> float:
        """The part of a straggler that drew this number in [0, 1)."""
        if isinstance(self.part, Sequence):
            low, high = self.part
            # the upper end can be drawn, and the lower one, which may be 0, cannot
            return high - (high - low) * draw
        return self.part


def _take(traced: _Traced, line: Line) -> None:
    """Add a line of a file to what is known of its client and round."""
    where, cells = line
    event = cells["event"].strip()
    part = cells.get("part", "").strip()
    if event == STRAGGLER:
        if traced.part is not None:
            raise ValueError(f"{where}: the client is a straggler of this round twice")
        if not part:
            raise ValueError(f"{where}: column part must be a number in (0, 1], got ''")
        traced.part = checked(f"{where}: column part", number_cell(line, "part"), _some)
        return
    for known in get_args(Failure):
        if event == known:
            traced.failures.append(known)
            if part:
                raise ValueError(f"{where}: column part must be empty with {event}, got {part!r}")
            return
    events = [*get_args(Failure), STRAGGLER]
    raise ValueError(
        f"{where}: column event must be one of {', '.join(events)}, got {event!r}"
        f"{suggestion(event, events, False)}"
    )


def _part_problem(value: object) -> str:
    """Problems of the part of its steps that a straggler makes."""
    rule = "must be in (0, 1], or a range [low, high] in [0, 1]"
    if isinstance(value, str) or not isinstance(value, Sequence):
        return f"{rule}, got {value!r}" if _some(value) else ""
    fits = len(value) == 2 and not _share(value[0]) and not _some(value[1])
    return "" if fits and value[0] <= value[1] else f"{rule}, got {[*value]!r}"


def course_of(settings: Settings, round: int, client: int) -> Course:
    """What happens to a client in a round of a run.

    Args:
        settings: The trainer's.
        round: Rounds finished.
        client: Its id.
    """
    availability: Availability | None = settings.fleet.availability
    if availability is None:
        return WHOLE
    return availability.course(settings.cohort.seed, round, client)


def part_of(planned: int, part: float) -> int:
    """The steps of a straggler, rounded up: at least one, where any are planned.

    >>> [part_of(10, part) for part in (1.0, 0.7, 0.65, 0.01)]
    [10, 7, 7, 1]
    """
    # 0.07 of 100 comes out above 7 in floats
    return min(planned, max(1, math.ceil(round(part * planned, 9))))
