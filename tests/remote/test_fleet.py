"""The server's fleet and the clients' residents, without Flower: a pipe carries their messages."""

from __future__ import annotations

import csv
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bhfl.comm import encode
from bhfl.comm.network import SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.availability import Availability
from bhfl.engine.checkpoint import digest, load
from bhfl.engine.environment import NEEDED, PACKAGES
from bhfl.engine.evaluate import Evaluator
from bhfl.engine.exchange import Fault, Measured, Reply, Task, Verdict
from bhfl.engine.links import MeasuredLinks
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client, ServerState
from bhfl.quant import BitSpec
from bhfl.remote import attendance, fleet
from bhfl.remote.app.frames import put
from bhfl.remote.attendance import Terms
from bhfl.remote.fleet import FlowerClients
from bhfl.remote.messages import Facts, Hello, Order, Refused, join, pack, split, unpack
from bhfl.remote.relay import Answer, Relay
from bhfl.remote.resident import Resident, facts_of
from bhfl.remote.serve import _told
from bhfl.remote.wire import Wire
from tests.engine.hand_made import client_rows
from tests.engine.test_exchange import data, make_trainer, net, outcome, run
from tests.processes import PROCESSES


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    for module in (attendance, fleet):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)


# ---- the same bits -------------------------------------------------------------------------------


def reside(connection: Connection, folder: Path, case: str) -> None:
    """All clients of a case, each with a session of its own, until the pipe is closed."""

    def opened(hello: Hello, stack: ExitStack) -> Session:
        torch.manual_seed(0)
        trainer = make_trainer(folder, case)
        return stack.enter_context(Session.opened(trainer, net(case), data(), "fit", "test"))

    residents = {client: Resident(opened, folder / str(client), client) for client in range(5)}
    while message := connection.recv_bytes():
        client, answer = int(message[:1]), message[1:]
        connection.send_bytes(residents[client].answer(answer))
    for resident in residents.values():
        resident.close()


