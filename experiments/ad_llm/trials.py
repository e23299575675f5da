"""What Ad-LLMs are tried on: requests that none was trained on, under fresh bids, common to all.

Bids are uniform on [1, 100], every ad's by itself, as in the paper. Every way of writing meets the
same requests under the same bids, and its replies are driven by the same random streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mechanisms.checks import whole
from mechanisms.errors import BadInput
from mechanisms.llm.streams import derived_seed
from mechanisms.pool import Floats
from mechanisms.recording import Request

LOWEST, HIGHEST = 1.0, 100.0


@dataclass(frozen=True, eq=False)
class Trials:
    """Requests, and the bids under which each is served.

    Attributes:
        requests: B requests with n candidate ads each.
        bids: (B, D, n) D profiles for each request.
        seed: of the replies.
    """

    requests: Sequence[Request]
    bids: Floats
    seed: int

    @classmethod
    def draw(cls, requests: Sequence[Request], draws: int, seed: int) -> Trials:
        """`draws` bid profiles for each request; they depend on its place and the seed alone.

        Raises:
            BadInput: no requests, no ads, or no draws.
        """
        whole("draws", draws, least=1)
        n = check_requests(requests)
        own = derived_seed(seed, "trial bids")
        streams = [np.random.default_rng([own, b]) for b in range(len(requests))]
        bids = np.stack([rng.uniform(LOWEST, HIGHEST, (draws, n)) for rng in streams])
        return cls(requests, bids, derived_seed(seed, "trial replies"))

    @property
    def flat(self) -> Floats:
        """(B * D, n) bids, request-major."""
        return self.bids.reshape(-1, self.bids.shape[2])

    @property
    def asked(self) -> list[Request]:
        """B * D requests with their bids, request-major."""
        return under(self.requests, self.bids)


def under(requests: Sequence[Request], bids: Floats) -> list[Request]:
    """Each request once for each of its profiles, `bids` (B, K, n)."""
    return [
        replace(request, bids=tuple(profile))
        for request, profiles in zip(requests, bids.tolist(), strict=True)
        for profile in profiles
    ]


def check_requests(requests: Sequence[Request]) -> int:
    """Number of candidate ads n, the same for all requests; refuse what cannot be tried."""
    counts = {len(request.ads) for request in requests}
    if len(counts) != 1 or 0 in counts:
        raise BadInput(
            f"requests have {sorted(counts) or 'no'} candidate ads; give at least one request, and "
            "each the same number of ads, at least one"
        )
    return counts.pop()
