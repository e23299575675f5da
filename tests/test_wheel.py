"""The wheel holds all that the program needs: installed, it runs outside of the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "experiments", "market", "mechanisms")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, and the copy of the source tree that it was built in."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = ("wheel", "--no-deps", "--wheel-dir", out, source)
    run(sys.executable, *PIP, *build, cwd=out)
    [wheel] = out.glob("admarket-*.whl")
    return wheel, source


@pytest.mark.slow  # an index is asked for setuptools
def test_every_file_of_the_packages_is_in_the_wheel(built):
    wheel, source = built
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for package in PACKAGES for path in (source / package).rglob("*")]
    assert not {path.relative_to(source).as_posix() for path in files if path.is_file()} - held
    assert {name.split("/")[0] for name in held} == {
        *PACKAGES,
        f"{wheel.stem.rsplit('-', 3)[0]}.dist-info",
    }


@pytest.mark.slow
def test_the_installed_wheel_runs_outside_of_the_source_tree(built, tmp_path):
    """With this environment's packages below: what is heavy is not fetched again."""
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", home)
    python = home / "bin" / "python"
    run(python, *PIP, "install", "--no-deps", "--no-index", built[0])
    [packages] = (home / "lib").glob("python*/site-packages")
    below = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "below.pth").write_text("".join(f"{path}\n" for path in below))
    away = tmp_path / "away"
    away.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["ADMARKET_CACHE"] = str(tmp_path / "cache")
    where = (
        "import agents, experiments, market, mechanisms as m; print(market.__file__, m.__file__)"
    )
    for path in run(python, "-c", where, cwd=away, env=environment).split():
        assert Path(path).is_relative_to(home)
    admarket = home / "bin" / "admarket"
    said = run(admarket, "run", "synthetic", cwd=away, env=environment)
    report = away / said.strip().splitlines()[-1]
    assert report.name == "report.html" and report.stat().st_size > 10_000
    assert pl.read_parquet(report.parent / "rounds.parquet").height > 0
    said = run(admarket, "report", report.parent, cwd=away, env=environment)
    assert said.strip().endswith("report.html")
