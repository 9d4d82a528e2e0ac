"""What is said of clients that fail, and when a run ends because of them."""

import warnings

from bhfl.engine.records import ClientRecord, asked_to_train
from bhfl.engine.refusal import TooFewClientsError
from bhfl.settings import Settings
from bhfl.tags import ABSENT

_TOLD = 3
"""Failures of a round that are told one by one."""


def failed_in_a_row(
    records: list[ClientRecord], before: int, round: int, settings: Settings, *, tell: bool
) -> int:
    """The number of rounds in a row without enough usable updates, `round` included.

    Args:
        records: Those of all clients of the round.
        before: The number before this round.
        round: The number of this round, from 1.
        settings: The trainer's settings.
        tell: Whether to warn of each failure.

    Raises:
        TooFewClientsError: There are too many such rounds, or two or more clients failed, all in
            the same way.
    """
    bad = [record for record in records if record.status != "ok"]
    # what was asked for is no news
    news = [one for one in bad if one.status not in ABSENT and not one.carried]
    told = news if tell else []
    for record in told[:_TOLD]:
        warnings.warn(
            f"round {round}: client {record.client} {record.status}: {record.reason}", stacklevel=2
        )
    if len(told) > _TOLD:
        warnings.warn(
            f"round {round}: and {len(told) - _TOLD} clients more; see rounds.jsonl", stacklevel=2
        )
    if alike := failed_alike(records):
        why = f"the same error in all {len(alike)} clients of round {round}"
    elif len(records) - len(bad) >= _needed(records, settings):
        return 0
    elif (
        # the second: no round of the whole run came to anything, which is no end to be content with
        before >= settings.stopping.max_failed_rounds
        or before + 1 == round >= settings.stopping.max_rounds
    ):
        why = (
            f"{before + 1} rounds in a row had fewer than min_clients="
            f"{settings.cohort.min_clients} usable updates; last"
        )
    else:
        return before + 1
    # of few clients that were drawn, none need have failed
    if not (alike or bad):
        raise TooFewClientsError(f"{why} round drew {len(records)} clients")
    first = (alike or bad)[0]
    last = f"{why}, client {first.client} {first.status}: {first.reason}"
    raise TooFewClientsError(f"{last}\n{first.traceback}".rstrip())


def _needed(records: list[ClientRecord], settings: Settings) -> int:
    """The usable updates that a round needs to count as one."""
    if settings.aggregation.algorithm.private:
        # it was combined anyway; but a run whose clients all fail is not to go on for ever
        return min(1, sum(record.status not in ABSENT for record in records))
    return settings.cohort.min_clients


def failed_alike(records: list[ClientRecord]) -> list[ClientRecord]:
    """The clients of a round, if it had two or more, and all failed by an error of one type at one
    line; else none.
    """
    asked = asked_to_train(records)
    origins = {record.origin for record in asked}
    # a client that is alone may fail by its own data, which the next cohort need not have
    return asked if len(asked) > 1 and len(origins) == 1 and origins != {""} else []
