"""Which mechanisms an experiment looks at: those of the scenario, or others named by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from market.scenario import Scenario
from mechanisms.base import Mechanism
from mechanisms.errors import BadInput
from mechanisms.registry import MECHANISMS, make_mechanism


def chosen(scenario: Scenario, names: Sequence[str] | None = None) -> list[Mechanism]:
    """The scenario's mechanisms, or those of `names`.

    A named one takes its parameters from the scenario where it is listed there; elsewhere it has
    its defaults, and the tau of the scenario's first mechanism that has one.

    Raises:
        BadInput: an unknown name, one named twice, or one that needs a tau which nobody gives.
    """
    listed = {arm.name: dict(arm.parameters) for arm in scenario.arms}
    if names is None:
        return [make_mechanism(name, **parameters) for name, parameters in listed.items()]
    if len(set(names)) < len(names):
        raise BadInput("a mechanism is named twice; name each once")
    tau = next((given["tau"] for given in listed.values() if "tau" in given), None)
    found = []
    for name in names:
        parameters = listed.get(name, {})
        known = name in MECHANISMS and "tau" in {field.name for field in fields(MECHANISMS[name])}
        if name not in listed and known and tau is not None:
            parameters = {"tau": tau}
        found.append(make_mechanism(name, **parameters))
    return found