class PipedGrid:
    """A Grid whose nodes are the clients of a process at the other end of a pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pushed: dict[str, bytes] = {}

    def nodes(self) -> list[int]:
        return [10, 11, 12, 13, 14]

    def push(self, messages: Any, seconds: float, round: int) -> list[str]:
        return [self._push(node, data, round) for node, data in messages]

    def _push(self, node: int, data: bytes, round: int) -> str:
        id = f"{node}-{round}-{len(self.pushed)}-{len(data)}"
        self.pushed[id] = data
        return id

    def pull(self, ids: list[str]) -> list[Answer]:
        # the last first: replies come in any order
        id = ids[-1]
        self.connection.send_bytes(id[1].encode() + self.pushed.pop(id))
        return [Answer(id, self.connection.recv_bytes(), "")]


@contextmanager
def residing(folder: Path, case: str) -> Iterator[PipedGrid]:
    """The clients of a case in a process of their own."""
    ours, theirs = PROCESSES.Pipe()
    folder.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=reside, args=(theirs, folder, case))
    process.start()
    theirs.close()
    try:
        yield PipedGrid(ours)
        ours.send_bytes(b"")
    finally:
        ours.close()
        process.join(60)
    assert process.exitcode == 0


def served(folder: Path, case: str, grid: Any, ckpt_path: Any = None, **options: Any) -> Any:
    trainer = make_trainer(folder, case, **options)
    keyed = {10 + client: client for client in range(5)}

    def connect(session):
        return FlowerClients(session, grid, lambda nodes: keyed, {}, Terms(), trainer.run.folder)

    trainer.connect = connect
    torch.manual_seed(0)
    trainer.fit(net(case), data(), ckpt_path)
    return trainer


def seen(trainer: Any) -> dict[str, Any]:
    """What of a run must not depend on where its clients are."""
    found = outcome(trainer, trainer.run.folder / "nowhere")
    return {key: found[key] for key in ("rows", "server", "ledger", "test")}


LATE = Reply(client=0, round=0, fault=Fault("late", "no reply came"))
SAME = ["FedCOMGATE", "differences", "frozen"]
for case in ("FedPer", "ProWD", "FedLQ", "FedLQ both ways", "schedule"):
    SAME.append(pytest.param(case, marks=pytest.mark.slow))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)")
@pytest.mark.parametrize("case", SAME)
def test_clients_behind_a_grid_come_to_the_same(tmp_path, case):
    here = run(tmp_path / "here", case)
    with residing(tmp_path / "away", case) as grid:
        there = served(tmp_path / "there", case, grid)
    assert seen(there) == seen(here)
    with open(there.run.folder / "wire.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    up = sum(int(row["uplink_bytes"]) for row in rows)
    assert up == sum(sent["uplink_bytes"] for sent in there.run.ledger.by_group.values())
    assert all(int(row["reply_bytes"]) > int(row["uplink_bytes"]) for row in rows)


@pytest.mark.parametrize("case", ["FedCOMGATE", "FedPer"])
def test_server_and_residents_that_were_killed_go_on_as_if_they_had_not_been(tmp_path, case):
    """The last round is gone with the server, which had taken its replies; the clients' processes
    begin anew too.
    """
    here = run(tmp_path / "here", case)
    with residing(tmp_path / "away", case) as grid:
        killed = served(tmp_path / "there", case, grid)
    (killed.run.checkpoints / "round=00003.ckpt").unlink()
    with residing(tmp_path / "away", case) as grid:
        resumed = served(tmp_path / "there", case, grid, killed.run.folder)
    assert seen(resumed) == seen(here)


def test_clients_that_have_lost_what_is_frozen_are_sent_it_again(tmp_path):
    here = run(tmp_path / "here", "frozen")
    with residing(tmp_path / "away", "frozen") as grid:
        killed = served(tmp_path / "there", "frozen", grid)
    (killed.run.checkpoints / "round=00003.ckpt").unlink()
    copies = list((tmp_path / "away").rglob("frozen-*.pt"))
    assert len(copies) == len(here.server.holders)
    for copy in copies:
        copy.unlink()
    with residing(tmp_path / "away", "frozen") as grid:
        resumed = served(tmp_path / "there", "frozen", grid, killed.run.folder)
    assert digest(vars(resumed.server)) == digest(vars(here.server))
    more = resumed.run.ledger.total("downlink_bytes") - here.run.ledger.total("downlink_bytes")
    # each client of the last round that held it has a machine of its own
    frozen = len(encode(here.server.buffers["frozen"]))
    again = {**here.server.params, **here.session.travelling(here.server, "int8")}
    rows = client_rows(resumed.run.folder)
    last = {int(row["client"]) for row in rows if (row["stage"], row["round"]) == ("train", "3")}
    lost = len(last & set(_holders(killed, 2)))
    assert more == lost * (frozen + len(encode(again))) > 0


def _holders(trainer: Any, round: int) -> list[int]:
    """Who held what is frozen after a round."""
    path = trainer.run.checkpoints / f"round={round:05d}.ckpt"
    return list(load(path)["server"]["holders"])


# ---- lost state ----------------------------------------------------------------------------------


class HereGrid:
    """A Grid whose nodes are the clients of a case in this very process; something happens to one
    of them before it trains in some round.
    """

    def __init__(self, folder: Path, case: str, before: Callable[[Resident, Task], None]) -> None:
        self.folder = folder
        self.case = case
        self.before = before
        self.residents = {one: Resident(self.opened, folder / str(one), one) for one in range(5)}
        self.answers: dict[str, bytes] = {}

    def opened(self, hello: Hello, stack: ExitStack) -> Session:
        trainer = make_trainer(self.folder, self.case)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = net(self.case)
        return stack.enter_context(Session.opened(trainer, module, data(), "fit", "test"))

    def nodes(self) -> list[int]:
        return [10, 11, 12, 13, 14]

    def push(self, messages: Any, seconds: float, round: int) -> list[str]:
        return [self._push(node, data, round) for node, data in messages]

    def _push(self, node: int, data: bytes, round: int) -> str:
        resident = self.residents[node - 10]
        task = unpack(parts[2], Task) if len(parts := split(data)) > 1 else None
        if task and task.stage == "train":
            self.before(resident, task)
        id = f"{len(self.answers)}"
        self.answers[id] = resident.answer(data)
        return id

    def pull(self, ids: list[str]) -> list[Answer]:
        return [Answer(id, self.answers[id], "") for id in ids]

    def close(self) -> None:
        for resident in self.residents.values():
            resident.close()


def with_a_loss(folder: Path, case: str, **options: Any) -> tuple[list[Any], Any]:
    """The rows and the summary of a run in which client 0 loses all that it kept in two rounds."""

    def wipe(resident: Resident, task: Task) -> None:
        if (task.client, task.round) == (0, 2):
            resident.close()
            shutil.rmtree(folder / "away" / "0")

    grid = HereGrid(folder / "away", case, wipe)
    trainer = served(folder / "there", case, grid, **options)
    grid.close()
    summary = json.loads((trainer.run.folder / "summary.json").read_text())
    return trainer.run.history, summary


REFUSED = ["SCAFFOLD", "FedDyn", "FedCOMGATE all", "Local"]
ANEW = ["FedPer", "frozen and own models all", "norm local all"]


@pytest.mark.filterwarnings("ignore:round .* client 0 failed", "ignore:client 0 was not measured")
@pytest.mark.parametrize("case", REFUSED)
def test_a_client_is_refused_by_name_whose_lost_state_others_need(tmp_path, case):
    case, *everyone = case.split(" all")
    options = {"clients_per_round": 5} if everyone else {}
    rows, summary = with_a_loss(tmp_path, case, max_rounds=4, **options)
    told = "what client 0 kept of round 2 is lost on its machine, and"
    told = f"client 0 failed: {told} {case} does not begin it anew"
    assert [row["clients/ok"] for row in rows] == [5, 5, 4, 4]
    # for as long as the run lasts
    assert [row["problems"] for row in rows[2:]] == [[told]] * 2
    assert "begun_anew" not in summary
    assert all("clients/anew" not in row for row in rows)


@pytest.mark.parametrize("case", ANEW)
def test_a_client_begins_anew_whose_lost_state_nobody_else_needs(tmp_path, case):
    """It is counted and told in the round's row and in the summary, and goes on from there."""
    case, *everyone = case.split(" all")
    options = {"clients_per_round": 5} if everyone else {}
    rows, summary = with_a_loss(tmp_path, case, max_rounds=4, **options)
    assert [row["clients/ok"] for row in rows] == [5] * 4
    assert [row.get("clients/anew") for row in rows] == [None, None, 1, None]
    told = "client 0 has begun anew: what it kept is lost on its machine"
    assert rows[2]["problems"] == [told]
    assert summary["begun_anew"] == 1


