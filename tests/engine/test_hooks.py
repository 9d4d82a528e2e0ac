"""A misspelt hook is refused when its class is made, and so is one that cannot take what it is
called with.
"""

from __future__ import annotations

import functools
from functools import partial, partialmethod
from unittest.mock import Mock, create_autospec

import numpy as np
import pytest

from bhfl.algorithms import AdaQuantFL, FedAvg, FedProx, GroupedAvg
from bhfl.data import FakeImages, FederatedDataModule, FromDatasets
from bhfl.engine import Algorithm, Callback, FederatedTrainer
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.handed import ReturnError
from bhfl.engine.hooks import HookError
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import SHAPE, fit


def method(self, *args, **kwargs):
    """Takes everything."""


def make(base: type | tuple[type, ...], **attributes: object) -> type:
    return type("Mine", base if isinstance(base, tuple) else (base,), attributes)


MISSPELT = [
    *(
        (Algorithm, name, "client_gradients_")
        for name in ("client_gradients", "client_gradient_", "clientGradients_")
    ),
    (Algorithm, "aggregators", "aggregator"),
    (Algorithm, "aggregate", "aggregator"),
    (Algorithm, "begin_rounds", "begin_round"),
    (Algorithm, "prepared", "prepare"),
    (Algorithm, "recieve", "receive"),
    (Algorithm, "up_link", "uplink"),
    (Algorithm, "uplinks", "uplink"),
    (Algorithm, "client_init", "init_client"),
    (Algorithm, "init_clients", "init_client"),
    (Algorithm, "server_updates", "server_update"),
    (Algorithm, "summarise", "summarize"),
    (Algorithm, "Client_Loss", "client_loss"),
    (Algorithm, "num_step", "num_steps"),
    (Algorithm, "group_param", "group_params"),
    (FedProx, "client_gradients", "client_gradients_"),
    (GroupedAvg, "source", "sources"),
    (AdaQuantFL, "bits_off", "bits_of"),
    (Callback, "on_round_ended", "on_round_end"),
    (Callback, "on_client_ends", "on_client_end"),
    (Callback, "round_end_on", "on_round_end"),
    (Callback, "onFitEnd", "on_fit_end"),
    (FederatedDataModule, "client_batch", "client_batches"),
    (FederatedDataModule, "vall_batches", "val_batches"),
    (FromDatasets, "train_dataloder", "train_dataloader"),
    (FakeImages, "on_after_batch_transfere", "on_after_batch_transfer"),
]


@pytest.mark.parametrize(("base", "name", "meant"), MISSPELT)
def test_a_method_that_looks_like_a_hook_is_refused(base, name, meant):
    with pytest.raises(
        HookError, match=rf"Mine\.{name} is no hook of .*; did you mean {meant}\?.* may be called _"
    ):
        make(base, **{name: method})


@pytest.mark.parametrize(
    "kind",
    [
        staticmethod,
        classmethod,
        lambda f: partialmethod(f, 1),
        lambda f: partial(f, 1),
        functools.wraps(repr),
    ],
)
def test_every_kind_of_method_is_looked_at(kind):
    with pytest.raises(HookError, match="did you mean uplink"):
        make(Algorithm, uplinks=kind(lambda *args: None))


@pytest.mark.parametrize("name", ["on_train_epoch_end", "on_anything"])
@pytest.mark.parametrize("base", [Callback, Algorithm, FederatedDataModule])
def test_a_hook_of_others_is_refused_with_what_there_is(base, name):
    with pytest.raises(
        HookError, match=rf"Mine\.{name} is no hook of {base.__name__}, and nothing would call"
    ):
        make(base, **{name: method})


def test_the_remedies_of_the_message_work():
    assert make(Algorithm, client_gradients_=method, _client_gradients=method)
    assert make(Callback, on_round_end=method, _on_round_ended=method)


HELPERS = [
    "client_loss_weight", "num_steps_done", "client_loss_fn", "my_uplink", "aggregator_of", "step",
    "weights", "group_params_of", "trimmed", "bits", "momentum", "server_state", "reset_", "mean",
    "_aggregators", "loss",
]  # fmt: skip


@pytest.mark.parametrize("base", [Algorithm, FedProx, Callback, FederatedDataModule])
def test_helpers_of_other_names_are_left_alone(base):
    assert make(base, **dict.fromkeys(HELPERS, method))


def test_properties_classes_and_values_are_no_misspelt_methods():
    attributes = {
        "aggregators": property(method),
        "Aggregator": type("Own", (), {}),
        "uplinks": 3,
        "on_gpu": True,
    }
    assert make(Algorithm, **attributes, client_losses=functools.cached_property(method))


def test_a_hook_may_have_a_helper_of_nearly_its_name():
    assert make(Algorithm, client_loss=method, client_losses=method)


