"""Mechanisms by name: the only place where a mechanism's name is compared with anything."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from mechanisms.base import Mechanism
from mechanisms.errors import BadInput, instead
from mechanisms.iamfm.mechanism import IAMFMElimination, IAMFMModel
from mechanisms.llm_auction.ideal import IdealLLMAuction
from mechanisms.llm_auction.mechanism import LLMAuction
from mechanisms.mosaic import Mosaic
from mechanisms.pretrained import Pretrained
from mechanisms.segment import SegmentAuction
from mechanisms.slots import GSP, VCG, FirstPrice
from mechanisms.token_auction import TokenAuction

MECHANISMS: dict[str, type[Mechanism]] = {
    mechanism.name: mechanism
    for mechanism in (
        Mosaic,
        LLMAuction,
        IdealLLMAuction,
        IAMFMElimination,
        IAMFMModel,
        FirstPrice,
        GSP,
        VCG,
        SegmentAuction,
        Pretrained,
        TokenAuction,
    )
}


def make_mechanism(name: str, /, **parameters: Any) -> Mechanism:
    """A mechanism by its name.

    The mechanism's `parameters` gives back all its parameters, defaults included.

    >>> make_mechanism("gsp", slots=2).parameters
    {'slots': 2, 'reserve': 0.0}

    Raises:
        BadInput: a name or parameter that does not exist, a parameter missing, or a bad value.
    """
    if name not in MECHANISMS:
        raise BadInput(f"no mechanism {name!r:.60}; {instead(name, MECHANISMS)}")
    known = {field.name: field for field in fields(MECHANISMS[name])}
    for given in parameters:
        if given not in known:
            mend = instead(given, known, "it has")
            raise BadInput(f"{name} has no parameter {given!r:.60}; {mend}")
    for needed, field in known.items():
        unset = field.default is MISSING and field.default_factory is MISSING
        if unset and needed not in parameters:
            raise BadInput(
                f"{name} needs parameter {needed!r}; in a scenario, write "
                f"{{name: {name}, parameters: {{{needed}: ...}}}}"
            )
    return MECHANISMS[name](**parameters)
