"""A message is one object where it is short, and nobody else's content is taken for one."""

import pytest

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from bhfl.remote.app.records import KIND, unwrapped, wrapped


@pytest.mark.parametrize(("length", "objects"), [(0, 1), (2**20, 1), (2**20 + 1, 3), (6 << 20, 4)])
def test_bytes_come_back_as_they_were(length: int, objects: int) -> None:
    data = bytes(range(256)) * (length // 256) + bytes(length % 256)
    content = wrapped(data)
    assert unwrapped(content) == data
    assert len(get_all_nested_objects(content)) - 1 == objects


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"other": b"1"}),
        ConfigRecord({KIND: "text"}),
        MetricRecord({KIND: 1.0}),
        ArrayRecord({}),
    ],
)
def test_other_content_holds_nothing(record: ConfigRecord | MetricRecord | ArrayRecord) -> None:
    assert unwrapped(RecordDict({"bytes": record})) == b""
    assert unwrapped(RecordDict({"more": record})) == b""
