"""Figures of pCTR models."""

import numpy as np
import pytest

from experiments.pctr_figures import learning, reliability
from experiments.plots import save


def test_reliability(tmp_path):
    rng = np.random.default_rng(0)
    predicted = rng.beta(2, 20, 1000)
    clicks = (rng.random(1000) < predicted).astype(float)
    figure = reliability(predicted, clicks)
    above, below = figure.axes
    assert len(above.lines[1].get_xdata()) == 10
    assert sum(bar.get_height() for bar in below.patches) == 1000
    assert above.get_xlim()[1] >= predicted.max()
    assert save(figure, tmp_path / "a.png", dpi=40).read_bytes()[:4] == b"\x89PNG"
    few = reliability([0.5], [1])
    assert len(few.axes[0].lines[1].get_xdata()) == 1


def test_learning():
    rows = [{"auc": 0.5 + k / 10, "auc_of_truth": 0.75, "correlation": k / 3} for k in range(3)]
    left, right = learning(rows).axes
    assert left.lines[0].get_ydata() == pytest.approx([0.5, 0.6, 0.7])
    assert right.lines[0].get_ydata() == pytest.approx([0, 1 / 3, 2 / 3])
    unknown = learning([{"auc": None, "auc_of_truth": None, "correlation": None}])
    assert np.isnan(unknown.axes[0].lines[0].get_ydata()).all()
