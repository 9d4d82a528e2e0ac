"""SCAFFOLD, FedDyn, FedNova and FedExP against recursions written apart, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bhfl.algorithms import SCAFFOLD, FedAvg, FedCOM, FedCOMGATE, FedDyn, FedExP, FedNova
from bhfl.engine.availability import WHOLE, Availability, part_of
from tests.algorithms.quadratics import Data, Module, Paced
from tests.federation import Client, fit, same

ROUNDS = 20
QUIET = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}
LR = 0.05
FALL = 0.98
ABSENT = Availability(dropout=0.2, loss=0.2, stragglers=0.5, part=[0.1, 0.9])


def plain():
    return Client(lr=0.1, momentum=0.0)


def trained(folder, algorithm, data, clients=4, module=Module, **options):
    settings = {"max_rounds": ROUNDS, **QUIET, **options}
    return fit(folder, algorithm, {32: clients}, module, data, **settings)


def numbers(data):
    return data.h.double().numpy(), data.t.double().numpy()


def close(run, w, name="weight"):
    found = run.server.params[name].double().numpy()
    return np.abs(found - w).max() <= 1e-5 * np.abs(w).max()


def test_scaffold_of_clients_that_are_away_or_make_a_part_of_their_steps(tmp_path):
    data = Data(4)
    run = trained(tmp_path, SCAFFOLD(server_lr=0.7), data, availability=ABSENT)
    h, t = numbers(data)
    w, c, own = np.zeros_like(t[0]), np.zeros_like(t[0]), np.zeros_like(t)
    for round in range(ROUNDS):
        ends, moves = [], []
        for i in range(4):
            course = ABSENT.course(0, round, i)
            if not course.arrives:
                continue
            steps = part_of(data.steps, course.part)
            end = w
            for _ in range(steps):
                end = end - LR * (h[i] * (end - t[i]) - own[i] + c)
            moves.append((w - end) / (steps * LR) - c)
            own[i] = own[i] + moves[-1]
            ends.append(end)
        if ends:
            c = c + np.sum(moves, 0) / 4
            w = w + 0.7 * (np.mean(ends, 0) - w)
    assert close(run, w)


def test_scaffold_of_groups_of_parameters(tmp_path):
    data = Data(4)
    run = trained(tmp_path, SCAFFOLD(server_lr=0.7), data, module=Paced)
    h, t = numbers(data)
    for name, lr in (("weight", LR), ("slow", LR / 5)):
        w = np.zeros_like(t[0])
        c = np.zeros_like(w)
        own = np.zeros_like(t)
        for _ in range(ROUNDS):
            ends = np.stack(4 * [w])
            for _ in range(data.steps):
                ends = ends - lr * (h * (ends - t) - own + c)
            new = own - c + (w - ends) / (data.steps * lr)
            c = c + (new - own).mean(0)
            own = new
            w = w + 0.7 * (ends.mean(0) - w)
        assert close(run, w, name)


class Skipping(Module):
    """Leaves out every other batch."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


def test_scaffold_divides_by_the_rates_of_steps_that_were_made(tmp_path):
    runs = []
    for module, steps in ((Skipping, 10), (Module, 5)):
        data = Data(4, steps)
        runs.append(trained(tmp_path, SCAFFOLD(), data, module=module, max_rounds=3))
    assert same(runs[0].server.params, runs[1].server.params)


def test_scaffold_with_a_part_of_the_fleet(tmp_path):
    data = Data(6)
    run = trained(tmp_path, SCAFFOLD(), data, 6, clients_per_round=3)
    kept = [run.session.store.load(i, 99) for i in range(6)]
    controls = [state["algorithm"]["control/weight"] for state in kept if state]
    total = torch.stack(controls).double().sum(0) / 6
    assert torch.stack(controls).abs().max() > 0.05
    assert torch.allclose(run.server.extra["control"]["weight"].double(), total, atol=1e-6)


@pytest.mark.parametrize("bits", [None, 8, 32])
def test_the_control_variate_is_the_mean_of_the_clients_at_any_bits(tmp_path, bits):
    fleet = {"ternary": 2, 32: 2}
    run = fit(tmp_path, SCAFFOLD(control_bits=bits), fleet, plain, max_rounds=3)
    kept = [run.session.store.load(i, 99)["algorithm"] for i in range(4)]
    weights = torch.tensor([float(client.weight) for client in run.clients]).double()
    for name, control in run.server.extra["control"].items():
        own = torch.stack([state["control/" + name].double() for state in kept])
        mean = (own.movedim(0, -1) * weights).sum(-1) / weights.sum()
        assert torch.allclose(control.double(), mean, atol=1e-5 * float(own.abs().max()))


