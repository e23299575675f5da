"""Compiled code that calls another module's is compiled anew when that module changes."""

import os
import subprocess
import sys
import textwrap

CALLEE = """
    from numba import njit

    @njit(cache=True)
    def number():
        return {number}
"""
CALLER = """
    from numba import njit

    import callee
    from mechanisms.kernels.caching import renewed_with

    {decorator}
    @njit(cache=True)
    def twice():
        return 2 * callee.number()

    print(twice(), sum(twice.stats.cache_hits.values()))
"""


LAST = """
    from numba import njit

    import caller
    from mechanisms.kernels.caching import renewed_with

    @renewed_with(caller)
    @njit(cache=True)
    def four():
        return 2 * caller.twice()

    print(four(), sum(four.stats.cache_hits.values()))
"""


def run(folder, number, decorator, last=False):
    (folder / "callee.py").write_text(textwrap.dedent(CALLEE.format(number=number)))
    caller = folder / "caller.py"
    if not caller.exists():
        caller.write_text(textwrap.dedent(CALLER.format(decorator=decorator)))
    os.utime(folder / "callee.py", (number, number))
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": "."}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, str(folder / "last.py" if last else caller)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found, hits = done.stdout.splitlines()[-1].split()
    return int(found), int(hits)


def test_a_change_of_what_is_called_is_noticed(tmp_path):
    decorator = "@renewed_with(callee)"
    assert run(tmp_path, 1, decorator) == (2, 0)
    assert run(tmp_path, 1, decorator) == (2, 1)  # from disk
    assert run(tmp_path, 3, decorator) == (6, 0)
    assert run(tmp_path, 3, decorator) == (6, 1)


def test_so_is_a_change_of_what_that_calls(tmp_path):
    (tmp_path / "last.py").write_text(textwrap.dedent(LAST))
    decorator = "@renewed_with(callee)"
    assert run(tmp_path, 1, decorator, last=True) == (4, 0)
    assert run(tmp_path, 3, decorator, last=True) == (12, 0)


def test_without_it_numba_goes_on_with_old_code(tmp_path):
    """Why there is a decorator; once this fails, numba has learnt to notice, and it can go."""
    assert run(tmp_path, 1, "") == (2, 0)
    assert run(tmp_path, 3, "") == (2, 1)
