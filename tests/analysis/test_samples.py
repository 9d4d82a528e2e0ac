"""The samples that an analysis measures on."""

import torch

from bhfl.analysis.samples import pick


def test_samples_are_drawn_from_all_batches_and_odd_batches_taken_whole() -> None:
    batches = [{"x": torch.arange(300.0).view(-1, 1), "y": torch.arange(300)}] * 2
    chunks = pick(batches, 400, seed=0)
    assert [size for size, _ in chunks] == [128, 128, 128, 16]
    drawn = torch.cat([batch["y"] for _, batch in chunks])
    assert torch.equal(drawn, torch.cat([batch["x"] for _, batch in chunks]).squeeze(1).long())
    assert 150 < len(drawn.unique()) <= 300
    ragged = [(torch.ones(5, size), torch.ones(5)) for size in (2, 3, 4)]
    assert [size for size, _ in pick(ragged, 6, seed=0)] == [5, 5]
    assert pick([], 6, seed=0) == []
