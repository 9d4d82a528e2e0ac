"""The picture of the weights over rounds, from a run's own logs."""

import numpy as np
import pytest
from PIL import Image

from bhfl.callbacks import WeightHistograms
from bhfl.report.weights import density, draw, main, read
from tests.federation import fit


def test_draws_what_a_run_wrote(tmp_path, capsys):
    run = fit(tmp_path, max_rounds=2, logger=True, callbacks=[WeightHistograms()]).run.folder
    found = read(run)
    assert set(found) == {"net.0.weight", "net.3.weight", "net.5.weight"}
    assert all(counts.sum() == 80 * 13 for _, counts in found["net.3.weight"].values())
    main([str(run), str(run), "--out", str(tmp_path / "w.png")])
    width, height = Image.open(tmp_path / "w.png").size
    assert width > height > 400
    with pytest.raises(ValueError, match=r"no histograms of 'nope'; there are net\.0\.weight"):
        draw([run], tmp_path / "x.png", layer="nope")


def test_a_folder_without_histograms(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path)])
    assert left.value.code == 2
    assert "no weight histograms" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nope")])
    assert "nope: no such folder" in capsys.readouterr().err


def test_density_has_area_one():
    x = np.linspace(-2, 2, 100_001)
    y = density(np.array([-1.0, 0.0, 0.5, 1.0]), np.array([2.0, 1.0, 1.0]), x)
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)
    assert y[0] == y[-1] == 0
