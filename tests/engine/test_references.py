"""Clients that are sent differences to what they were sent last."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedAvg, FedCOMGATE, FedDyn, ProWD
from bhfl.algorithms.prowd import Mask
from bhfl.algorithms.prowd.moves import MoveReader
from bhfl.comm import decode, encode, encoded_bytes, float_tensors
from bhfl.downlink import Downlink
from bhfl.engine.checkpoint import CheckpointError, load_last
from bhfl.engine.client.common import COMMON
from bhfl.engine.client.messages import split
from bhfl.engine.devices import Devices, Group
from bhfl.engine.downlink import as_sent, sent_as
from bhfl.engine.references import References
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client, ServerState, Update
from bhfl.quant import PRESETS, QuantizedTensor
from bhfl.quant.sending import quantize_as_sent
from tests.federation import fit, same

FLEET = {"ternary": 1, 8: 1, 32: 2}
RULE = Downlink(3, "differences", keep=2)


def devices(rule: Any = RULE, bits: str = "ternary") -> Devices:
    return Devices(Group(bits=PRESETS[bits]), rule)


class Resting(FedAvg):
    """A server that never moves, and clients that tell what they start from."""

    def server_update(self, server: Any, aggregate: Any, rng: Any) -> Any:
        return server

    def uplink(self, run: Any) -> Any:
        gap = (run.received["net.3.weight"] - run.state["model"]).norm()
        run.metrics[f"gap_{run.client.id}"] = float(gap)
        return super().uplink(run)

    def init_client(self, client: Any, received: Any) -> Any:
        # the first message is whole
        return {"model": received["net.3.weight"].clone()}


class Moving(Resting):
    """A server that moves once, in its first round."""

    def server_update(self, server: Any, aggregate: Any, rng: Any) -> Any:
        return server if server.round else self.apply_mean(server, aggregate)


# ---- one message ---------------------------------------------------------------------------------


def test_what_rounding_left_out_is_in_the_next_difference() -> None:
    torch.manual_seed(0)
    model = {"net.0.weight": torch.randn(5, 7), "net.0.bias": torch.randn(5)}
    before = {"net.0.weight": torch.zeros(5, 7)}
    errors = []
    for _ in range(4):
        sent = sent_as(model, devices(), model, before)
        codes = sent.message["net.0.weight"]
        assert isinstance(codes, QuantizedTensor)
        assert codes.bits == 3
        assert sent.message["net.0.bias"] is model["net.0.bias"]
        # the client comes to the very same
        read = float_tensors(decode(encode(sent.message)))["net.0.weight"]
        assert torch.equal(before["net.0.weight"] + read, sent.weights["net.0.weight"])
        before = sent.weights
        errors.append(float((before["net.0.weight"] - model["net.0.weight"]).abs().max()))
    # 3 bits have steps of a third of the largest entry, so that a sixth of it is left each time
    assert all(later <= 0.17 * sooner for sooner, later in pairwise(errors))


def test_whoever_has_nothing_is_sent_the_weights_themselves() -> None:
    model = {"net.0.weight": torch.randn(5, 7), "net.0.bias": torch.randn(5)}
    for before in ({}, {"net.1.weight": torch.zeros(2, 2)}):
        sent = sent_as({**model, "control": model["net.0.weight"]}, devices(), model, before)
        assert sent.whole
        assert sent.message["net.0.weight"] is model["net.0.weight"]
        assert list(sent.weights) == ["net.0.weight"]
    float32 = sent_as(model, devices(Downlink("client", "differences"), "float32"), model, {})
    assert not float32.weights
    assert not float32.whole


@pytest.mark.parametrize(
    ("round", "accepted", "bits"), [(0, {}, 32), (4, {0: 2}, 32), (4, {0: 3}, 3), (4, {0: 4}, 3)]
)
def test_the_size_of_a_message_is_known_before_it_is_made(
    round: int, accepted: dict[int, int], bits: int
) -> None:
    model = {"net.0.weight": torch.randn(8, 8)}
    its = devices()
    server = ServerState(model, round, accepted=accepted)
    size = encoded_bytes(as_sent(model, Client(0, its.spec, 1, 1.0, its), server))
    before = {"net.0.weight": torch.zeros(8, 8)} if bits == 3 else {}
    assert size == len(encode(sent_as(model, its, model, before).message))


# ---- runs ----------------------------------------------------------------------------------------


def test_clients_come_ever_nearer_to_a_model_that_rests(tmp_path: Path) -> None:
    run = fit(tmp_path, Moving(), FLEET, max_rounds=5, downlink=RULE).run
    moved = fit(tmp_path, Moving(), FLEET, max_rounds=2, downlink="float32").run.history[-1]
    for client in range(4):
        # how far the model has gone from the first one
        gaps = [row[f"gap_{client}"] for row in run.history]
        assert gaps[0] == 0.0
        assert gaps[1] != moved[f"gap_{client}"]
        assert gaps[4] == pytest.approx(moved[f"gap_{client}"], rel=5e-3)


def test_clients_of_one_kind_share_what_they_were_sent(tmp_path: Path) -> None:
    trainer = fit(tmp_path, FedAvg(), {8: 2, 32: 1}, downlink=RULE, max_rounds=5)
    references = trainer.session.references
    both = [references._path(client, 5).with_name(f"client={client}-round=00005-common.pt")
            for client in (0, 1)]  # fmt: skip
    assert both[0].samefile(both[1])
    # the client keeps the very weights that the server takes differences to
    held = references.load(0, 5)[COMMON]
    _, sent = split(trainer.session.store.load(0, 5)[COMMON])
    assert int(sent.pop("sent in round")) == 5
    assert same({name.removeprefix("sent last/"): t for name, t in sent.items()}, held)
    # those that the last two checkpoints and the best one ask for are left
    assert len(list(references.folder.rglob("client=0-*-common.pt"))) <= 3


@pytest.mark.parametrize("groups", [(8, 32), (32, 8)])
def test_the_first_weights_of_all_are_kept_by_those_that_get_differences(
    tmp_path: Path, groups: tuple[int, int]
) -> None:
    rule = Downlink("client", "differences")
    trainer = fit(tmp_path, FedAvg(), dict.fromkeys(groups, 1), downlink=rule, max_rounds=3)
    assert [row["clients/ok"] for row in trainer.run.history] == [2, 2, 2]
    files = list((trainer.run.folder / "clients").rglob("client=*-common.pt"))
    assert {file.name.partition("-")[0] for file in files} == {f"client={groups.index(8)}"}


def test_clients_that_were_away_too_long_are_sent_weights_and_counted(tmp_path: Path) -> None:
    options = {"clients_per_round": 1, "sampling": "uniform", "max_rounds": 8}
    run = fit(tmp_path, FedAvg(), {8: 3}, downlink=RULE, **options).run
    last: dict[int, int] = {}
    whole = []
    for line in (run.folder / "clients.csv").read_text().splitlines()[1:]:
        round, _, client = line.split(",")[:3]
        if int(round) <= 8 and line.split(",")[1] == "train":
            whole.append(int(round) - last.get(int(client), -9) > RULE.keep)
            last[int(client)] = int(round)
    assert [row["whole_bytes"] > 0 for row in run.history] == whole
    assert 0 < sum(whole) < 8
    assert all(row["whole_bytes"] in (0, row["downlink_bytes"]) for row in run.history)
    assert run.ledger.total("whole_bytes") == sum(row["whole_bytes"] for row in run.history)


class Unlucky(FedAvg):
    """Client 0 fails in the second round."""

    def client_loss(self, run: Any, batch: Any, batch_idx: int) -> Any:
        if (run.round, run.client.id) == (1, 0):
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)


@pytest.mark.filterwarnings("ignore:round 2")
@pytest.mark.parametrize(("least", "kept"), [(1, {0: 1, 1: 2}), (2, {0: 1, 1: 1})])
def test_a_lost_update_and_a_skipped_round_leave_it_as_it_was(
    tmp_path: Path, least: int, kept: dict[int, int]
) -> None:
    trainer = fit(tmp_path, Unlucky(), {8: 2}, downlink=RULE, min_clients=least, max_rounds=2)
    table = trainer.session.references.table()
    assert dict(zip(table["ids"].tolist(), table["rounds"].tolist(), strict=True)) == kept
    assert not list(trainer.run.folder.rglob("*.tmp"))


def test_a_lost_file_ends_the_run_by_name(tmp_path: Path) -> None:
    folder = fit(tmp_path, FedAvg(), {8: 2}, downlink=RULE, max_rounds=1).run.folder
    message = r"sent differences to what they were sent last: there is no .*references.*common"
    state = load_last(folder / "checkpoints")
    for path in folder.joinpath("references").rglob("client=1-*common.pt"):
        path.unlink()
    with pytest.raises(CheckpointError, match=message):
        fit(tmp_path, FedAvg(), {8: 2}, downlink=RULE, ckpt_path="last")
    with pytest.raises(CheckpointError, match="sent last: the file lies in no run folder"):
        References.listed(None, state["references"])


# ---- methods -------------------------------------------------------------------------------------


def test_gate_sends_the_model_in_each_round_and_its_mean_whole(tmp_path: Path) -> None:
    gate = lambda bits: FedCOMGATE(bits, allow_inexact=True)  # noqa: E731
    row = fit(tmp_path, gate(4), {8: 2}, downlink=RULE, max_rounds=2).run.history[-1]
    full = fit(tmp_path, gate(4), {8: 2}, max_rounds=2).run.history[-1]
    # a model at 3 bits beside the mean, where clients rebuild it from the mean alone
    assert 1.05 < row["downlink_bytes"] / full["downlink_bytes"] < 1.6
    with pytest.raises(ValueError, match="FedCOMGATE with bits: 32 reckons from the weights"):
        fit(tmp_path, gate(32), {8: 2}, downlink=RULE)
    with pytest.raises(ValueError, match=r"got \{bits: 3, send: differences, keep: 2\}"):
        fit(tmp_path, FedDyn(), {8: 2}, downlink=RULE)


@pytest.mark.parametrize("models", ["single", "dual"])
def test_prowd_counts_moves_from_what_each_client_has(tmp_path: Path, models: Any) -> None:
    """A low-bit client that learns nothing does not move."""
    torch.manual_seed(0)
    model = {"net.0.weight": torch.randn(5, 7)}
    its = devices()
    client = Client(0, its.spec, 1, 1.0, its)
    received = {"net.0.weight": model["net.0.weight"] + 0.3 * torch.randn(5, 7)}
    codes = {"net.0.weight": quantize_as_sent(received["net.0.weight"], its.spec)}
    reader = MoveReader(model, model, models == "dual", "dequant_start", float_tensors)
    begun = reader.begins(Update(codes, b"", received), client)
    assert reader.read(codes, client, begun).squares == {"net.0.weight": 0.0}
    assert reader.read(codes, client).squares["net.0.weight"] > 0
    prowd = ProWD(Mask(tau=0.5), None, global_models=models)
    row = fit(tmp_path, prowd, FLEET, downlink=RULE, max_rounds=3).run.history[-1]
    assert (row["clients/ok"], row["whole_bytes"]) == (4, 0)


# ---- the option ----------------------------------------------------------------------------------


def test_a_long_form_of_what_is_short_is_the_same_run(tmp_path: Path) -> None:
    long = FederatedTrainer({8: 1}, downlink=Downlink("client", "weights", keep=9))
    assert long.settings.fleet.downlink == "client"
    assert FederatedTrainer({8: 1}, downlink=RULE).settings.fleet.downlink is RULE
    # as a configuration says it
    spelled: list[Any] = [({"bits": 4}, 4), (vars(RULE), RULE)]
    for options, rule in spelled:
        assert FederatedTrainer({8: 1}, downlink=options).settings.fleet.downlink == rule


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Downlink(1), r"downlink must be float32, client, 2\.\.16 or 32, got 1"),
        (Downlink(4, "difference"), "downlink send must be one of .* did you mean 'differences'"),
        (Downlink(4, "differences", 0), "downlink keep must be an integer from 1 .* got 0"),
        ({"bits": 4, "kep": 3}, "downlink must be .* got {'bits': 4, 'kep': 3}"),
    ],
)
def test_rules_that_there_are_not(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedTrainer({8: 2}, downlink=rule)


def test_a_coarse_downlink_of_differences_needs_no_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(tmp_path, clients={32: 2}, downlink=Downlink(2, "differences"), max_rounds=1)
    assert not [one for one in recwarn if "rounds the model" in str(one.message)]