@pytest.mark.filterwarnings("ignore:round .* client 0 failed")
@pytest.mark.parametrize(("case", "ok"), [("FedAvg", 5), ("SCAFFOLD", 4)])
def test_a_lost_reference_costs_a_round_and_does_not_hide_lost_state(tmp_path, case, ok):
    """Whole weights come after it; what the method kept is lost all the same."""
    rule = Downlink(4, "differences")
    rows, _ = with_a_loss(tmp_path, case, max_rounds=4, downlink=rule, validate_first=False)
    assert [row["clients/ok"] for row in rows] == [5, 5, 4, ok]
    assert "weights that it was sent differences to" in rows[2]["problems"][0]
    assert rows[3]["whole_bytes"] == rows[0]["whole_bytes"] // 5


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 16 MB at a folder, where this user may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a tmpfs: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore:round .* client 0 failed")
@pytest.mark.parametrize("case", ["SCAFFOLD", "FedPer"])
def test_a_client_whose_disk_is_full_is_back_when_it_has_room(tmp_path, case):
    """It fails by name, and goes on with the state that the server took from it last."""
    with small_disk(tmp_path / "away" / "0") as disk:
        blocks = disk / "blocks"

        def fill(resident: Resident, task: Task) -> None:
            if task.client == 0 and task.round == 2:
                with suppress(OSError), open(blocks, "wb", buffering=0) as file:
                    while file.write(bytes(2**12)):
                        pass
            elif task.client == 0:
                blocks.unlink(missing_ok=True)

        grid = HereGrid(tmp_path / "away", case, fill)
        rows = served(tmp_path / "there", case, grid, max_rounds=4).run.history
        grid.close()
    assert [row["clients/ok"] for row in rows] == [5, 5, 4, 5]
    assert rows[2]["problems"][0].startswith("client 0 failed: OSError: [Errno 28] No space left")
    assert rows[3]["problems"] == []


