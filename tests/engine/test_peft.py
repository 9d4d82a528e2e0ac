"""Adapters of peft on a small transformer: what a round sends are the adapters."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from bhfl.comm import encode
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import CLASSES, HandMade
from tests.engine.test_frozen import Seen

pytestmark = pytest.mark.slow
peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
WORDS, LENGTH = 20, 5


def texts(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORDS, (count, LENGTH), generator=generator)
    return words, words[:, 0] % CLASSES


class Adapted(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            num_labels=CLASSES,
        )
        lora = peft.LoraConfig(
            r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
        )
        self.net = peft.get_peft_model(BertForSequenceClassification(config), lora)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(input_ids=batch[0]).logits, batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(input_ids=batch[0]).logits
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def test_the_bytes_of_a_round_are_those_of_the_adapters(tmp_path):
    data = HandMade([texts(12, i) for i in range(4)], held_out=texts(20, 9))
    seen = Seen()
    clients = [{"bits": 8, "count": 2, "frozen": "quantize"}, {"bits": 32, "count": 2}]
    trainer = FederatedTrainer(
        clients,
        max_rounds=3,
        logger=False,
        devices=1,
        accelerator="cpu",
        callbacks=[seen],
        default_root_dir=str(tmp_path),
    )
    torch.manual_seed(0)
    model = Adapted()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.fit(model, data)
    server = trainer.server
    assert server.params.keys() == trainable.keys()
    assert all("lora" in name or "classifier" in name for name in trainable)
    adapters, body = len(encode(server.params)), len(encode(server.buffers["frozen"]))
    assert body > 5 * adapters
    for round in range(3):
        assert set(seen.down(round).values()) == {adapters + (0 if round else body)}
    up = {r.client: r.uplink_bytes for _, r in seen.records}
    assert up[2] == up[3] == adapters
    assert up[0] == up[1] < adapters
    after = dict(model.named_parameters())
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name not in trainable), name
    assert {r.status for _, r in seen.records} == {"ok"}
