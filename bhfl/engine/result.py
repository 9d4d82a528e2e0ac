"""What a run came to, as a value to look at, to draw and to take weights from."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from bhfl.checks import aligned, suggestion
from bhfl.engine.best import ALL, Best
from bhfl.engine.deployed import Deployed
from bhfl.engine.figures import group_rows, metric_names, total
from bhfl.engine.roster import group_sizes
from bhfl.engine.run import Run
from bhfl.engine.session import Session
from bhfl.engine.types import Metrics, Row, ServerState
from bhfl.tags import ACCURACIES


@dataclass(frozen=True, repr=False, eq=False)
class FitResult:
    """What a run came to: what `FederatedTrainer.fit` returns.

    As the last line of a notebook's cell it is a small table; `print` shows the same.

    Args:
        folder: The run folder.
        method: The class of the algorithm.
        groups: The number of clients of each bit group, in the fleet's order.
        metrics: What the test measured by tag, such as ``test/acc_int8``.
        bytes: The lengths of payloads by bit group: ``uplink_bytes``, ``downlink_bytes``,
            and ``header_bytes`` of both.
        seconds: Seconds of all rounds.
        best: The best round, and what made it the best.
        best_by_group: The same of each bit group, with ``trainer.best_by_group``.
        history: The row of each round: metrics by tag.
        first: What validation before the first round gave, by tag; empty where there was none.
    """

    folder: Path
    method: str
    groups: Mapping[str, int]
    metrics: Mapping[str, float]
    bytes: Mapping[str, Mapping[str, int]]
    seconds: float
    best: Best
    best_by_group: Mapping[str, Best]
    history: Sequence[Row]
    first: Row
    _server: Callable[[], ServerState]
    _weights: Callable[[str | None], dict[str, Tensor]]

    # ---- figures ---------------------------------------------------------------------------------

    @property
    def rounds(self) -> int:
        """The rounds that were done."""
        return len(self.history)

    @property
    def uplink_bytes(self) -> int:
        """Bytes that clients sent in all rounds."""
        return total(self.bytes, "uplink_bytes")

    @property
    def downlink_bytes(self) -> int:
        """Bytes that clients were sent in all rounds."""
        return total(self.bytes, "downlink_bytes")

    @property
    def by_group(self) -> dict[str, Metrics]:
        """The metrics of the test by bit group and name: ``by_group["int8"]["acc"]``."""
        found: dict[str, Metrics] = {}
        for group in self.groups:
            found[group] = {}
            for name in metric_names(self.metrics, "test"):
                if (tag := f"test/{name}_{group}") in self.metrics:
                    found[group][name] = self.metrics[tag]
        return found

    def series(self, tag: str) -> dict[int, float]:
        """The values of a tag by round, of the rounds that have one.

        Raises:
            ValueError: No round has it.
        """
        found = {int(row["round"]): row[tag] for row in self.history if tag in row}
        if not found:
            known = dict.fromkeys(chain.from_iterable(self.history))
            raise ValueError(f"tag must be one of the run's, got {tag!r}{suggestion(tag, known)}")
        return found

    def to_pandas(self) -> Any:
        """The history as a DataFrame: a row for each round, a column for each tag.

        Raises:
            ImportError: pandas is not installed; the message says how to.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self.history)).set_index("round")

    def plot(self, metric: str | None = None, ax: Any = None) -> Any:
        """Draw a metric of each bit group by round, as validation measured it.

        Args:
            metric: Its name without stage and group; by default the accuracy, or what the best
                round is chosen by.
            ax: matplotlib's axes to draw on; by default new ones.

        Returns:
            The axes.

        Raises:
            ValueError: The metric was not measured.
            ImportError: matplotlib is not installed; the message says how to.
        """
        name = metric or self._metric
        known = set(chain.from_iterable(metric_names(row, "val") for row in self.history))
        if name not in known:
            raise ValueError(
                f"metric must be one that validation measured by group, got {name!r}"
                f"{suggestion(name, known)}"
            )
        lines = {}
        for group in self.groups:
            tag = f"val/{name}_{group}"
            before = {0: self.first[tag]} if tag in self.first else {}
            lines[group] = before | self.series(tag)
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'bhfl[plots]'") from error
        if ax is None:
            _, ax = pyplot.subplots()
        for group, values in lines.items():
            ax.plot(list(values), list(values.values()), marker=".", label=group)
        ax.set(xlabel="round", ylabel=f"val/{name}", title=self.method)
        ax.legend()
        return ax

    @property
    def _metric(self) -> str:
        """What is shown where nothing else is asked for."""
        monitored = self.best.monitor.partition("/")[2].removesuffix("_avg").removesuffix("_min")
        known = metric_names(self.history[-1], "val") if self.history else []
        return next((name for name in ACCURACIES if name in known), monitored)

    # ---- weights ---------------------------------------------------------------------------------

    @property
    def server(self) -> ServerState:
        """The last server state, whose `params` are the float32 model by name."""
        return self._server()

    def state_dict(self, group: str | None = None) -> dict[str, Tensor]:
        """The weights after the last round, for `load_state_dict` of the run's module.

        Args:
            group: A bit group, whose weights lie on the grid of its bits and compute in a float
                module what its clients compute with, but for activations; by default the server's
                float32 model. It is the global model also where the test measured the clients' own
                ones, and running statistics of BatchNorm are those that the run kept.

        Raises:
            ValueError: There is no such group, its model is not whole without its clients, or it
                needs a class that cannot be made from the run's folder.
        """
        return self._weights(group)

    # ---- how it looks ----------------------------------------------------------------------------

    @property
    def _rows(self) -> list[list[str]]:
        return group_rows(self.metrics, "test", self.groups, self.bytes, self._metric)

    @property
    def _facts(self) -> str:
        rounds = f"{self.rounds} round{'s' * (self.rounds != 1)} in {self.seconds:.1f} s"
        if self.best.value is None:
            return rounds
        best = f"best {self.best.monitor} {self.best.value:.4g} in round {self.best.round}"
        return f"{rounds}; {best}"

    def __repr__(self) -> str:
        table = "\n".join(aligned(self._rows))
        return f"FitResult: {self.method}, {self._facts}\n{table}\n{self.folder}"

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        lines: list[str] = []
        for row in self._rows:
            kind = "td" if lines else "th"
            cells = (f"<{kind}>{escape(cell)}</{kind}>" for cell in row)
            lines.append(f"<tr>{''.join(cells)}</tr>")
        title = f"<b>{escape(self.method)}</b>, {escape(self._facts)}"
        place = f"<code>{escape(str(self.folder))}</code>"
        return f"<div>{title}<table>{''.join(lines)}</table>{place}</div>"


def result_of(session: Session, run: Run, metrics: Mapping[str, float]) -> FitResult:
    """What a run that has just ended came to.

    Args:
        session: The fit's, which keeps the model alive that weights are asked for.
        run: The run on disk.
        metrics: What the test measured.
    """
    settings = session.settings
    groups = list(session.evaluator.groups(session.server).values())
    norm = settings.aggregation.norm
    deployed = Deployed(session.server, groups, norm, session.algorithm)

    def weights(group: str | None) -> dict[str, Tensor]:
        # of a copy: the module is its owner's
        module = copy.deepcopy(session.module, {id(session.fabric): session.fabric})
        return deployed.put_(module, group).state_dict()

    return FitResult(
        folder=run.folder,
        method=type(session.algorithm).__name__,
        groups=group_sizes(session.fleet),
        metrics=metrics,
        bytes=run.ledger.by_group,
        seconds=run.seconds,
        best=run.bests[ALL],
        best_by_group={group: best for group, best in run.bests.items() if group != ALL},
        history=list(run.history),
        first=run.first,
        _server=lambda: deployed.server,
        _weights=weights,
    )