# ---- faults --------------------------------------------------------------------------------------

CLIENTS = [Client(0, BitSpec(), 10), Client(1, BitSpec(), 10)]
TASKS = [
    Task(client=client, round=3, downlink=b"down", version=0, channels_last=False)
    for client in (0, 1)
]


class MadeGrid:
    """A Grid whose two clients answer as a test says."""

    def __init__(self, answers: Any, facts: dict[str, Any] | None = None) -> None:
        self.answers = answers
        self.facts = facts or {}
        self.there = [10, 11]
        self.waiting: dict[str, tuple[int, bytes]] = {}
        self.sent = 0

    def nodes(self) -> list[int]:
        return self.there

    def push(self, messages: Any, seconds: float, round: int) -> list[str]:
        return [self._push(node, data, round) for node, data in messages]

    def _push(self, node: int, data: bytes, round: int) -> str:
        self.sent += 1
        self.waiting[str(self.sent)] = node - 10, data
        return str(self.sent)

    def pull(self, ids: list[str]) -> list[Answer]:
        found = []
        for id in ids:
            client, data = self.waiting[id]
            parts = split(data)
            if len(parts) == 1:
                hello = {"client": client, "group": "float32", "num_examples": 10}
                facts = Facts(**{**hello, "facts": facts_of(SESSION), **self.facts})
                found.append(Answer(id, pack(facts), ""))
            else:
                answer = self.answers(unpack(parts[2], Task), unpack(parts[1], Order))
                found += [] if answer is None else [Answer(id, *answer)]
        return found


SESSION: Any = SimpleNamespace(
    fleet=CLIENTS,
    settings=SimpleNamespace(cohort=SimpleNamespace(min_clients=1)),
    algorithm=SimpleNamespace(communicates=True),
    hooks=SimpleNamespace(expected=lambda server: {"w": torch.zeros(50)}),
    travelling=lambda server, bits: {},
    bits=["float32"],
    server=ServerState({}),
    told={},
    data=SimpleNamespace(val_batches=lambda: [torch.zeros(3, 2)]),
    own=SimpleNamespace(first={"w": torch.zeros(50)}),
    trainer=SimpleNamespace(links=None),
)


def keyed(nodes: list[int]) -> dict[int, int]:
    return {node: node - 10 for node in nodes}


def fleet_of(folder: Path, grid: MadeGrid, **terms: Any) -> FlowerClients:
    chosen = Terms(**{"round_seconds": 0.3, "wait_seconds": 0.3, **terms})
    return FlowerClients(SESSION, grid, keyed, {}, chosen, folder)


def good(task: Task, order: Order) -> tuple[bytes, str]:
    return pack(Reply(client=task.client, round=task.round, payload=b"up", num_examples=1)), ""


def test_a_grid_that_is_lost_is_restored_and_its_tasks_are_sent_again(tmp_path):
    grid = MadeGrid(good)
    clients = fleet_of(tmp_path, grid)
    pull, lost = grid.pull, [True]

    def fail_once(ids):
        if lost:
            raise ConnectionError
        return pull(ids)

    grid.pull = fail_once
    grid.restore = lost.clear
    with pytest.warns(UserWarning, match="SuperLink was lost"):
        replies = list(clients.train(iter(TASKS)))
    assert [reply.payload for reply in replies] == [b"up", b"up"]
    # two greetings, and each task twice
    assert grid.sent == 6


