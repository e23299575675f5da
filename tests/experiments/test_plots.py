"""Figures: drawn, not blank, without side effects, and true to the frames."""

import subprocess
import sys
import time
import warnings
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import plots
from experiments.colours import COLOURS, colours
from experiments.dashboard import view
from experiments.report import number
from experiments.tables import best_means, by_advertiser
from tests.experiments import small_run


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def drawn_ticks(axis):
    low, high = sorted(axis.get_view_interval())
    places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
    return [label for place, label in places if low <= place <= high]


def draw(name, run=None, best=None):
    run = small_run.result() if run is None else run
    return {
        "bids": lambda: plots.bid_trajectories(run.advertisers, best),
        "market": lambda: plots.market_over_rounds(run.rounds),
        "advertisers": lambda: plots.payments_and_roi(run.advertisers),
    }[name]()


@pytest.mark.parametrize("name", plots.CAPTIONS)
def test_figures_are_not_blank_and_leave_no_trace(name):
    before = dict(mpl.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = pixels(draw(name, best=small_run.best()))
    assert dict(mpl.rcParams) == before
    assert mpl._pylab_helpers.Gcf.get_num_fig_managers() == 0
    assert image.shape[1] == 900
    for label in small_run.MECHANISMS:
        colour = np.array(mpl.colors.to_rgb(COLOURS[label])) * 255
        assert (np.abs(image - colour).max(axis=2) < 3).sum() > 50, label


@pytest.mark.parametrize("name", plots.CAPTIONS)
def test_texts_do_not_overlap(name):
    figure = draw(name, best=small_run.best())
    pixels(figure)
    renderer = figure.canvas.get_renderer()
    texts = [t for legend in figure.legends for t in legend.get_texts()]
    for ax in figure.axes:
        texts += [label for axis in (ax.xaxis, ax.yaxis) for label in drawn_ticks(axis)]
        texts += [ax.xaxis.label, ax.yaxis.label, ax._left_title, *ax.texts]
    boxes = [t.get_window_extent(renderer) for t in texts if t.get_visible() and t.get_text()]
    canvas = figure.bbox
    assert len(boxes) > 15
    for k, box in enumerate(boxes):
        assert box.x0 >= -1 and box.x1 <= canvas.x1 + 1 and box.y1 <= canvas.y1 + 1
        for other in boxes[k + 1 :]:
            shared = mpl.transforms.Bbox.intersection(box, other)
            assert shared is None or min(shared.width, shared.height) < 1.5


@pytest.mark.parametrize("name", plots.CAPTIONS)
@pytest.mark.parametrize(("replications", "rounds"), [(1, 60), (3, 3), (1, 1)])
def test_the_least_of_runs_is_drawn(name, replications, rounds):
    image = pixels(draw(name, small_run.result(replications, rounds)))
    colour = np.array(mpl.colors.to_rgb(COLOURS["mosaic"])) * 255
    assert (np.abs(image - colour).max(axis=2) < 3).sum() > 50


def test_saved_figures_are_the_same_bytes(tmp_path):
    one, two = (
        plots.save(draw("market"), tmp_path / f"{k}.png", dpi=50).read_bytes() for k in range(2)
    )
    assert one == two


def test_numbers_in_figures_are_those_of_the_summary():
    figure = draw("market")
    summary = small_run.result().summary
    for ax, name in zip(figure.axes, plots.PANELS, strict=True):
        (found,) = (text.get_text() for text in ax.texts)
        for label in small_run.MECHANISMS:
            assert f"{summary[label][name]['mean']:#.3g} {label}" in found
    (bids, *_), label = draw("bids").axes, "llm-auction-ideal"
    mean = summary[label]["objectives"]["utility"]["bid_over_value"]["mean"]
    assert any(f"{mean:#.3g} {label}" in text.get_text() for text in bids.texts)


def test_lines_that_coincide_are_all_seen_and_said_to():
    run = small_run.result()
    mosaic = run.advertisers.filter(pl.col("mechanism") == "mosaic")
    twin = mosaic.with_columns(mechanism=pl.lit("vcg"))
    for frame, both in ((pl.concat([mosaic, twin]), True), (run.advertisers, False)):
        figure = plots.bid_trajectories(frame, small_run.best())
        found = figure.axes[0].texts[-1].get_text()
        assert found.endswith("under both") == both
        solid, *_ = figure.axes[0].get_lines()
        assert (solid.get_linestyle() == "--") == both  # as matplotlib calls all dashes
    image = pixels(plots.bid_trajectories(pl.concat([mosaic, twin])))[150:-60]
    seen = [
        (np.abs(image - 255 * np.array(mpl.colors.to_rgb(COLOURS[label]))).max(axis=2) < 3)
        for label in ("mosaic", "vcg")
    ]
    assert 0.5 < seen[0].sum() / seen[1].sum() < 2


@pytest.mark.parametrize("rounds", [2_000, 15_000])
def test_rounds_below_narrow_panels_do_not_run_together(rounds):
    frame = small_run.result().rounds.with_columns(pl.col("round") * (rounds // 60))
    figure = view.narrowed(plots.market_over_rounds(frame))
    pixels(figure)
    renderer = figure.canvas.get_renderer()
    for ax in figure.axes:
        boxes = [label.get_window_extent(renderer) for label in drawn_ticks(ax.xaxis)]
        assert len(boxes) > 1
        assert all(b.x0 - a.x1 > 6 for a, b in pairwise(boxes))


@pytest.mark.parametrize(
    ("means", "told"),
    [
        ({"a": 0.7, "b": 0.7000001, "c": 0.7}, [("0.700", ["a", "c", "b"])]),
        ({"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.2}, [("0.200", ["b", "d"]), ("0.900", ["a"])]),
        ({"a": 1.0}, [("1.00", ["a"])]),
    ],
)
def test_ends_name_all_that_read_the_same(means, told):
    assert plots.ends(means, number) == told


def test_table_of_advertisers_agrees_with_the_frame():
    frame = small_run.result().advertisers
    table = by_advertiser(frame)
    assert table.height == 2 * small_run.N
    row = table.filter((pl.col("mechanism") == "mosaic") & (pl.col("advertiser") == 3)).row(
        0, named=True
    )
    late = frame.filter(
        (pl.col("mechanism") == "mosaic") & (pl.col("advertiser") == 3) & (pl.col("round") >= 45)
    )
    by_replication = late.group_by("replication").agg(
        per=1000 * pl.col("payment").sum() / pl.col("requests").sum()
    )
    np.testing.assert_allclose(row["payment_per_1000"], by_replication["per"].mean())
    assert row["payment_per_1000_low"] <= row["payment_per_1000"] <= row["payment_per_1000_high"]


def test_best_means_leave_out_who_is_never_shown():
    best = small_run.best().with_columns(
        note=pl.when(pl.col("advertiser") == 0).then(pl.lit("never shown: every bid gives 0"))
        .otherwise(pl.lit("")),
        bid_over_value=pl.when(pl.col("advertiser") == 0).then(9.0).otherwise(0.5),
    )  # fmt: skip
    assert best_means(best, "mosaic", "utility") == 0.5
    assert best_means(best, "nobody", "utility") is None


def test_labels_of_any_name_get_a_colour():
    labels = ["mosaic", "mosaic at tau 1", *(f"run {k}" for k in range(20))]
    found = colours(labels)
    assert list(found) == labels and found["mosaic at tau 1"] != found["mosaic"]


def test_of_several_runs_each_mechanism_keeps_its_hue():
    labels = [f"{name} · {run}" for run in "ABCD" for name in ("mosaic", "vcg")]
    found = colours(labels)
    assert len(set(found.values())) == len(labels)
    assert found["mosaic · A"] == COLOURS["mosaic"] and found["vcg · A"] == COLOURS["vcg"]

    def hue(label):
        return mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(found[label]))[0]

    for run in "BC":
        assert hue(f"mosaic · {run}") == pytest.approx(hue("mosaic · A"), abs=0.01)


def test_a_long_run_is_drawn_in_time():
    frame = small_run.result().advertisers
    long = pl.concat(frame.with_columns(pl.col("round") + 60 * k) for k in range(200))
    began = time.perf_counter()
    pixels(plots.bid_trajectories(long))
    assert long.height > 400_000 and time.perf_counter() - began < 4


def test_importing_plots_and_report_draws_in_no_drawing_library():
    code = "import sys, experiments.plots, experiments.report; print('matplotlib' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
