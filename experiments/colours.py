"""Colours of mechanisms in figures: the same one everywhere."""

from __future__ import annotations

from collections.abc import Sequence

OF_RUN = " · "
"""Between a mechanism and its run, where several runs are drawn in the same axes."""
# Okabe & Ito's, safe for the colour-blind, and others dark enough for thin lines
COLOURS = {
    "mosaic": "#0072b2",
    "llm-auction-ideal": "#d55e00",
    "llm-auction": "#e69f00",
    "iamfm-elimination": "#009e73",
    "iamfm-model": "#56b4e9",
    "first-price": "#a6548a",
    "gsp": "#8c6d31",
    "vcg": "#555555",
    "pretrained": "#999999",
    "segment": "#332288",
    "token": "#882255",
}
SHADES = (0.0, 0.45, -0.4)
"""Of a mechanism's colour in the first run, the second and the third: towards white, or black."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label: mechanisms their own, in further runs a shade of it.

    Other labels get colours that are free.

    >>> list(colours(["mosaic · A", "mosaic · B", "mine"]).values())
    ['#0072b2', '#73b1d4', '#d55e00']
    """
    found: dict[str, str] = {}
    for label in labels:
        mechanism, _, run = label.partition(OF_RUN)
        earlier = sum(other.startswith(mechanism + OF_RUN) for other in found)
        if mechanism in COLOURS and earlier < len(SHADES):
            found[label] = _shade(COLOURS[mechanism], SHADES[earlier] if run else 0.0)
    taken = {label.partition(OF_RUN)[0] for label in labels}
    free = [each for name, each in COLOURS.items() if name not in taken] or [*COLOURS.values()]
    others = [label for label in labels if label not in found]
    found |= {label: free[k % len(free)] for k, label in enumerate(others)}
    return {label: found[label] for label in labels}


def _shade(colour: str, towards: float) -> str:
    """`#rrggbb` mixed with white, or by a negative share with black."""
    end, share = (255, towards) if towards > 0 else (0, -towards)
    parts = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (end - part)):02x}" for part in parts)
