"""Tables, CSV and picture of an analysis made by hand."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bhfl.report.drawing import labels
from bhfl.report.layers import draw, main, read_csv, table, widths, write_csv


def made_rows(count: int = 21, accuracy: bool = True) -> list[dict[str, Any]]:
    rows = []
    for i in range(count):
        row: dict[str, Any] = {
            "layer": f"net.blocks.{i}.shortcut.0.weight",
            "kind": "Conv2d",
            "parameters": 1000 * 2**i,
        }
        row |= {f"saved_bytes_{b}": (32 - b) * 125 * 2**i for b in (2, 4, 8)}
        row |= {f"variance_{b}": i * 4.0**-b for b in (2, 4, 8)}
        row |= {f"loss_increase_{b}": (-1) ** i * 0.1 / b for b in (2, 4)}
        row |= {f"accuracy_drop_{b}": 0.0125 * i for b in (2, 4)} if accuracy else {}
        rows.append(row | {"significance": float(i), "curvature": 0.5, "bound_share_4": 1 / count})
    return rows


def test_csv_keeps_every_number(tmp_path: Path) -> None:
    write_csv(made_rows(), tmp_path / "layers.csv")
    assert read_csv(tmp_path / "layers.csv") == made_rows()
    assert widths(made_rows(), "saved_bytes") == [2, 4, 8]


def test_table_has_a_line_for_each_layer() -> None:
    lines = table(made_rows(3)).splitlines()
    assert lines[0].split()[:3] == ["layer", "kind", "parameters"]
    first = next(line for line in lines if line.startswith("net.blocks.1.shortcut.0"))
    assert first.split() == [
        "net.blocks.1.shortcut.0",
        "Conv2d",
        "2,000",
        "-0.0500",
        "-0.0250",
        "+1.2",
        "+1.2",
        "1",
        "0.5",
        "33.3",
        "%",
    ]
    assert sum(line.startswith("net.blocks.2.shortcut.0") for line in lines) == 2
    assert max(map(len, table(made_rows()).splitlines())) <= 130
    assert "acc" not in table(made_rows(accuracy=False))


@pytest.mark.parametrize(("count", "accuracy"), [(21, True), (1, False)])
def test_picture_grows_with_the_layers(tmp_path: Path, count: int, accuracy: bool) -> None:
    write_csv(made_rows(count, accuracy), tmp_path / "layers.csv")
    main([str(tmp_path / "layers.csv")])
    width, height = Image.open(tmp_path / "layers.png").size
    assert width > 1000
    assert height > 700 + 38 * count


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'bhfl\[plots\]'"):
        draw(made_rows(), tmp_path / "layers.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n", "no table of layers"), ("layer,x\nl,z\n", "must hold numbers")],
)
def test_another_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "other.csv")])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_labels_leave_out_what_all_names_share() -> None:
    assert labels(["net.conv.weight", "net.head.0.weight"]) == ["conv", "head.0"]
    assert labels(["conv.weight", "table"]) == ["conv.weight", "table"]
    assert labels(["net.0.weight"]) == ["net.0"]
    assert labels(["weight"]) == ["weight"]
