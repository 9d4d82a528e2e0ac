"""Runs in sections and rows: who is compared with whom, and what counts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from bhfl.data import Digits
from bhfl.engine import FederatedTrainer
from bhfl.models import Classifier
from bhfl.report.command import write_report
from bhfl.report.ranking import ranking
from bhfl.report.reading import Run, find_runs, read_run
from bhfl.report.rows import Row, Section, Spread, sections, without_trials
from tests.report import made


def read(root: Path) -> list[Section]:
    return sections([read_run(folder) for folder in find_runs([root])])


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    for seed, end in ((2, 0.7), (0, 0.8), (1, 0.9)):
        made.run(tmp_path / str(seed), made.config(seed=seed), (end, 0.5))
    (section,) = read(tmp_path)
    (row,) = section.rows
    assert (row.label, [run.seed for run in row.runs], section.notes) == ("FedAvg", [0, 1, 2], ())
    found = row.value("int8")
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.8), pytest.approx(0.1), 3)
    assert row.value("float32").deviation == 0
    assert (row.mean("comm/uplink_MB"), row.total("downlink_bytes")) == (3, 6_000_000)


def named(root: Path, names: dict[str, str]) -> list[str]:
    found = [
        replace(read_run(folder), name=names.get(folder.name, "")) for folder in find_runs([root])
    ]
    return [row.label for section in sections(found) for row in section.rows]


def test_a_method_is_called_by_its_name_where_that_tells_it_apart(tmp_path: Path) -> None:
    made.run(tmp_path / "a", made.config("ProWD"))
    made.run(tmp_path / "b", made.config("ProWD", seed=1))
    made.run(tmp_path / "c", made.config("Local"))
    assert named(tmp_path, {"a": "ours", "b": "ours", "c": "alone"}) == ["ours", "alone"]
    assert named(tmp_path, {"a": "ours", "b": "ours", "c": "ours"}) == ["ProWD", "Local"]
    assert named(tmp_path, {"a": "ours", "b": "others", "c": "alone"}) == ["ProWD", "Local"]
    assert named(tmp_path, {"a": "ours", "b": "ours"}) == ["ProWD", "Local"]


def test_fleets_data_and_links_are_sections(tmp_path: Path) -> None:
    made.run(tmp_path / "a", made.config(clients={"float32": 10}))
    made.run(tmp_path / "b", made.config("ProWD"))
    made.run(tmp_path / "c", made.config())
    found = read(tmp_path)
    assert [(s.title, [row.label for row in s.rows]) for s in found] == [
        ("10 x float32", ["FedAvg"]),
        ("5 x int8, 5 x float32", ["ProWD", "FedAvg"]),
    ]


def test_runs_made_in_python_are_told_by_their_settings(tmp_path: Path) -> None:
    options = {"logger": False, "devices": 1, "max_rounds": 1, "default_root_dir": tmp_path}
    for name, seed, steps in (("a/b", 0, 1), ("a/c", 1, 1), ("d", 0, 2)):
        own = {"name": name, "seed": seed, "local_steps": steps}
        trainer = FederatedTrainer({8: 1, 32: 1}, **own, **options)
        trainer.fit(Classifier("mlp"), Digits(max_train_samples=200))
    (section,) = read(tmp_path)
    assert section.title == "Digits, IID, mlp, 1 x int8, 1 x float32"
    rows = [(row.label, len(row.runs)) for row in section.rows]
    assert rows == [("FedAvg (local_steps=1)", 2), ("FedAvg (local_steps=2)", 1)]


def test_other_data_sets_are_never_one_table(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    other = {**made.config(), "data": {"class_path": "bhfl.data.CIFAR10", "init_args": {}}}
    made.run(tmp_path / "b", other)
    assert [section.title for section in read(tmp_path)] == ["Digits, IID", "CIFAR10, no partition"]


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    made.run(tmp_path / "version_0")
    made.run(tmp_path / "version_1", ends=(0.1, 0.1))
    (section,) = read(tmp_path)
    assert [len(row.runs) for row in section.rows] == [1]
    assert section.rows[0].value("int8").mean == 0.8
    assert section.notes == (f"{tmp_path}/version_1 repeats FedAvg with seed 0 and is left out",)


def test_what_is_not_finished_has_a_row_of_its_own_at_the_end(tmp_path: Path) -> None:
    made.run(tmp_path / "a", made.config(seed=0, max_rounds=9), finished=False)
    made.run(tmp_path / "b", made.config(seed=1, max_rounds=9), (0.4, 0.4))
    made.run(tmp_path / "c", made.config("Local", max_rounds=9), (0.3, 0.3))
    (section,) = read(tmp_path)
    assert [(row.name, row.finished) for row in section.rows] == [
        ("FedAvg", True),
        ("Local", True),
        ("FedAvg, seed 0", False),
    ]
    assert section.rows[-1].value("int8").mean == 0.8  # of the last validation
    # it is no rival, and those two have no seed in common
    assert ranking(section, "int8").marks == ["", "", ""]
    assert section.notes == (f"{tmp_path}/a: not finished: 3 of 9 rounds",)


def test_runs_without_settings_come_last_and_stay_single(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (made.run(tmp_path / "named" / name) / "settings.json").unlink()
    assert [section.title for section in read(tmp_path)] == ["settings unknown"]
    made.run(tmp_path / "z")
    found = read(tmp_path)
    assert [section.title for section in found] == [
        "Digits, IID, cnn, 5 x int8, 5 x float32",
        "settings unknown",
    ]
    assert [row.name for row in found[1].rows] == ["named/x", "named/y"]
    assert found[1].notes[0] == f"{tmp_path}/named/x: no settings.json: its settings are unknown"
    assert found[1].notes[-1] == "runs of unknown settings are not compared"


@pytest.mark.parametrize("part", ["clients", "data", "model", "algorithm", "seed_everything"])
def test_what_is_not_known_in_part_is_not_compared(tmp_path: Path, part: str) -> None:
    for name in ("x", "y"):
        made.run(
            tmp_path / name, {key: value for key, value in made.config().items() if key != part}
        )
    (section,) = read(tmp_path)
    assert (section.title, section.comparable, len(section.rows)) == ("settings unknown", False, 2)


def test_a_seed_that_is_true_is_none(tmp_path: Path) -> None:
    made.run(tmp_path / "x", {**made.config(), "seed_everything": True})
    (section,) = read(tmp_path)
    assert section.notes[0] == f"{tmp_path}/x: its seed is unknown"


def test_pictures_of_other_folders_are_other_data(tmp_path: Path) -> None:
    for i, root in enumerate(("flowers", "birds", "birds/")):
        data = {"class_path": "bhfl.data.ImageFolder", "init_args": {"root": root}}
        made.run(tmp_path / f"{i}", {**made.config(seed=i), "data": data})
    assert [(section.title, len(section.rows[0].runs)) for section in read(tmp_path)] == [
        ("root=flowers", 1),
        ("root=birds", 2),
    ]


def test_training_that_differs_between_algorithms_is_noted(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    made.run(tmp_path / "b", made.config("ProWD", data__holdout=64))
    assert read(tmp_path)[0].notes == ("rows also differ in holdout: 0 or 64",)


def test_a_group_of_options_that_differs_is_noted_by_what_is_in_it(tmp_path: Path) -> None:
    """It said True for the downlink, and each option in it had a note of its own."""
    rule = {"class_path": True, "init_args": {"bits": 8, "send": "differences"}}
    made.run(tmp_path / "a", made.config(trainer__downlink="float32"))
    made.run(tmp_path / "b", made.config("ProWD", trainer__downlink=rule))
    assert read(tmp_path)[0].notes == (
        "rows also differ in downlink: float32 or {bits: 8, send: differences}",
    )


def test_bits_of_what_went_up(tmp_path: Path) -> None:
    made.run(tmp_path / "a", up=500_000, down=2_000_000)
    made.run(tmp_path / "b", made.config("Local"), up=0, down=0)
    first, second = read(tmp_path)[0].rows
    assert first.uplink_bits == 8
    assert math.isnan(second.uplink_bits)
    # what came down is no measure where it had fewer bits
    made.run(tmp_path / "c" / "d", made.config(trainer__downlink=8), up=500_000, down=500_000)
    (coarse,) = read(tmp_path / "c")[0].rows
    assert math.isnan(coarse.uplink_bits)


def test_spread_of_one_and_of_none() -> None:
    one, none = Spread.of([0.5, math.nan, math.inf]), Spread.of([])
    assert (one.mean, one.count, math.isnan(one.deviation)) == (0.5, 1, True)
    assert (none.count, math.isnan(none.mean)) == (0, True)


def test_a_run_that_measured_no_accuracy(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        made.told(made.config()),
        [{"round": 1, "val/loss": 1.0}],
        {"rounds": 1, "metrics": {"test/loss": 1.0}},
    )
    (section,) = sections([run])
    assert (section.groups, ranking(section, "int8").marks) == ([], [""])
    assert math.isnan(Row("x", (run,)).value("int8").mean)


def trial(folder: Path, seed: int, rate: float = 0.05) -> Run:
    settings = made.config(seed=seed)
    settings["model"]["init_args"]["optimizer"]["init_args"]["lr"] = rate
    return read_run(made.run(folder, settings))


def test_trials_of_a_sweep_are_left_out_unless_they_are_its_runs(tmp_path: Path) -> None:
    of_matrix = [trial(tmp_path / "half" / "FedAvg" / f"seed{seed}", seed) for seed in (0, 1)]
    tuned = tmp_path / "_tuning" / "FedAvg"
    other = trial(tuned / "0.1" / "seed0", 0, rate=0.1)
    apart = trial(tuned / "0.05" / "seed9", 9)
    # of a setting whose runs with this seed are the trials
    reused = trial(tuned / "0.05" / "seed0", 0)
    with pytest.warns(UserWarning, match="2 runs that tune an option of a sweep are left out"):
        assert without_trials([*of_matrix, other, apart, reused]) == [*of_matrix, reused]
    assert without_trials([other, apart]) == [other, apart]
    assert without_trials(of_matrix) == of_matrix


def test_a_report_of_trials_is_one_of_them_where_their_folder_is_named(tmp_path: Path) -> None:
    trial(tmp_path / "FedAvg" / "seed0", 0)
    tuned = trial(tmp_path / "_tuning" / "0.1" / "seed9", 9, rate=0.1).folder
    with pytest.warns(UserWarning, match="1 runs that tune"):
        assert "lr=0.1" not in write_report([tmp_path], tmp_path / "out")
    assert "lr=0.1" in write_report([tmp_path, tuned], tmp_path / "out")
