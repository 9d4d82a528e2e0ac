"""The heat map of bits by layer and round, from rows as a run writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bhfl.report.bits import main, read
from bhfl.report.reading import read_run


def made_run(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def resnet_rows(num_rounds: int = 6) -> list[dict[str, float]]:
    names = [f"net.blocks.{i // 2}.conv{i % 2 + 1}.weight" for i in range(21)]
    return [
        {
            "round": t,
            "train/loss": 1.0,
            **{f"fedlq/bits_{name}": 2 + (i + t) % 7 for i, name in enumerate(names)},
        }
        for t in range(1, num_rounds + 1)
    ]


def test_folders_that_hold_runs_will_do(tmp_path: Path) -> None:
    for version in (0, 1):
        made_run(tmp_path / "name" / f"version_{version}", resnet_rows(2))
    main([str(tmp_path / "name"), "--out", str(tmp_path / "both.png")])
    main([str(tmp_path / "name" / "version_0"), "--out", str(tmp_path / "one.png")])
    assert Image.open(tmp_path / "both.png").width > 1.5 * Image.open(tmp_path / "one.png").width


def test_reads_layers_in_the_model_s_order_and_leaves_gaps(tmp_path: Path) -> None:
    rows = [
        {"round": 1},
        {"round": 2, "fedlq/bits_z": 4.5, "fedlq/bits_a": 2},
        {"round": 4, "fedlq/bits_a": 3},
    ]
    layers, rounds, bits = read(read_run(made_run(tmp_path, rows)))
    assert (layers, rounds) == (["z", "a"], [1, 2, 3, 4])
    nan = np.nan
    np.testing.assert_array_equal(bits, [[nan, 4.5, nan, nan], [nan, 2, nan, 3]])


def test_a_row_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = made_run(tmp_path, resnet_rows(3))
    with open(run / "rounds.jsonl", "a") as file:
        file.write('{"round": 4, "fedlq/bi')
    assert read(read_run(run))[1] == [1, 2, 3]


def test_one_panel_a_run(tmp_path: Path) -> None:
    runs = [str(made_run(tmp_path / name / "version_0", resnet_rows())) for name in ("one", "two")]
    same = made_run(tmp_path / "same", [{"round": 1, "fedlq/bits_a": 32}])
    sizes = []
    for number, chosen in enumerate((runs[:1], runs, [str(same)])):
        main([*chosen, "--out", str(tmp_path / f"{number}.png")])
        sizes.append(Image.open(tmp_path / f"{number}.png").size)
    assert sizes[1][0] > 1.5 * sizes[0][0]
    assert sizes[0][1] > 900 > sizes[2][1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rounds.jsonl with a round in it"),
        ([{"round": 1, "val/acc": 0.5}], "1 rounds without a tag fedlq/bits_<parameter>"),
        ([{"round": 1, "fedlq/bits_a": 0}], "no round of it has bits"),
    ],
)
def test_a_run_without_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(made_run(tmp_path, rows))])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_rounds_that_are_far_apart_take_no_memory(tmp_path: Path) -> None:
    rows = [{"round": 1, "fedlq/bits_a": 2.0}, {"round": 2**31, "fedlq/bits_a": 3.0}]
    with pytest.raises(ValueError, match="are too many for a picture"):
        read(read_run(made_run(tmp_path, rows)))


def test_names_are_no_formulas(tmp_path: Path) -> None:
    rows = [{"round": 1, r"fedlq/bits_$\frac{a.weight": 2.0, "fedlq/bits_b_$": 3.0}]
    main([str(made_run(tmp_path / "x$_{" / "y", rows)), "--out", str(tmp_path / "bits.png")])
    assert (tmp_path / "bits.png").exists()
