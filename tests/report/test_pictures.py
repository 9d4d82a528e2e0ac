"""The pictures: those that have data, in the same colours, and the same bytes for the same runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from bhfl.report.drawing import PALETTE
from bhfl.report.pictures import Chapter, chapters, colours
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import Section, sections
from tests.report import made

ONE = {"float32": 0.9}
OVER = ["over rounds", "over bytes sent by clients", "over all bytes sent"]


def read(root: Path) -> list[Section]:
    return sections([read_run(folder) for folder in find_runs([root])])


def drawn(section: Section) -> dict[str, Chapter]:
    return {chapter.title: chapter for chapter in chapters(section, colours([section]))}


def titles(chapter: Chapter) -> list[str]:
    return [picture.title for picture in chapter.pictures]


def text_colours(picture: bytes) -> set[str]:
    return set(re.findall(r"#[0-9a-f]{6}", picture.decode()))


def test_one_run_has_its_curves_and_nothing_else(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    found = drawn(read(tmp_path)[0])
    assert list(found) == ["Accuracy: int8", "Accuracy: float32", "Accuracy: average over clients"]
    assert all(titles(chapter) == OVER for chapter in found.values())
    assert all(
        picture.svg.startswith(b"<?xml")
        for chapter in found.values()
        for picture in chapter.pictures
    )


def test_nothing_sent_is_not_drawn_over_bytes(tmp_path: Path) -> None:
    made.run(tmp_path / "a", made.config("Local"), ONE, up=0, down=0)
    assert titles(drawn(read(tmp_path)[0])["Accuracy: float32"]) == OVER[:1]


def test_methods_over_simulated_links_are_drawn_against_their_seconds(tmp_path: Path) -> None:
    for name in ("FedAvg", "FedPAQ"):
        config = made.config(name)
        made.run(tmp_path / name, config, ONE, **{"time/simulated_s": [5.0, 10.0, 15.0]})
    pictures = titles(drawn(read(tmp_path)[0])["Accuracy against bytes and time"])
    assert pictures == ["MB up", "MB up and down", "simulated seconds"]


def test_a_run_before_its_first_round(tmp_path: Path) -> None:
    made.write(tmp_path / "a", made.config(), [], finished=False)
    assert drawn(read(tmp_path)[0]) == {}


def test_every_chapter_that_there_is(tmp_path: Path) -> None:
    tags = {
        "time/simulated_s": [5.0, 10.0, 15.0], "prowd/mask_keep": [0.05] * 3,
        "prowd/cosine": [0.5, 0.4, 0.3], "dequantizer/recon": [0.5, 0.4, 0.3],
        "dequantizer/recon_identity": [0.5] * 3, "dequantizer/distill": [-1.0] * 3,
        "fedlq/bits_net.0.weight": [8.0] * 3, "fedlq/bits_net.1.weight": [2.0, 3.0, 4.0],
        "clients/failed": [0.0, 1.0, 0.0], "clients/late": [1.0, 1.0, 2.0],
    }  # fmt: skip
    made.run(tmp_path / "a", ends=ONE, **tags)
    made.run(tmp_path / "b", made.config("FedPAQ"), ONE, up=100_000)
    with SummaryWriter(str(tmp_path / "a")) as events:
        for round in (1, 2, 3):
            events.add_histogram("weights/net.0.weight", np.linspace(-1, 1, 100), round, bins=20)
    found = drawn(read(tmp_path)[0])
    assert {title: titles(chapter) for title, chapter in found.items()} == {
        "Accuracy: float32": [*OVER, "over simulated time"],
        "Accuracy against bytes and time": ["MB up", "MB up and down"],
        "Weights over rounds": ["FedAvg"],
        "ProWD: what its mask keeps": ["share of entries kept", "cosine with the high-bit move"],
        "ProWD: the dequantizer": ["reconstruction loss", "distillation loss"],
        "FedLQ: bits by layer and round": ["FedAvg"],
        "Clients whose updates did not count": ["failed", "late"],
    }


def test_colours_are_the_methods_in_all_sections(tmp_path: Path) -> None:
    for i, fleet in enumerate(({"float32": 10}, {"int8": 10})):
        for algorithm in ("FedAvg", "FedPAQ", "Local")[i:]:
            made.run(tmp_path / f"{i}{algorithm}", made.config(algorithm, clients=fleet), ONE)
    found = read(tmp_path)
    palette = colours(found)
    assert len(set(palette.values())) == len(palette) == 3
    for section in found:
        first = chapters(section, palette)[0].pictures[0]
        assert {palette[row.label] for row in section.rows} <= text_colours(first.svg)
    assert palette["FedAvg"] not in text_colours(chapters(found[1], palette)[0].pictures[0].svg)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for seed in (0, 1):
        made.run(tmp_path / str(seed), made.config(seed=seed), ONE)
    (section,) = read(tmp_path)
    assert chapters(section, colours([section])) == chapters(section, colours([section]))


def test_more_methods_than_colours(tmp_path: Path) -> None:
    for bits in range(len(PALETTE) + 1):
        made.run(tmp_path / str(bits), made.config("FedPAQ", bits=bits), ONE)
    assert "Accuracy against bytes and time" in drawn(read(tmp_path)[0])


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_damaged_histograms_are_left_out(tmp_path: Path, content: bytes) -> None:
    (made.run(tmp_path / "a", ends=ONE) / "events.out.tfevents.1.x.1.0").write_bytes(content)
    assert list(drawn(read(tmp_path)[0])) == ["Accuracy: float32"]