def test_a_value_that_is_misspelt_is_refused_too():
    with pytest.raises(
        HookError, match=r"Mine.communicate is no hook .* did you mean communicates"
    ):
        make(Algorithm, communicate=False)
    with pytest.raises(
        HookError, match=r"Mine.communicates must be a value such as True, got a method"
    ):
        make(Algorithm, communicates=lambda self: False)
    assert make(Algorithm, communicates=property(lambda self: False))
    with pytest.raises(
        HookError, match=r"Mine.server_optimizer is set by the trainer: give it trainer.server_opt"
    ):
        make(Algorithm, server_optimizer=3)


def no_self(): ...
def only_self(self): ...
def one(self, run): ...
def keyword_only(self, run, *, strength): ...
def three(self, run, batch, index): ...
def by_name(self, trainer, row): ...
def two_names(self, trainer, metrics, extra): ...


@pytest.mark.parametrize(
    ("base", "name", "hook"),
    [
        (Algorithm, "uplink", no_self),
        (Algorithm, "uplink", only_self),
        (Algorithm, "uplink", keyword_only),
        (Algorithm, "uplink", staticmethod(no_self)),
        (Algorithm, "uplink", staticmethod(three)),
        (Algorithm, "uplink", classmethod(only_self)),
        (Algorithm, "client_gradients_", three),
        (Algorithm, "client_loss", one),
        (FedProx, "client_gradients_", three),
        (Callback, "on_round_end", only_self),
        (Callback, "on_round_end", one),
        (Callback, "on_round_end", by_name),
        (Callback, "on_round_end", two_names),
        (Callback, "on_fit_start", two_names),
        (FromDatasets, "client_batches", one),
        (FromDatasets, "setup", only_self),
        (FederatedDataModule, "on_before_batch_transfer", one),
    ],
)
def test_a_hook_whose_arguments_do_not_fit_is_refused(base, name, hook):
    with pytest.raises(
        HookError, match=rf"Mine\.{name}\(.*\) cannot be called as a hook is, with \("
    ):
        make(base, **{name: hook})


def with_default(self, run, batch, batch_idx, scale=1.0, *, more=2): ...
def other_names(self, job, data, number): ...
def some(self, run, *rest): ...
def named(self, trainer, **named): ...
def swapped(self, *, stage, metrics, trainer=None, **rest): ...
def in_any_order(self, trainer, stage, metrics): ...


def injecting(function):
    """A decorator that gives the function one argument more than it is called with itself."""

    @functools.wraps(function)
    def inner(self, run):
        return function(self, run, strength=2)

    return inner


@pytest.mark.parametrize(
    ("base", "name", "hook"),
    [
        (Algorithm, "client_loss", with_default),
        (Algorithm, "client_loss", other_names),
        (Algorithm, "client_loss", some),
        (Algorithm, "client_loss", method),
        (Algorithm, "uplink", injecting(keyword_only)),
        (Algorithm, "uplink", staticmethod(len)),
        (Algorithm, "uplink", staticmethod(lambda run: None)),
        (Algorithm, "uplink", classmethod(one)),
        (Algorithm, "uplink", partialmethod(keyword_only, strength=1)),
        (Algorithm, "uplink", functools.singledispatchmethod(one)),
        (Algorithm, "uplink", Mock()),
        (Algorithm, "aggregator", WeightedMean),
        (Callback, "on_fit_start", one),
        (Callback, "on_measured", in_any_order),
        (Callback, "on_measured", named),
        (FederatedDataModule, "setup", lambda self, stage=None: None),
        (FederatedDataModule, "train_dataloader", only_self),
    ],
)
def test_a_hook_that_can_be_called_is_taken(base, name, hook):
    if hook is WeightedMean:
        hook = lambda server, clients: WeightedMean(server.params)  # noqa: E731  # no method: it gets no self
        hook = staticmethod(hook)
    assert make(base, **{name: hook})


async def coroutine(self, *args, **kwargs): ...
async def stream(self, *args, **kwargs):
    yield 1


def generator(self, *args, **kwargs):
    yield 1


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (coroutine, "must be an ordinary function, got an async one"),
        (stream, "must be an ordinary function, got an async one"),
        (generator, "must be an ordinary function, got a generator"),
        (staticmethod(coroutine), "must be an ordinary function, got an async one"),
        (partialmethod(generator), "must be an ordinary function, got a generator"),
        (None, "must be a method, because it is called as a hook, got None"),
        (3, "must be a method, because it is called as a hook, got 3"),
        (property(only_self), "must be a method, because it is called as a hook, got a property"),
        (functools.cached_property, "must be a method, .* got a cached_property"),
    ],
)
@pytest.mark.parametrize(
    ("base", "name"), [(Algorithm, "client_gradients_"), (Callback, "on_fit_end")]
)
def test_a_hook_whose_body_would_not_run_is_refused(base, name, hook, problem):
    with pytest.raises(HookError, match=problem):
        make(base, **{name: hook(only_self) if isinstance(hook, type) else hook})


def test_batches_may_be_generators():
    assert make(
        FederatedDataModule, client_batches=generator, val_batches=generator, test_batches=generator
    )
    with pytest.raises(HookError, match="async"):
        make(FederatedDataModule, client_batches=stream)


