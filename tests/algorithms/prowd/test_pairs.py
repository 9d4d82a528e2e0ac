"""The training pairs: what each level is, which rows are held out, what is refused."""

from typing import Any

import pytest
import torch

from bhfl.algorithms.prowd.pairs import WeightPairs
from bhfl.quant import BitSpec, quantize

LADDER = (2, 4, 8, 32)


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(30, 4, 3, 3, generator=generator),
        "linear.weight": torch.randn(11, 50, generator=generator),
        "row.weight": torch.randn(1, 20, generator=generator),
        "norm.weight": torch.randn(30, generator=generator),
        "steps": torch.tensor(3),
    }


def pairs(**options: Any) -> WeightPairs:
    holdout = options.pop("holdout", 0.1)
    options = {"states": [state()], "specs": [2, 8], "ladder": LADDER, "num_steps": 6} | options
    options["specs"] = [BitSpec.parse(spec) for spec in options["specs"]]
    made = WeightPairs(**options)
    made.num_elements, made.holdout = 4096, holdout
    return made


def test_levels_are_the_weights_at_every_width() -> None:
    weight = torch.randn(20, 33, generator=torch.Generator().manual_seed(2))
    data = pairs(states=[{"w": weight}], specs=[BitSpec(weights=4, range_rule="mse")])
    rows = next(iter(data.train_dataloader()))["rows"][0]
    low, middle, top = rows["levels"]
    expected = quantize(weight, 4, range_rule="mse")
    largest = expected.scale * 7
    order = torch.cdist(top * largest, weight).argmin(1)
    assert rows["entry"] == 1
    torch.testing.assert_close(rows["ranges"], largest.expand(len(top), 1))
    torch.testing.assert_close(top * largest, weight[order])
    assert torch.equal((low * 7).round(), expected.codes[order].float())
    assert float(top.abs().max()) > 1  # mse clips the codes, and never the targets
    assert float(middle.abs().max()) > 1
    assert float((middle - top).abs().max()) <= 0.5001 / 127


def test_one_scale_for_each_channel() -> None:
    data = pairs(specs=[BitSpec(weights=8, granularity="channel")])
    rows = next(iter(data.val_dataloader()))["rows"][data.names.index("linear.weight")]
    torch.testing.assert_close(rows["levels"][-1].abs().amax(1), torch.ones(len(rows["ranges"])))


def test_top_below_float_is_a_grid() -> None:
    levels = next(iter(pairs(ladder=(2, 8), specs=[2]).train_dataloader()))["rows"][0]["levels"]
    assert len(levels) == 2
    torch.testing.assert_close((levels[1] * 127).round() / 127, levels[1])


def test_batches_are_a_function_of_the_seed() -> None:
    def tops(data: WeightPairs) -> list[torch.Tensor]:
        return [rows["levels"][-1] for batch in data.train_dataloader() for rows in batch["rows"]]

    before = torch.get_rng_state()
    data = pairs()
    assert len(data.train_dataloader()) == 6
    assert all(torch.equal(a, b) for a, b in zip(tops(data), tops(pairs()), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tops(data), tops(data), strict=True))
    assert not all(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(tops(data), tops(pairs(seed=1)), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_held_out_rows_are_never_trained_on() -> None:
    def rows_of(batches: Any) -> set[tuple[float, ...]]:
        top = [(rows["levels"][-1] * rows["ranges"]) for batch in batches for rows in batch["rows"]]
        return {
            tuple(round(x, 4) for x in row.tolist())
            for part in top
            for row in part
            if len(row) > 20
        }

    data = pairs(num_steps=50, specs=[8], holdout=0.2)
    held_out, trained = rows_of(data.val_dataloader()), rows_of(data.train_dataloader())
    assert len(held_out) == 6 + 3  # of 30 and of 11 rows
    assert len(trained) == 24 + 8
    assert not held_out & trained
    other_seed = pairs(num_steps=50, specs=[8], holdout=0.2, seed=5)
    assert rows_of(other_seed.val_dataloader()) == held_out


def test_validation_has_a_batch_for_each_spec() -> None:
    batches = list(pairs(states=[state(1), state(2)]).val_dataloader())
    assert [batch["bits"] for batch in batches] == [2, 8]
    assert [{rows["entry"] for rows in batch["rows"]} for batch in batches] == [{0}, {2}]
    assert all(len(batch["rows"]) == 3 for batch in batches)


def test_weights_are_the_tensors_of_two_or_more_dimensions() -> None:
    assert pairs().names == ["conv.weight", "linear.weight", "row.weight"]


def test_no_weights() -> None:
    state = {"bias": torch.ones(3), "steps": torch.ones(3, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match="states must hold a float tensor of two or more dim"):
        pairs(states=[state])
