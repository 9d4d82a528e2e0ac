"""Messages as bytes: what is packed comes back, and what is none is refused with one error."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from bhfl.comm import PayloadError, decode, encode
from bhfl.comm.network import Link
from bhfl.engine.exchange import ClientLink, Fault, Measured, Reply, Task, Verdict
from bhfl.engine.types import Client
from bhfl.quant import BitSpec
from bhfl.remote.believe import MOST_NAMES, Names, believed_measured, believed_reply
from bhfl.remote.messages import (
    WIRE,
    Facts,
    Hello,
    MessageError,
    Order,
    Refused,
    join,
    pack,
    split,
    unpack,
)
from bhfl.settings import LocalTraining

PAYLOAD = encode({"weight": torch.linspace(-1, 1, 12).reshape(3, 4)})
CLIENT = Client(3, BitSpec(), 40)
TRAINING = LocalTraining(
    local_epochs=2,
    local_steps=None,
    lr_schedule="continue",
    gradient_clip_val=0.5,
    precision="32-true",
    save_in_int8=False,
)
TASK = Task(
    client=3,
    round=7,
    downlink=PAYLOAD,
    version=6,
    keeps=["weight"],
    frozen="ab" * 32,
    body=PAYLOAD + b"more",
    channels_last=False,
    training=TRAINING,
    link=ClientLink(Link(uplink_bps=1e6, downlink_bps=2e6), 123.5),
    history=[{"round": 1, "train/loss": 0.1 + 0.2, "problems": ["client 2 late: so"]}],
)
REPLY = Reply(
    client=3,
    round=7,
    payload=PAYLOAD,
    num_examples=80,
    num_steps=10,
    seconds=1 / 3,
    metrics={"train/loss": 2 / 3},
    measured={"acc": 0.5},
    own=["head.weight"],
)
FAILED = Reply(
    client=3, round=7, own=[], fault=Fault("failed", "ValueError: so it is", "a traceback")
)
MESSAGES = {
    "task": TASK,
    "task to measure": replace(
        TASK, stage="test", training=None, link=None, downlink=b"", keeps=[]
    ),
    "reply": REPLY,
    "failed": FAILED,
    "measured": Measured(client=3, stage="val", metrics={"acc": 0.25}),
    "verdict": Verdict(True, PAYLOAD),
    "dropped": Verdict(False),
    "hello": Hello(run="a", config={"clients": {"8": 5}}, backends={"int8": {}}, client=2),
    "facts": Facts(client=1, group="int8", num_examples=9, facts={"torch": "2"}),
    "order": Order(rounds=[3], closing=PAYLOAD),
    "refused": Refused(reason="no such backend"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_comes_back_as_it_was(name):
    message = MESSAGES[name]
    found = unpack(pack(message), type(message))
    assert found == message
    assert pack(found) == pack(message)


def test_messages_that_are_joined_come_apart_again():
    parts = [pack(TASK), b"", pack(REPLY)]
    assert split(join(*parts)) == parts
    with pytest.raises(MessageError, match="cut off"):
        split(join(*parts)[:-1])


def changed(message, **head) -> bytes:
    """A packed message with other fields in its head."""
    data = pack(message)
    start = 4 + int.from_bytes(data[:4], "little")
    text = json.dumps(json.loads(data[4:start]) | head).encode()
    return len(text).to_bytes(4, "little") + text + data[start:]


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ({"wire": WIRE + 1}, "wire must be 1, the version of this bhfl, got 2"),
        ({"kind": "Task"}, "kind must be Reply, got 'Task'"),
        ({"kind": ["Reply"]}, "kind must be Reply"),
        ({"extra": 1}, "Reply has no field 'extra'"),
        ({"client": True}, "Reply.client is not of its type, got True"),
        ({"client": 3.0}, "Reply.client is not of its type"),
        ({"num_examples": "many"}, "Reply.num_examples is not of its type"),
        ({"metrics": {"a": float("inf")}}, "must be finite, got inf"),
        ({"metrics": {"a": float("nan")}}, "is not of its type"),
        ({"metrics": {"a": 10**400}}, "is not of its type"),
        ({"metrics": {f"m{i}": 0.0 for i in range(1001)}}, "must have at most 1000 numbers"),
        ({"metrics": [1]}, "Reply.metrics is not of its type"),
        ({"own": ["a"] * 1001}, "must have at most 1000 names"),
        ({"fault": {"status": "gone", "reason": ""}}, "Reply.fault.status is not of its type"),
        ({"fault": {"status": "late"}}, "Reply.fault: .*missing .*'reason'"),
        ({"fault": {"status": "late", "reason": "a" * 100_001}}, "at most 100000 characters"),
        ({"payload": False}, "Reply.payload is not of its type"),
        ({"payload": -1}, "Reply.payload is not of its type"),
        ({"payload": 10**6}, "payloads must have 1000000 bytes"),
        ({"payload": None}, "payloads must have 0 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_refused_by_name(head, says):
    with pytest.raises(MessageError, match=says):
        unpack(changed(REPLY, **head), Reply)


def test_models_are_measured_on_any_number_of_samples():
    measured = Measured(client=3, stage="val", correct="01" * 100_000)
    assert unpack(pack(measured), Measured) == measured


def test_options_of_training_are_checked_as_the_trainers_are():
    training = {**vars(TRAINING), "local_epochs": 0}
    with pytest.raises(MessageError, match=r"Task.training.local_epochs must be"):
        unpack(changed(TASK, training=training), Task)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff\xff\xff\xff{}", b"\x02\x00\x00\x00[]", b"\x02\x00\x00\x00{]",
     (200_000).to_bytes(4, "little") + b"[" * 200_000],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(MessageError):
        unpack(data, Reply)


def test_a_payload_that_is_too_long_is_not_taken():
    with pytest.raises(MessageError, match="payloads must have at most 10 bytes"):
        unpack(pack(REPLY), Reply, max_bytes=10)


def test_a_head_that_is_too_long_is_not_read():
    data = changed(REPLY, extra="[" * 2000)
    with pytest.raises(MessageError, match="the head must have at most 1000 bytes"):
        unpack(data, Reply, max_head=1000)


def mutated(data: bytes, draws: random.Random) -> bytes:
    """A copy with some bytes changed, cut out, put in or cut off."""
    found = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        at = draws.randrange(max(1, len(found)))
        how = draws.randrange(4)
        if how == 0 and found:
            found[at] ^= 1 << draws.randrange(8)
        elif how == 1:
            del found[at : at + draws.randint(1, 20)]
        elif how == 2:
            found[at:at] = draws.randbytes(draws.randint(1, 20))
        else:
            del found[max(1, at) :]
    return bytes(found)


def test_a_thousand_mutated_replies_end_in_one_of_two_errors_or_in_a_reply():
    draws = random.Random(0)
    refused = 0
    for _ in range(1000):
        try:
            found = unpack(mutated(pack(REPLY), draws), Reply, max_bytes=10_000)
            reply = believed_reply(found, TASK, CLIENT, True)
            assert isinstance(reply, Reply)
            if reply.payload is not None:
                decode(reply.payload, max_bytes=10_000)
        except (MessageError, PayloadError):
            refused += 1
    # few mutations hit what may be any text or number
    assert refused > 800


# ---- what is believed ----------------------------------------------------------------------------


def test_a_reply_is_believed_as_it_is():
    assert believed_reply(REPLY, TASK, CLIENT, True) == REPLY
    assert believed_reply(FAILED, TASK, CLIENT, True) == FAILED


@pytest.mark.parametrize("other", [{"client": 2}, {"round": 6}])
def test_a_reply_to_another_task_is_refused(other):
    with pytest.raises(MessageError, match="client 3 was asked in round 7"):
        believed_reply(replace(REPLY, **other), TASK, CLIENT, True)


@pytest.mark.parametrize("key", ["num_examples", "num_steps", "seconds"])
def test_numbers_below_zero_are_refused(key):
    with pytest.raises(MessageError, match=f"{key} must be a number from 0 on, got -1"):
        believed_reply(replace(REPLY, **{key: -1}), TASK, CLIENT, True)


def test_no_client_reports_what_the_server_measures():
    ours = ["val/acc_avg", "val/acc_local_int8", "round", "comm/total_MB", "clients/ok"]
    names = ["train/loss", *ours, "val/acc_local_float32", "clients_val/acc_std", "a\nb", "mine"]
    reply = replace(REPLY, metrics=dict.fromkeys(names, 1.0))
    found = believed_reply(reply, TASK, CLIENT, True).metrics
    assert list(found) == ["train/loss", "val/acc_local_float32", "mine"]


def test_numbers_beyond_all_reason_are_left_out():
    metrics = {"train/loss": 1e13, "mine": -1e308, "train/acc": 0.5}
    reply = believed_reply(replace(REPLY, metrics=metrics, measured=metrics), TASK, CLIENT, True)
    assert reply.metrics == reply.measured == {"train/acc": 0.5}
    measured = replace(MESSAGES["measured"], metrics=metrics, own=metrics)
    measured = believed_measured(measured, replace(TASK, stage="val"), 9)
    assert measured.metrics == measured.own == {"train/acc": 0.5}


def test_a_client_brings_so_many_names_and_keeps_them():
    names = Names()
    first = {f"a{i}": 0.0 for i in range(MOST_NAMES - 1)}
    assert names.known(1, first) == first
    assert names.known(1, {"b": 1.0, "c": 2.0, "a0": 3.0}) == {"b": 1.0, "a0": 3.0}
    assert names.known(2, {"c": 2.0}) == {"c": 2.0}


def test_what_a_client_says_is_one_line_that_is_not_long():
    fault = Fault("failed", "no\nerror: \x1b[2J" + "a" * 99_000)
    reason = believed_reply(replace(FAILED, fault=fault), TASK, CLIENT, True).fault.reason
    assert reason.startswith(r"no\nerror: \x1b[2Ja")
    assert len(reason) <= 400


def test_examples_are_capped_and_faults_are_no_updates():
    reply = believed_reply(replace(REPLY, num_examples=10**9), TASK, CLIENT, True)
    assert reply.num_examples == 4 * 2 * 40
    broken = replace(FAILED, fault=Fault("ok", "", broken_hook=True))
    fault = believed_reply(broken, TASK, CLIENT, True).fault
    assert fault == Fault("failed", "")
    # only who has skipped the round has anything to send later
    for status in ("skipped", "failed"):
        its = replace(FAILED, fault=Fault(status, "", carried=True))
        assert believed_reply(its, TASK, CLIENT, True).fault.carried == (status == "skipped")
    empty = replace(REPLY, payload=None)
    assert believed_reply(empty, TASK, CLIENT, True).fault.status == "failed"
    assert believed_reply(empty, TASK, CLIENT, False).fault is None


def test_a_measurement_of_another_split_is_refused():
    measured = MESSAGES["measured"]
    assert believed_measured(measured, replace(TASK, stage="val"), 9) == measured
    for correct in ("01", "0123", "011"):
        told = believed_measured(replace(measured, correct=correct), replace(TASK, stage="val"), 3)
        assert told.correct == (correct if correct == "011" else "")
    with pytest.raises(MessageError, match="client 3 was asked for test"):
        believed_measured(measured, replace(TASK, stage="test"), 9)
