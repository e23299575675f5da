"""A manifest tells what the bytes of a run depend on."""

import importlib.metadata

import pytest

from experiments.provenance import where
from mechanisms.errors import BadInput


def test_versions_kernel_and_machine_are_told(monkeypatch):
    monkeypatch.delenv("ADMARKET_KERNEL", raising=False)
    told = where()
    for name in ("numba", "numpy", "admarket"):
        assert told["versions"][name] == importlib.metadata.version(name)
    assert told["kernel"] == "numba"
    assert told["hardware"]["cores"] >= 1
    assert "processor" in told["hardware"]
    monkeypatch.setenv("ADMARKET_KERNEL", "numpy")
    assert where()["kernel"] == "numpy"


def test_a_kernel_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("ADMARKET_KERNEL", "fortran")
    with pytest.raises(BadInput, match="fortran"):
        where()
