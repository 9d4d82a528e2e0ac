"""What a round's row says of its clients."""

from __future__ import annotations

import pytest

from bhfl.engine.records import ClientRecord, problems, round_metrics

ANEW = "client 0 has begun anew: what it kept is lost on its machine"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"status": "ok"}, [ANEW]),
        # it keeps what it came to, and never begins anew again
        (
            {"status": "skipped", "reason": "nothing was sent", "carried": True},
            ["client 0 skipped: nothing was sent", ANEW],
        ),
        # it begins anew again when it is asked next
        ({"status": "rejected", "reason": "no"}, ["client 0 rejected: no"]),
        ({"status": "late"}, ["client 0 late: "]),
    ],
)
def test_a_client_that_began_anew_is_counted_when_it_keeps_what_it_came_to(values, told):
    record = ClientRecord(client=0, group="int8", weight=1.0, anew=True, **values)
    assert problems([record]) == told
    assert round_metrics([record]).get("clients/anew") == (1.0 if ANEW in told else None)