def test_what_is_mixed_in_is_looked_at():
    helper = type("Helper", (), {"uplink": one})
    wrong = type("Wrong", (), {"client_gradients": method})
    assert make((helper, Algorithm))
    with pytest.raises(HookError, match=r"Mine.client_gradients is no hook"):
        make((wrong, FedProx))
    with pytest.raises(
        HookError,
        match=r"Helper.uplink would never be called: .* name Helper first among the bases",
    ):
        make((Algorithm, helper))


def test_a_class_of_a_class_of_a_users_is_checked():
    parent = make(FedAvg, trim=method)
    assert make(parent, trims=method)
    with pytest.raises(HookError, match="did you mean aggregator"):
        make(parent, aggregators=method)


def test_all_problems_are_told_at_once():
    with pytest.raises(HookError) as caught:
        make(Algorithm, uplinks=method, uplink=only_self)
    assert len(str(caught.value).splitlines()) == 1  # with the hook beside it uplinks is a helper
    with pytest.raises(HookError) as caught:
        make(Algorithm, aggregators=method, uplink=only_self)
    assert len(str(caught.value).splitlines()) == 2


def trainer(**options):
    return FederatedTrainer({32: 2}, **{"logger": False, **options})


def test_objects_and_classes_that_were_changed_later_are_refused_by_the_trainer():
    changed = make(FedAvg)
    changed.client_gradients = method
    with pytest.raises(HookError, match=r"Mine.client_gradients is no hook"):
        trainer(algorithm=changed())
    mine = make(FedAvg)()
    mine.uplinks = lambda run: None
    with pytest.raises(HookError, match=r"Mine.uplinks is no hook"):
        trainer(algorithm=mine)
    mine = make(FedAvg)()
    mine.num_steps = 5
    with pytest.raises(HookError, match=r"Mine.num_steps must be a method, .* got 5"):
        trainer(algorithm=mine)
    mine = make(FedAvg)()
    mine.communicate = False
    with pytest.raises(HookError, match="did you mean communicates"):
        trainer(algorithm=mine)
    mine = make(FedAvg)()
    mine.uplink = lambda run: None
    mine.aggregators = []
    mine.losses = {}
    assert trainer(algorithm=mine)


@pytest.mark.parametrize("double", [Mock(spec=Callback), create_autospec(Callback, instance=True)])
def test_a_double_of_a_callback_is_taken(double):
    assert trainer(callbacks=[double])


def test_an_aggregator_must_have_its_two_methods(tmp_path):
    class Adds(Aggregator):
        def adds(self, update, client): ...
        def reduce(self, fabric): ...

    class Lonely(WeightedMean):
        def reduce(self): ...

    class Nothing: ...

    told = {
        Adds: (
            r"Mine.aggregator must return an Aggregator, got Adds:\n"
            r"  Adds lacks add\(update, client\), has adds"
        ),
        Lonely: (
            r"got Lonely:\n"
            r"  Lonely.reduce\(self\) cannot be called as a hook is, with \(fabric\)"
        ),
        Nothing: (
            r"got Nothing:\n"
            r"  Nothing lacks add\(update, client\)\n"
            r"  Nothing lacks reduce\(fabric\)"
        ),
    }
    for wrong, problem in told.items():
        given = (
            (lambda self, server, clients: WeightedMean(server.params))
            if wrong is WeightedMean
            else wrong
        )
        made = wrong(like={}) if wrong is Lonely else given()
        mine = make(FedAvg, aggregator=lambda self, server, clients, made=made: made)()
        with pytest.raises(HookError, match=problem):
            fit(tmp_path, mine)


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        (
            {"client_batches": None, "client_batch": method},
            r"lacks client_batches\(.*\), has client_batch",
        ),
        (
            {"val_batches": stream},
            r"Mine.val_batches must be an ordinary function, got an async one",
        ),
        (
            {"client_batches": one},
            r"Mine.client_batches\(self, run\) cannot be called as a hook is",
        ),
        ({"num_batches": 3}, r"Mine.num_batches must be a method, .* got 3"),
    ],
)
def test_data_of_any_class_are_checked_at_set_up(tmp_path, attributes, problem):
    data = make(HandMade, **attributes)([points(4)] * 2, held_out=points(4))
    with pytest.raises(HookError, match=f"have its methods, got Mine:\n  .*{problem}"):
        fit(tmp_path, clients={32: 2}, module=Module, data=data)


def test_hand_made_data_may_hand_out_generators(tmp_path):
    data = HandMade([points(4)] * 2, held_out=points(4))
    data.val_batches = data.test_batches = lambda: iter([points(4)])
    assert fit(tmp_path, clients={32: 2}, module=Module, data=data, max_rounds=1).server.round == 1


def test_shapes_of_other_names_are_data_of_their_own():
    assert make(FakeImages, download=method, pictures=method, train_loader=method)(
        num_train=8, shape=SHAPE
    )


def test_more_numbers_of_a_round_are_numbers(tmp_path):
    class Means(Algorithm):
        def summarize(self, server, metrics):
            return {"train/mean": np.float32(1)}

    with pytest.raises(ReturnError, match=r"Means.summarize must return numbers by tag, got f"):
        fit(tmp_path, Means(), max_rounds=1)
