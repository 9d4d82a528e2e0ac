"""Dropouts, lost updates, stragglers and retries: how they are drawn, and what they cost a run."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import bhfl.algorithms
from bhfl.algorithms import Ditto, DPFedAvg, FedCOMGATE, FedLQ, FedProx
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.comm.network import Link, Profile, SimulatedNetwork
from bhfl.engine import Algorithm, Availability, FederatedTrainer, TooFewClientsError
from bhfl.engine.availability import WHOLE, Course, part_of
from bhfl.engine.exchange import ClientLink
from bhfl.engine.failures import failed_alike
from bhfl.engine.progress import _notes
from bhfl.engine.records import ClientRecord
from tests.engine import test_exchange, test_resume
from tests.engine.hand_made import HandMade, Module, client_rows, points
from tests.federation import Client, fit, same

SHARES = {"dropout": 0.3, "loss": 0.2, "stragglers": 0.5, "part": [0.2, 0.8], "retries": 2}
NEARLY_ALL = 1 - 1e-9
"""A share so large that no client is left in these few rounds."""


def traced(folder: Path, *lines: str, retries: int = 1) -> Availability:
    """What these lines of a file say."""
    path = folder / "trace.csv"
    path.write_text("\n".join(["client,round,event,part", *lines]) + "\n")
    return Availability(trace=path, retries=retries)


def data(size: int = 4) -> HandMade:
    """Clients of 2, 3, 4 and so on batches of four samples."""
    return HandMade([points(8 + 4 * i, i) for i in range(size)], held_out=points(6, 99))


def go(folder: Path, algorithm: Any = None, availability: Any = None, **options: Any):
    size = options.pop("size", 4)
    options = {"clients": {8: size // 2, 32: size - size // 2}, "max_rounds": 2, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the guarantee is of the models alone")
        return fit(
            folder, algorithm, module=Module, data=data(size), availability=availability, **options
        )


# ---- what is drawn -------------------------------------------------------------------------------


MANY = 600


def courses(**options: Any) -> list[Course]:
    return [Availability(**options).course(0, 3, client) for client in range(MANY)]


def test_shares_hold_on_average_and_draws_do_not_shift_each_other():
    many = courses(**SHARES)
    first = Counter(course.failures[:1] for course in many)
    assert first["dropout",] / MANY == pytest.approx(0.3, abs=0.05)
    assert first["loss",] / MANY == pytest.approx(0.7 * 0.2, abs=0.04)
    parts = [course.part for course in many if course.part < 1]
    assert len(parts) / MANY == pytest.approx(0.5, abs=0.06)
    assert 0.2 < min(parts) < 0.23 < 0.77 < max(parts) <= 0.8
    # who drops out is the same whoever else is a straggler, is lost, or may try again
    for changed in ({"stragglers": 0}, {"loss": 0.0}, {"retries": 0}):
        for one, other in zip(many, courses(**{**SHARES, **changed}), strict=True):
            assert (one.failures[:1] == ("dropout",)) == (other.failures[:1] == ("dropout",))
            assert one.part == other.part or "stragglers" in changed
    later = [Availability(**SHARES).course(0, 4, client) for client in range(MANY)]
    assert later != many
    assert {course.part for course in courses(stragglers=1, part=0.25)} == {0.25}


@pytest.mark.parametrize(
    ("failures", "arrives", "status", "retries", "downloads", "uploads"),
    [
        ("", True, "ok", 0, 1, 1),
        ("d", False, "dropped", 0, 1, 0),
        ("l", False, "lost", 0, 1, 1),
        ("dd", True, "ok", 2, 3, 1),
        ("dl", True, "ok", 2, 2, 2),
        ("ll", False, "lost", 1, 1, 2),
        # it had its update still, and drops out before it sends it again
        ("ld", False, "dropped", 1, 1, 1),
        ("ld", True, "ok", 2, 2, 2),
    ],
)
def test_what_attempts_come_to(failures, arrives, status, retries, downloads, uploads):
    words = {"d": "dropout", "l": "loss"}
    course = Course(tuple(words[letter] for letter in failures), arrives)
    found = course.status, course.retries, course.downloads, course.uploads
    assert found == (status, retries, downloads, uploads)
    assert course.unsent().failures.count("loss") == 0


def test_a_part_of_steps_is_rounded_up():
    assert [part_of(3, part) for part in (1e-12, 1 / 3, 0.34, 0.99, 1.0)] == [1, 1, 2, 3, 3]
    assert (part_of(100, 0.07), part_of(0, 0.5)) == (7, 0)


def test_a_trace_says_what_happens(tmp_path):
    lines = ["0,1,dropout,", "0,1,loss,", "0,1,dropout,", "2,3,straggler,0.25", "2,3,loss,"]
    found = traced(tmp_path, *lines, retries=2)
    assert found.course(0, 0, 0) == Course(("dropout", "loss", "dropout"), arrives=False)
    assert found.course(9, 2, 2) == Course(("loss",), part=0.25)
    assert found.course(0, 0, 1) == found.course(0, 1, 0) == WHOLE
    assert traced(tmp_path, *lines).course(0, 0, 0) == Course(("dropout", "loss"), arrives=False)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "availability.dropout must be in [0, 1), got 1.0"),
        ({"loss": 1}, "availability.loss must be in [0, 1), got 1"),
        ({"loss": -0.1}, "availability.loss must be in [0, 1), got -0.1"),
        ({"stragglers": True}, "availability.stragglers must be in [0, 1], got True"),
        ({"part": 0}, "availability.part must be in (0, 1], or a range [low, high] in [0, 1], go"),
        ({"part": [0.5, 0.2]}, "range [low, high] in [0, 1], got [0.5, 0.2]"),
        ({"part": [0.5]}, "range [low, high] in [0, 1], got [0.5]"),
        ({"part": [0, 1.5]}, "range [low, high] in [0, 1], got [0, 1.5]"),
        ({"retries": -1}, "availability.retries must be an integer from 0 to 100, got -1"),
        ({"dropout": 0.1, "trace": "t.csv"}, "leave out availability.dropout, got 0.1 beside 't.c"),
    ],
)
def test_options_out_of_their_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Availability(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,round,what\n", ":1: column event is missing, got client,round,what"),
        ("client,round,event,why\n", ":1: columns must be distinct and of client,round,event,part"),
        (
            "client,round,event\n0,0,dropout\n",
            ":2: column round must be a whole number >= 1, got '",
        ),
        (
            "client,round,event\n-1,1,loss\n",
            ":2: column client must be a whole number >= 0, got '-",
        ),
        ("client,round,event\n0,1,dropuot\n", "got 'dropuot'; did you mean 'dropout'?"),
        ("client,round,event\n0,1,straggler\n", ":2: column part must be a number in (0, 1], got"),
        (
            "client,round,event,part\n0,1,straggler,2\n",
            ":2: column part must be in (0, 1], got 2.0",
        ),
        ("client,round,event,part\n0,1,loss,0.5\n", ":2: column part must be empty with loss, got"),
        ("client,round,event,part\n" + 2 * "0,1,straggler,1\n", ":3: the client is a straggler of"),
        ("client,round,event\n4,1,loss\n", "name clients from 0 to 3, got client 4 in '"),
        ("client,round,event\n0,9,loss\n", "tell of a round from 1 to 2, the rounds of the run, g"),
    ],
)
def test_traces_that_make_no_sense_are_refused_before_any_work(tmp_path, text, message):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        FederatedTrainer({8: 4}, max_rounds=2, availability=Availability(trace=path))


def test_a_trace_that_is_no_file_and_an_option_that_is_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"availability\.trace must name a file, got '.*no"):
        Availability(trace=tmp_path / "no.csv")
    with pytest.raises(ValueError, match="availability must be a Availability or None"):
        FederatedTrainer({8: 4}, availability=0.3)


def test_stragglers_are_refused_where_a_method_needs_equal_steps_or_has_its_own(tmp_path):
    slow = Availability(stragglers=0.5)
    plain = partial(Client, momentum=0.0)
    with pytest.raises(ValueError, match="FedCOMGATE needs equal numbers of local steps, and tra"):
        fit(tmp_path, FedCOMGATE(), availability=slow, module=plain, clients={32: 2})
    with pytest.raises(ValueError, match=r"straggler_fraction must be 0 where .*, got 0\.5"):
        fit(tmp_path, FedProx(straggler_fraction=0.5), availability=slow, clients={32: 2})
    with pytest.raises(ValueError, match=r"makes 1 as a straggler of part 0\.1, got 1"):
        test_exchange.run(tmp_path, "FedRep", availability=Availability(stragglers=1, part=0.1))


# ---- what becomes of a run -----------------------------------------------------------------------


def test_none_and_nothing_that_happens_are_the_same_to_the_bit(tmp_path):
    plain, told = go(tmp_path), go(tmp_path, availability=Availability())
    assert same(plain.server.params, told.server.params)
    new = {"clients/dropped", "clients/lost", "clients/stragglers", "clients/retries"}
    rows = plain.run.history[-1], told.run.history[-1]
    assert rows[1].keys() - rows[0].keys() == {*new, "retry_bytes"}
    assert not any(rows[1][tag] for tag in new)


def test_what_a_round_counts(tmp_path):
    lines = ["0,1,dropout,", "1,1,dropout,", "1,1,dropout,", "2,1,loss,", "2,1,loss,"]
    lines += ["3,1,straggler,0.5", "3,1,loss,"]
    plain = go(tmp_path / "plain", max_rounds=1)
    run = go(tmp_path / "absent", availability=traced(tmp_path, *lines), max_rounds=1)
    (row,) = run.run.history
    counts = {tag: row[f"clients/{tag}"] for tag in ("ok", "dropped", "lost", "failed", "rejected")}
    assert counts == {"ok": 2, "dropped": 1, "lost": 1, "failed": 0, "rejected": 0}
    assert (row["clients/stragglers"], row["clients/retries"]) == (1, 4)
    usual = [{k: int(one[f"{k}link_bytes"]) for k in ("up", "down")} for one in numbers(plain)]
    found = numbers(run)
    ups, downs = (1, 0, 2, 2), (2, 2, 1, 1)
    for one, sent, up, down in zip(found, usual, ups, downs, strict=True):
        assert int(one["uplink_bytes"]) == up * sent["up"]
        assert int(one["downlink_bytes"]) == down * sent["down"]
    wasted = usual[0]["down"] + usual[1]["down"] + usual[2]["up"] + usual[3]["up"]
    assert row["retry_bytes"] == wasted
    sums = [sum(int(one[key]) for one in found) for key in ("uplink_bytes", "downlink_bytes")]
    assert [row["uplink_bytes"], row["downlink_bytes"]] == sums
    columns = ("status", "steps", "part", "dropouts", "losses", "retries")
    assert [tuple(one[key] for key in columns) for one in found] == [
        ("ok", "2", "1.0", "1", "0", "1"),
        ("dropped", "0", "1.0", "2", "0", "1"),
        ("lost", "4", "1.0", "0", "2", "1"),
        ("ok", "3", "0.5", "0", "1", "1"),
    ]
    assert run.server.participants == [0, 3]
    written = json.loads((run.run.folder / "rounds.jsonl").read_text())
    assert written["problems"] == []
    (note,) = [note for note in _notes(run.run.history) if "availability" in note]
    megabytes = f"{wasted / 1e6:.3g} MB"
    assert note.endswith(
        f"1 dropped out, 1 lost on their way, 1 stragglers, 4 retries of {megabytes}"
    )
    assert "availability" not in "".join(_notes(plain.run.history))


def numbers(run: FederatedTrainer) -> list[dict[str, str]]:
    return [row for row in client_rows(run.run.folder) if row["stage"] == "train"]


class Fails(Algorithm):
    """Client 1 fails in every round."""

    def client_loss(self, run, batch, batch_idx):
        if run.client.id == 1:
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)


@pytest.mark.parametrize("event", ["dropout", "loss"])
def test_a_client_that_is_away_is_left_out_as_one_that_fails(tmp_path, event):
    lines = [f"1,{round},{event}," for round in (1, 2)]
    away = go(tmp_path, availability=traced(tmp_path, *lines, retries=0))
    with pytest.warns(UserWarning, match="bad luck"):
        failed = fit(tmp_path, Fails(), {8: 2, 32: 2}, Module, data(), max_rounds=2)
    assert same(away.server.params, failed.server.params)


def test_a_client_that_fails_before_it_sends_is_charged_for_its_downloads_alone(tmp_path):
    lines = [f"1,1,{event}," for event in ("dropout", "loss", "dropout")]
    whole = fit(tmp_path, None, {8: 2, 32: 2}, Module, data(), max_rounds=1)
    with pytest.warns(UserWarning, match="bad luck"):
        broken = fit(
            tmp_path, Fails(), {8: 2, 32: 2}, Module, data(), max_rounds=1,
            availability=traced(tmp_path, *lines, retries=3),
        )  # fmt: skip
    row = numbers(broken)[1]
    assert (row["status"], row["dropouts"], row["losses"]) == ("failed", "1", "0")
    assert int(row["downlink_bytes"]) == 2 * int(numbers(whole)[1]["downlink_bytes"])
    assert broken.run.history[0]["retry_bytes"] == int(row["downlink_bytes"]) // 2


def test_a_straggler_makes_its_first_steps(tmp_path):
    half = go(tmp_path, availability=Availability(stragglers=1, part=0.5), local_steps=6)
    assert same(half.server.params, go(tmp_path, local_steps=3).server.params)
    # of epochs too, which are then cut short
    cut = go(tmp_path, availability=Availability(stragglers=1, part=0.5), local_epochs=3)
    assert [row["steps"] for row in numbers(cut)] == 2 * ["3", "5", "6", "8"]


def test_the_updates_of_a_round_may_be_too_few(tmp_path):
    lines = ["0,1,dropout,", "1,1,dropout,"]
    run = go(tmp_path, availability=traced(tmp_path, *lines, retries=0), min_clients=3)
    assert [row["clients/ok"] for row in run.run.history] == [2, 4]
    assert run.run.failed_rounds == 0
    with pytest.raises(
        TooFewClientsError, match="client 0 dropped: it dropped out in the last of 3"
    ):
        go(tmp_path, availability=Availability(NEARLY_ALL, retries=2), max_failed_rounds=0)


def test_an_error_that_stops_every_client_that_is_there_ends_the_run():
    records = [ClientRecord(i, "int8", 1.0) for i in range(4)]
    for record in records[:3]:
        record.status, record.origin = "failed", "RuntimeError at line 1"
    records[3].status, records[3].course = "dropped", Course(("dropout",), arrives=False)
    assert failed_alike(records) == records[:3]


@pytest.mark.parametrize(("algorithm", "trainings"), [(None, 1), (Ditto(), 2)])
def test_simulated_seconds_are_those_of_all_attempts_and_of_the_steps_really_made(
    tmp_path, algorithm, trainings
):
    profile = Profile(uplink_bps=1e5, downlink_bps=4e5, compute_flops=1e6, spread=0.5)
    network = SimulatedNetwork("slow", {"slow": profile})
    lines = ["0,1,dropout,", "1,1,loss,", "2,1,straggler,0.5", "3,1,dropout,", "3,1,dropout,"]
    options = {"network": network, "max_rounds": 1, "algorithm": algorithm}
    plain = go(tmp_path / "plain", **options)
    run = go(tmp_path / "absent", availability=traced(tmp_path, *lines), **options)
    flops = trainings * 3 * run.session.timing.flops.example
    found = []
    rows = numbers(plain)
    for client, (downs, ups, examples) in enumerate([(2, 1, 8), (1, 2, 12), (1, 1, 8), (2, 0, 20)]):
        link = network.link(0, client)
        down = link.download_seconds(int(rows[client]["downlink_bytes"]))
        up = link.upload_seconds(int(rows[client]["uplink_bytes"]))
        found.append(downs * (down + link.compute_seconds(flops * examples)) + ups * up)
    assert [float(row["simulated_seconds"]) for row in numbers(run)] == pytest.approx(found)
    assert run.run.history[0]["time/simulated_round_s"] == pytest.approx(max(found))


def test_retries_may_come_too_late(tmp_path):
    profile = Profile(uplink_bps=1e5, downlink_bps=4e5, spread=0, jitter=0, latency_seconds=0)
    network = SimulatedNetwork("slow", {"slow": profile})
    plain = go(tmp_path / "plain", network=network, max_rounds=1)
    seconds = plain.run.history[0]["time/simulated_round_s"]
    network = SimulatedNetwork("slow", {"slow": profile}, deadline_seconds=1.5 * seconds)
    lost = traced(tmp_path, "3,1,loss,")
    with pytest.warns(UserWarning, match="client 3 late"):
        run = fit(
            tmp_path, None, {8: 2, 32: 2}, Module, data(), network=network, availability=lost,
            max_rounds=1,
        )  # fmt: skip
    assert run.run.history[0]["time/simulated_round_s"] == pytest.approx(1.5 * seconds)


def test_what_a_client_that_began_anew_can_still_send_arrives_in_time():
    link = Link(uplink_bps=1e4, downlink_bps=1e5, latency_seconds=0.1, compute_flops=1e6)
    once, twice = ClientLink(link, 1e3), ClientLink(link, 1e3, downloads=2)
    room = [one.budget_bytes(2000, 50, 2.0) for one in (once, twice)]
    assert room[0] > room[1] > 0
    assert 1.99 < twice.seconds(2000, room[1], 50) <= 2.0
    assert ClientLink(link, 1e3, downloads=9).budget_bytes(2000, 50, 2.0) == 0


def test_who_is_asked_again_counts_in_the_deadline_that_all_are_to_meet(tmp_path):
    profile = Profile(uplink_bps=1e4, downlink_bps=4e4, spread=0, jitter=0, compute_jitter=0)
    sent = []
    for budget in (Budget("quantile", 8, quantile=1.0), Budget("average", 8)):
        run = go(
            tmp_path / budget.rule,
            FedLQ(budget=budget, sensitivity=Sensitivity(shrinkage=0)),
            traced(tmp_path, "0,1,dropout,"),
            clients={32: 4},
            network=SimulatedNetwork("slow", {"slow": profile}),
            max_rounds=1,
        )
        sent.append(int(numbers(run)[0]["uplink_bytes"]))
    # a bit of the largest layer less, as the deadline is rounded down
    assert sent[0] >= sent[1] - 6


# ---- every method --------------------------------------------------------------------------------

TABLE = {0: "ok", 1: "dropped", 2: "ok", 3: "ok", 4: "lost"}
"""What becomes of clients in the first round."""
EVENTS = ["1,1,dropout,", "1,1,dropout,", "2,1,straggler,0.5", "3,1,loss,", "4,1,loss,"]
EVENTS += ["4,1,loss,", "3,1,straggler,0.34", "0,2,dropout,"]


@pytest.mark.parametrize("name", bhfl.algorithms.__all__)
def test_every_method_runs_with_it_and_counts(tmp_path, name):
    options = {"max_rounds": 2, "validate_first": False, "channels_last": False}
    options |= {"clients_per_round": None, "logger": False}
    absent = {**options, "availability": traced(tmp_path, *EVENTS)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the guarantee|BatchNorm|DPFedAvg")
        run = test_exchange.run(tmp_path / "run", name, **absent)
    found = {(int(row["round"]), int(row["client"])): row for row in numbers(run)}
    # a loss is none where nothing is sent
    table = TABLE if name != "Local" else {**TABLE, 4: "ok"}
    first = run.run.history[0]
    assert first["clients/ok"] == [*table.values()].count("ok")
    assert first["clients/retries"] == (1 if name == "Local" else 3)
    whole = 2 if name == "Ditto" else 1
    for client in range(5):
        row, later = found[1, client], found[2, client]
        planned = {0: 2, 1: 3, 2: 4, 3: 5, 4: 6}[client]
        steps = whole * {1: 0, 2: 2, 3: 2}.get(client, planned)
        assert (row["status"], int(row["steps"])) == (table[client], steps)
        assert later["status"] == "ok"
        assert int(later["steps"]) == whole * planned
        assert (int(row["uplink_bytes"]) > 0) == (client != 1 and name != "Local")
    assert run.run.history[1]["clients/retries"] == 1
    assert torch.isfinite(torch.cat([p.flatten() for p in run.server.params.values()])).all()


# ---- processes and resuming ----------------------------------------------------------------------


def test_a_run_that_goes_on_meets_the_same(tmp_path):
    often = {**SHARES, "loss": 0.4, "retries": 1}
    options = {"availability": Availability(**often), "clients_per_round": None}
    test_resume.go(tmp_path / "whole", **options)
    test_resume.go(tmp_path / "killed", 3, **options)
    test_resume.go(tmp_path / "killed", ckpt_path="last", **options)
    whole = test_resume.outcome(tmp_path / "whole")
    assert test_resume.outcome(tmp_path / "killed") == whole
    assert {row["status"] for row in whole["numbers"]} >= {"ok", "dropped", "lost"}
    with pytest.raises(Exception, match=r"trainer\.availability\.dropout: 0\.3 -> 0\.1"):
        test_resume.go(
            tmp_path / "killed", ckpt_path="last", availability=Availability(0.1), max_rounds=9
        )


# ---- private -------------------------------------------------------------------------------------


def test_a_private_method_counts_who_is_away_as_one_that_has_not_moved(tmp_path):
    options = {"sampling": "poisson", "weights": "uniform", "max_rounds": 3}
    plain = go(tmp_path / "plain", DPFedAvg(), **options)
    # all are away in every round, which is noised and counted, and no failure
    away = go(
        tmp_path / "away", DPFedAvg(), Availability(NEARLY_ALL), max_failed_rounds=0, **options
    )
    assert [row["clients/dropped"] for row in away.run.history] == [4, 4, 4]
    for one, other in zip(plain.run.history, away.run.history, strict=True):
        assert one["privacy/epsilon"] == other["privacy/epsilon"]
    assert away.server.round == 3