def of_first(answer: Any) -> Any:
    """Answers of which that of client 0 is another one."""
    return lambda task, order: good(task, order) if task.client else answer(task)


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (lambda task: None, "late", "no reply came within 0.3 s"),
        (lambda task: (b"", "node unavailable (code 5)"), "failed", "node unavailable"),
        (lambda task: (b"\xff" * 100, ""), "rejected", "its reply is none: a message is cut off"),
        (lambda task: (b"", ""), "rejected", "its reply is none"),
        (
            lambda task: (pack(Reply(client=0, round=2, payload=b"up")), ""),
            "rejected",
            "client 0 in round 2, and client 0 was asked in round 3",
        ),
        (
            lambda task: (pack(Reply(client=1, round=3, payload=b"up")), ""),
            "rejected",
            "that of client 1",
        ),
        (
            lambda task: (pack(Reply(client=0, round=3, payload=b"0" * 10_000)), ""),
            "rejected",
            "payloads must have at most",
        ),
        (
            lambda task: (pack(Reply(client=0, round=3, metrics={"a": float("nan")})), ""),
            "rejected",
            r"Reply.metrics\['a'\]",
        ),
        (lambda task: (pack(Refused(reason="no disk")), ""), "failed", "no disk"),
    ],
)  # fmt: skip
def test_what_goes_wrong_with_one_client_ends_its_round_and_no_others(
    tmp_path, answer, status, says
):
    clients = fleet_of(tmp_path, MadeGrid(of_first(answer)))
    replies = {reply.client: reply for reply in clients.train(iter(TASKS))}
    assert replies[1].payload == b"up"
    assert replies[0].payload is None
    assert replies[0].fault.status == status
    assert says.replace("\\", "") in replies[0].fault.reason


