"""`admarket audit` from a scenario to its folder, and its figures."""

import json

import numpy as np
import polars as pl
import pytest

from experiments import plots
from experiments.audit import figures
from experiments.audit.report import audit
from experiments.audit.run import run_audit
from experiments.audit.tables import percent
from market.scenario import Scenario
from mechanisms.errors import BadInput
from mechanisms.mosaic import Mosaic
from mechanisms.pool import ReplyPool
from mechanisms.registry import make_mechanism

SMALL = {
    "name": "small",
    "requests": {"queries": 10, "ads": 3},
    "replies": {"source": "synthetic", "per_request": 8},
    "mechanism": {"name": "mosaic", "parameters": {"tau": 0.2}},
    "beside": ["first-price"],
    "population": [
        {"objective": "utility", "count": 3, "value": [1, 3]},
        {"objective": "value", "count": 2, "target_roi": 1.3, "budget": 50},
    ],
}
HOSTILE = [
    "<script>alert(1)</script>",
    "Cost $5 or $6",
    "Tea",
    "A very long title of a product" * 2,
]


@pytest.fixture(scope="module")
def scenario():
    return Scenario.from_dict(SMALL)


@pytest.fixture(scope="module")
def folder(scenario, tmp_path_factory):
    said = []
    path = run_audit(scenario, 3, tmp_path_factory.mktemp("audit") / "out", said.append)
    assert any("audit: mosaic, 5 advertisers, 10 requests" in line for line in said)
    return path.parent


def test_folder(folder):
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("data:image/png") == 3  # regret, and a heat map for each mechanism
    assert "synthetic" in page
    assert "fails (not claimed)" in page
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == "audit"
    assert manifest["asked"]["others"] == "truthful"
    assert list(manifest["pools"]) == ["first-price", "mosaic"]
    assert len(set(manifest["pools"].values())) == 1
    summary = json.loads((folder / "summary.json").read_text())
    held = {each["key"]: each["verdict"] for each in summary["mosaic"]["findings"]}
    assert held["truthful"] == held["reports"] == held["rational"] == "holds"
    assert held["value"] != "holds"
    assert summary["first-price"]["max_regret"] > 0.1
    for name, rows in (("advertisers", 10), ("deviations", 2 * 5 * 61)):
        assert pl.read_parquet(folder / f"{name}.parquet").height == rows
    assert pl.read_parquet(folder / "misreports.parquet")["mechanism"].unique().to_list() == [
        "mosaic"
    ]


def test_the_same_seed_gives_the_same_bytes(scenario, folder, tmp_path):
    again = run_audit(scenario, 3, tmp_path / "again").parent
    for path in folder.rglob("*.*"):
        if path.name not in ("manifest.json", "report.html"):  # which have times in them
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), path
    assert (again / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_mechanisms_by_name_and_others_as_learned(scenario, tmp_path):
    path = run_audit(
        scenario, 0, tmp_path / "out", mechanisms=["llm-auction-ideal", "vcg"], others="learned"
    )
    page = path.read_text("utf-8")
    assert "best response converged after" in page
    assert "tau 0.2" in page
    frame = pl.read_parquet(path.parent / "advertisers.parquet")
    assert frame["mechanism"].unique(maintain_order=True).to_list() == ["llm-auction-ideal", "vcg"]
    with pytest.raises(BadInput, match="holds another audit"):
        run_audit(scenario, 0, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": "lying"}, "others is 'lying'"),
        ({"mechanisms": ["nothing"]}, "nothing"),
    ],
)
def test_bad_input(scenario, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        run_audit(scenario, 0, tmp_path / "out", **changes)


def test_figures_with_any_titles(tmp_path):
    pool = ReplyPool.synthetic(6, 6, 3, np.random.default_rng(0), advertisers=4)
    reports = {
        name: audit(mechanism, pool, np.arange(1.0, 5.0), ["utility", "value"] * 2, 1.2, times=2)
        for name, mechanism in (("mosaic", Mosaic(0.2)), ("gsp", make_mechanism("gsp")))
    }
    drawn = [figures.regrets(reports, HOSTILE)]
    drawn += [figures.heat_map(report, HOSTILE) for report in reports.values()]
    for k, figure in enumerate(drawn):
        size = plots.save(figure, tmp_path / f"{k}.png", dpi=60).stat().st_size
        assert size > 5000
    alone = audit(Mosaic(0.2), pool, np.ones(4), times=2)  # one objective, no gains
    assert len(figures.regrets({"mosaic": alone}, HOSTILE).axes) == 1
    assert "gain nothing" in figures.heat_map(alone, HOSTILE).axes[0].get_title("left")


def test_figures_where_no_bid_meets_a_target(tmp_path):
    class Fee(Mosaic):
        def expected_payments(self, declared, log_z, log_z_without):
            return 5.0 + super().expected_payments(declared, log_z, log_z_without)

    pool = ReplyPool.synthetic(6, 6, 3, np.random.default_rng(0), advertisers=4)
    report = audit(Fee(0.2), pool, np.arange(1.0, 5.0), "value", times=2)
    assert report.table["regret"].null_count() == report.table.height
    assert (report.regret > 0).all()
    for name, figure in (
        ("regret", figures.regrets({"mosaic": report}, HOSTILE)),
        ("heat", figures.heat_map(report, HOSTILE)),
    ):
        assert plots.save(figure, tmp_path / f"{name}.png", dpi=60).stat().st_size > 5000


def test_percent():
    assert [percent(x) for x in (0.123456, 0.0, 3e-16, -2e-17, None, np.inf)] == [
        "12.3", "0", "3e−14", "−2e−15", "–", "∞",
    ]  # fmt: skip