def test_feddyn(tmp_path):
    data = Data(4)
    alpha = 0.3
    run = trained(tmp_path, FedDyn(alpha), data)
    h, t = numbers(data)
    w = np.zeros_like(t[0])
    dual = np.zeros_like(w)
    own = np.zeros_like(t)
    for _ in range(ROUNDS):
        ends = np.stack(4 * [w])
        for _ in range(data.steps):
            ends = ends - LR * (h * (ends - t) - own + alpha * (ends - w))
        own = own - alpha * (ends - w)
        dual = dual - alpha * (ends.mean(0) - w)
        w = ends.mean(0) - dual / alpha
    assert close(run, w)


def test_fedexp(tmp_path):
    data = Data(4, steps=2, spread=3.0)
    run = trained(tmp_path, FedExP(eps=0.5), data)
    h, t = numbers(data)
    w = np.zeros_like(t[0])
    longest = 0.0
    for _ in range(ROUNDS):
        ends = np.stack(4 * [w])
        for _ in range(data.steps):
            ends = ends - LR * (h * (ends - t))
        moves = w - ends
        mean = moves.mean(0)
        eta = max(1.0, (moves**2).sum() / 4 / (2 * ((mean**2).sum() + 0.5)))
        longest = max(longest, eta)
        w = w - eta * mean
    assert longest > 1.5
    assert close(run, w)


def test_fedexp_is_fedavg_where_all_move_alike(tmp_path):
    data = Data(4)
    data.h = data.h[:1].expand(4, -1, -1)
    data.t = data.t[:1].expand(4, -1, -1)
    runs = [trained(tmp_path, algorithm, data, max_rounds=3) for algorithm in (FedExP(), FedAvg())]
    assert same(runs[0].server.params, runs[1].server.params)


class Given(Data):
    """Clients of given numbers of batches."""

    def __init__(self, batches):
        super().__init__(len(batches))
        self.batches = batches

    def num_batches(self, client_id):
        return self.batches[client_id]

    def client_batches(self, client_id, rng, epoch):
        return [(self.h[client_id], self.t[client_id])] * self.batches[client_id]


class Heavy(Module):
    """The module with momentum."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.6)


class Nesterov(Module):
    """The module with a momentum that looks ahead."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.6, nesterov=True)


class Falling(Heavy):
    """The one with momentum, whose rate falls with each step."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FALL)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize(
    ("module", "momentum", "availability"),
    [
        (Module, 0.0, None),
        (Heavy, 0.6, None),
        (Heavy, 0.6, ABSENT),
        (Nesterov, 0.6, None),
        (Falling, 0.6, None),
    ],
)
def test_fednova(tmp_path, module, momentum, availability):
    ahead = module is Nesterov
    fall = FALL if module is Falling else 1.0
    data = Given([2, 5, 8, 11])
    run = trained(tmp_path, FedNova(), data, module=module, availability=availability)
    h, t = numbers(data)
    w = np.zeros_like(t[0])
    for round in range(ROUNDS):
        directions, lengths = [], []
        for i in range(4):
            course = availability.course(0, round, i) if availability else WHOLE
            if not course.arrives:
                continue
            y = w.copy()
            velocity = np.zeros_like(w)
            steps = part_of(data.num_batches(i), course.part)
            share = np.zeros(steps)
            for step in range(steps):
                gradient = h[i] * (y - t[i])
                velocity = momentum * velocity + gradient
                # a client of fewer steps is not as far in the schedule as others
                rate = LR * fall ** (round * data.num_batches(i) + step)
                y = y - rate * (momentum * velocity + gradient if ahead else velocity)
                # what each gradient so far has come to, counted one by one
                share[: step + 1] += rate * momentum ** (np.arange(step, -1, -1) + ahead)
                share[step] += rate * ahead
            lengths.append(share.sum())
            directions.append((w - y) / share.sum())
        if lengths:
            w = w - np.mean(lengths) * np.mean(directions, 0)
    assert close(run, w)
    assert {row["clients/ok"] for row in run.run.history} >= ({2, 3, 4} if availability else {4})


def test_fednova_counts_no_batch_without_a_loss(tmp_path):
    runs = []
    for module, batches in ((Skipping, [2, 5, 8, 11]), (Module, [1, 3, 4, 6])):
        data = Given(batches)
        runs.append(trained(tmp_path, FedNova(), data, module=module, max_rounds=3))
    assert same(runs[0].server.params, runs[1].server.params)


def test_fednova_counts_groups_by_their_rates(tmp_path):
    """A client of half the rate and twice the steps goes about as far in a direction."""
    slow = {"class_path": "SGD", "init_args": {"lr": LR / 2}}
    fleet = [{"bits": 32, "count": 1, "name": "slow", "optimizer": slow}, {"bits": 32, "count": 1}]
    data = Given([4, 2])
    options = {"max_rounds": 1, **QUIET}
    run = fit(tmp_path, FedNova(), fleet, Module, data, **options)
    h, t = numbers(data)
    directions = []
    for i, (rate, steps) in enumerate(((LR / 2, 4), (LR, 2))):
        y = np.zeros_like(t[0])
        for _ in range(steps):
            y = y - rate * h[i] * (y - t[i])
        directions.append(-y / (rate * steps))
    assert close(run, -2 * LR * np.mean(directions, 0))


def test_fednova_where_a_group_of_parameters_is_held(tmp_path):
    class Held(Paced):
        def configure_optimizers(self):
            held = {"params": [self.weight], "lr": 0.0}
            return torch.optim.SGD([held, {"params": [self.slow]}], self.lr)

    data = Given([2, 5])
    run = trained(tmp_path, FedNova(), data, 2, Held, max_rounds=1)
    h, t = numbers(data)
    directions = []
    for i, steps in enumerate(data.batches):
        y = np.zeros_like(t[0])
        for _ in range(steps):
            y = y - LR * h[i] * (y - t[i])
        directions.append(y / steps)
    assert close(run, 3.5 * np.mean(directions, 0), "slow")
    assert not run.server.params["weight"].any()


def test_a_step_at_a_rate_of_zero_leads_nowhere(tmp_path):
    class Still(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 1))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    run = trained(tmp_path, FedNova(), Given([1, 1]), 2, Still, max_rounds=1)
    assert not run.server.params["weight"].any()
    assert run.run.history[0]["clients/ok"] == 2


class Noting(FedAvg):
    """FedAvg that notes what a client's steps came to."""

    def uplink(self, run):
        run.metrics |= {"sum": run.lr_sum, "reach": run.reach}
        return super().uplink(run)