def test_what_flower_does_not_take_is_sent_again_after_a_pause(tmp_path, monkeypatch):
    grid = MadeGrid(good)
    clients = fleet_of(tmp_path, grid)
    monkeypatch.setattr(fleet, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(fleet, "LONGEST_PAUSE", 0.05)
    pushed = []
    grid.push = lambda some, *_: [pushed.append(node) for node, _ in some]
    assert all(reply.fault.status == "late" for reply in clients.train(iter(TASKS)))
    assert 2 <= len(pushed) <= 2 * 7


@pytest.mark.parametrize("error", [RuntimeError("no such data set"), SystemExit(3)])
def test_whatever_goes_wrong_on_a_clients_machine_is_told_and_not_its_end(tmp_path, error):
    def broken(hello, stack):
        raise error

    resident = Resident(broken, tmp_path, 0)
    hello = Hello(run="a" * 32, config={}, backends={}, client=0)
    for _ in range(2):
        refused = unpack(resident.answer(join(pack(hello))), Refused)
        assert str(error) in refused.reason
        assert type(error).__name__ in refused.reason or "sys.exit(3)" in refused.reason


def test_a_server_app_that_hangs_is_lost(tmp_path):
    started = []

    def start(path):
        app = socket.socket(socket.AF_UNIX)
        app.connect(str(path))
        started.append(app)

    relay = Relay(tmp_path, start, seconds=0.1)
    relay.restore()
    for call in (relay.nodes, lambda: relay.push([(1, b"")], 1.0, 0), lambda: relay.pull(["a"])):
        with pytest.raises(ConnectionError, match=r"has not answered within 0.1 s"):
            call()
        relay.restore()
    relay.close()
    for app in started:
        app.close()


def test_a_refusal_is_told_on_one_line_and_seconds_are_those_of_a_round(tmp_path):
    def answer(task, order):
        if task.client == 0:
            return pack(Refused(reason="no disk\n" + "a" * 9000)), ""
        reply = Reply(client=1, round=3, payload=b"up", seconds=1e300)
        return pack(reply), ""

    clients = fleet_of(tmp_path, MadeGrid(answer))
    replies = {reply.client: reply for reply in clients.train(iter(TASKS))}
    assert replies[1].seconds == clients.terms.round_seconds
    assert replies[0].fault.reason.startswith(r"no disk\na")
    assert len(replies[0].fault.reason) <= 400
    with pytest.warns(UserWarning, match="client 0 cannot take part") as told:
        fleet_of(tmp_path, MadeGrid(answer, {"group": "b\n" * 9000}))
    assert all("\n" not in str(one.message) for one in told)


@pytest.mark.parametrize(
    "terms", [{"wait_for": 0}, {"wait_for": -1}, {"round_seconds": 0}, {"round_seconds": -1.0},
              {"round_seconds": float("nan")}, {"wait_seconds": 0.0}],
)  # fmt: skip
def test_terms_that_cannot_be_are_refused_by_name(terms):
    with pytest.raises(ValueError, match=f"{next(iter(terms))} must"):
        Terms(**terms)


def test_a_client_that_has_changed_is_greeted_anew(tmp_path):
    def answer(task, order):
        digests.append(order.facts)
        return pack(Refused(reason="changed", changed=True)) if task.client == 0 else good(
            task, order
        )[0], ""

    digests: list[str] = []
    grid = MadeGrid(answer)
    clients = fleet_of(tmp_path, grid, strict=True)
    assert [reply.fault is None for reply in clients.train(iter(TASKS))].count(True) == 1
    assert len(set(digests)) == 2
    assert "" not in digests
    grid.facts = {"facts": {}}
    with pytest.warns(UserWarning, match="client 0 cannot take part: its bits may differ"):
        clients.attendance.gather(2)
    assert list(clients.attendance.nodes) == [1]


def test_a_client_does_nothing_for_a_server_that_takes_it_for_another(tmp_path):
    def opened(hello: Hello, stack: ExitStack) -> Session:
        trainer = make_trainer(tmp_path, "FedCOMGATE")
        return stack.enter_context(
            Session.opened(trainer, net("FedCOMGATE"), data(), "fit", "test")
        )

    resident = Resident(opened, tmp_path, 0)
    hello = pack(Hello(run="a" * 32, config={}, backends={}, client=0))
    unpack(resident.answer(join(hello)), Facts)
    order = pack(Order(facts="another"))
    assert unpack(resident.answer(join(hello, order, pack(TASKS[0]))), Refused).changed
    resident.close()


def test_wire_rows_are_of_tasks_to_train(tmp_path):
    clients = fleet_of(tmp_path, MadeGrid(good))
    task = Task(**{**vars(TASKS[0]), "stage": "val"})
    with pytest.warns(UserWarning, match="was not measured"):
        list(clients.evaluate(iter([task])))
    clients.attendance.nodes.clear()
    clients.attendance.gather = lambda wanted: None
    list(clients.train(iter(TASKS[:1])))
    with open(tmp_path / "wire.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["task_bytes"] == "0"


def test_closing_messages_that_nobody_goes_back_to_are_dropped(tmp_path):
    clients = fleet_of(tmp_path, MadeGrid(good))
    for round in (1, 2, 3):
        clients.close(round, {0: Verdict(True, b"closing")})
    assert [path.name for path in (tmp_path / "closings").iterdir()] == ["round=00003.bin"]


def test_an_answer_that_is_too_long_is_not_held(tmp_path):
    def start(path):
        app.connect(str(path))

    with socket.socket(socket.AF_UNIX) as app:
        relay = Relay(tmp_path, start, seconds=5.0)
        relay.restore()
        relay.most_bytes = 100
        for id, size in [("a", 101), ("b", 100)]:
            put(app, json.dumps({"id": id}).encode())
            put(app, bytes(size))
        put(app, b"")
        long, short = relay.pull(["a", "b"])
        relay.close()
    assert long == Answer("a", b"", "a message must have at most 100 bytes, got 101")
    assert short == Answer("b", bytes(100), "")


def test_answers_are_bounded_by_what_an_update_may_have(tmp_path):
    grid = MadeGrid(good)
    list(fleet_of(tmp_path, grid).train(iter(TASKS)))
    assert 2**26 < grid.most_bytes < 2**26 + 10_000


def test_a_client_that_is_gone_has_failed_and_is_back_when_it_is_there_again(tmp_path):
    grid = MadeGrid(good)
    clients = fleet_of(tmp_path, grid)
    grid.there = [11]
    replies = {reply.client: reply.fault for reply in clients.train(iter(TASKS))}
    assert replies[0].reason == "the client is not connected"
    assert replies[1] is None
    grid.there = [10, 11]
    assert all(reply.fault is None for reply in clients.train(iter(TASKS)))


@pytest.mark.parametrize("facts", [{"client": 1}, {"group": "int8"}, {"num_examples": 9}])
def test_a_client_that_is_not_the_fleets_is_refused_by_name(tmp_path, facts):
    with pytest.warns(UserWarning, match=f"client 0 cannot take part: {next(iter(facts))} must"):
        clients = fleet_of(tmp_path, MadeGrid(good, facts), wait_for=2)
    assert 0 not in clients.attendance.nodes


def test_what_makes_bits_differ_is_told_and_refused_where_that_is_asked_for(tmp_path):
    grid = MadeGrid(good, {"facts": {**facts_of(SESSION), "torch": "1.0"}})
    with pytest.warns(UserWarning, match=r"client 0 may not come to the same bits.*and 1.0 there"):
        assert len(fleet_of(tmp_path, grid).attendance.nodes) == 2
    with pytest.warns(UserWarning, match="client 0 cannot take part: its bits may differ: torch"):
        assert not fleet_of(tmp_path, grid, strict=True).attendance.nodes


def test_a_client_that_torch_alone_trains_has_no_lightning_to_be_told_of(tmp_path):
    facts = facts_of(SESSION)
    assert {"lightning", "torchvision"} <= facts.keys()
    small = {name: value for name, value in facts.items() if name not in PACKAGES}
    grid = MadeGrid(good, {"facts": small | {name: facts[name] for name in NEEDED}})
    assert len(fleet_of(tmp_path, grid, strict=True).attendance.nodes) == 2
    grid = MadeGrid(good, {"facts": small})
    with pytest.warns(UserWarning, match="client 0 cannot take part: its bits may differ: torch"):
        assert not fleet_of(tmp_path, grid, strict=True).attendance.nodes


def test_what_a_model_has_from_the_servers_data_is_told() -> None:
    model = SimpleNamespace(_made_with={"net": "cnn", "num_classes": 7})
    session: Any = SimpleNamespace(settings=FederatedTrainer({8: 2}).settings, module=model)
    assert _told({"model": "Classifier"}, session)["sizes"] == {"num_classes": 7}
    with pytest.raises(ValueError, match=r"algorithm cannot be told to clients, .*: of ours"):
        _told({"unwritten": {"algorithm": "of ours"}}, session)


def test_who_does_not_measure_is_left_out(tmp_path):
    def answer(task, order):
        return pack(Measured(client=1, stage="val", metrics={"acc": 0.5})), ""

    clients = fleet_of(tmp_path, MadeGrid(answer))
    tasks = [Task(**{**vars(task), "stage": "val"}) for task in TASKS]
    with pytest.warns(UserWarning, match="client 0 was not measured: client 1 measured val"):
        found = list(clients.evaluate(iter(tasks)))
    assert [one.client for one in found] == [1]


def test_who_measures_by_other_names_than_most_is_left_out(tmp_path):
    def answer(task, order):
        metrics = {"acc": 0.5} if task.round == 3 else {"other": 1.0}
        return pack(Measured(client=task.client, stage="val", metrics=metrics)), ""

    clients = fleet_of(tmp_path, MadeGrid(answer))
    tasks = [Task(**{**vars(task), "stage": "val"}) for task in TASKS]
    tasks.insert(0, Task(**{**vars(tasks[0]), "round": 2}))
    with pytest.warns(UserWarning, match="its metrics are not those of others"):
        found = list(clients.evaluate(iter(tasks)))
    assert [one.metrics for one in found] == [{"acc": 0.5}] * 2


@pytest.mark.parametrize("there", [["int8", "float32"], ["int8"]])
def test_means_are_of_the_groups_that_have_answered(there):
    evaluator = object.__new__(Evaluator)
    evaluator.session = SESSION
    evaluator.shares = {"int8": 0.25, "float32": 0.75}
    found = evaluator._tag({group: {"acc": 0.5} for group in there}, ["float32"], "val")
    assert found["val/acc_avg"] == 0.5
    assert ("val/acc" in found) == ("float32" in there)


def test_what_closes_a_round_goes_with_tasks_until_it_has_been_heard(tmp_path):
    heard: list[bytes | None] = []
    silent = True

    def answer(task, order):
        heard.append(order.closing)
        return None if silent else good(task, order)

    clients = fleet_of(tmp_path, MadeGrid(answer))
    clients.close(3, {0: Verdict(True, b"closing"), 1: Verdict(False)})
    task = Task(**{**vars(TASKS[0]), "version": 3})
    list(clients.train(iter([task])))
    silent = False
    heard.clear()
    for _ in range(2):
        list(clients.train(iter([task])))
    assert heard == [b"closing", None]
    # it is there for a server that begins anew
    again = fleet_of(tmp_path, MadeGrid(answer))
    list(again.train(iter([task])))
    assert heard[-1] == b"closing"


def test_clients_are_told_nothing_of_a_trace_that_is_a_file_of_the_servers(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,round,event\n0,1,dropout\n")
    trainer = FederatedTrainer({8: 2}, availability=Availability(trace=trace))
    written = {"trainer": {"availability": {"trace": str(trace)}, "local_epochs": 2, "devices": 1}}
    session: Any = SimpleNamespace(settings=trainer.settings, module=None)
    assert _told(written, session)["trainer"] == {"local_epochs": 2}
    links = tmp_path / "links.csv"
    links.write_text("client,round,uplink_bps,downlink_bps\n0,0,1e6,1e6\n1,0,1e6,1e6\n")
    for network, told in ((SimulatedNetwork(trace=links), {}), (SimulatedNetwork("iot"), {"n": 1})):
        session.settings = FederatedTrainer({8: 2}, network=network).settings
        found = _told({"trainer": {"network": {"n": 1}}}, session)["trainer"]
        assert found.get("network", {}) == told


def test_links_are_measured_by_the_rows_of_a_run_that_goes_on(tmp_path):
    first, again = (MeasuredLinks(FederatedTrainer({8: 2}).settings) for _ in range(2))
    for links in (first, again):
        links.read_by("it")
    wire = Wire(tmp_path / "wire.csv", 0, first)
    answer = Reply(client=0, round=0, num_examples=8)
    silent = replace(answer, fault=Fault("skipped", "nothing was sent", carried=True))
    for client, reply in enumerate((answer, LATE, silent)):
        task = replace(TASKS[0], client=client)
        wire.sent(task, bytes(1000))
        wire.received(task, replace(reply, client=client, seconds=0.001), bytes(500))
    wire.write()
    Wire(tmp_path / "wire.csv", TASKS[0].round + 1, again)
    one, other, third = (Client(id, BitSpec.parse(8), 8) for id in range(3))
    assert first.link(1, one, 2) == again.link(1, one, 2) is not None
    # one that did not answer in time says nothing of its link
    assert first.link(1, other, 2) is again.link(1, other, 2) is None
    # one that had no time to send anything would never have any, if that told nothing
    assert first.link(1, third, 2) == again.link(1, third, 2) is not None