class Warmed(Module):
    """Its rate is set after each step, for the next one, as Lightning's documentation shows."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = self.lr / 2


class Manual(Module):
    """It steps twice a batch by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


@pytest.mark.parametrize(("module", "steps"), [(Warmed, 2.5), (Manual, 8), (Skipping, 2)])
def test_the_rates_of_the_very_steps_are_counted(tmp_path, module, steps):
    run = trained(tmp_path, Noting(), Data(1, 4), 1, module, max_rounds=1)
    assert run.run.history[0]["reach"] == steps
    assert run.run.history[0]["sum"] == pytest.approx(LR * steps)


def test_fednova_needs_sgd(tmp_path):
    class Adaptive(Module):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    with pytest.raises(ValueError, match=r"FedNova needs one torch.optim.SGD .* has Adam"):
        trained(tmp_path, FedNova(), Data(4), module=Adaptive)

    class Dampened(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.6, dampening=0.1)

    with pytest.raises(ValueError, match=r"without dampening .* of \[\(0\.6, False, 0\.1, None\)"):
        trained(tmp_path, FedNova(), Data(4), module=Dampened)

    class Cycled(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    with pytest.raises(ValueError, match=r"cycle_momentum: false .*\(0\.95, False, 0, 0\.95\)"):
        trained(tmp_path, FedNova(), Data(4), module=Cycled)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SCAFFOLD(server_lr=0), "SCAFFOLD.server_lr must be"),
        (lambda: SCAFFOLD(control_bits=1), "SCAFFOLD.control_bits must be 2..16 or 32, got 1"),
        (lambda: FedDyn(alpha=0), "FedDyn.alpha must be"),
        (lambda: FedExP(eps=-1), "FedExP.eps must be"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


OF_STEPS = [
    FedDyn(0.1),
    FedNova(),
    FedExP(0.0),
    SCAFFOLD(2.0),
    FedCOM(server_lr=2.0),
    FedCOMGATE(server_lr=2.0, allow_inexact=True),
    FedCOMGATE(32, 2.0, allow_inexact=True),
]
"""Methods whose server goes elsewhere than to the mean."""


class Seen(Module):
    """It has buffers of its own, such as variances, which fall from 10 towards 1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.full((3,), 10.0))
        self.register_buffer("wide", torch.full((2, 3), 10.0))

    def training_step(self, batch, batch_idx):
        for buffer in self.buffers():
            buffer.mul_(0.5).add_(0.5)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("algorithm", OF_STEPS)
def test_a_buffer_of_the_modules_own_is_averaged(tmp_path, algorithm):
    found = []
    for one in (FedAvg(), algorithm):
        run = trained(tmp_path, one, Given([1, 2, 6]), 3, Seen, max_rounds=4)
        found.append({name: run.server.params[name] for name in ("seen", "wide")})
    torch.testing.assert_close(found[0], found[1])
