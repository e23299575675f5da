"""MOSAIC, deliberately broken: what an audit must catch."""

from dataclasses import replace

import numpy as np

from mechanisms.mosaic import Mosaic
from mechanisms.payments import rochet


class Overcharged(Mosaic):
    """Payments 5 % too high."""

    def expected_payments(self, declared, log_z, log_z_without):
        return 1.05 * super().expected_payments(declared, log_z, log_z_without)


class Undercharged(Mosaic):
    """Payments 5 % too low."""

    def expected_payments(self, declared, log_z, log_z_without):
        return 0.95 * super().expected_payments(declared, log_z, log_z_without)


class WrongNeighbour(Mosaic):
    """The offset of the advertiser next to it."""

    def expected_payments(self, declared, log_z, log_z_without):
        rolled = np.roll(log_z_without, 1, axis=1)
        return super().expected_payments(declared, log_z, rolled)


class WrongTau(Mosaic):
    """Payments by a tau 5 % too high."""

    def expected_payments(self, declared, log_z, log_z_without):
        return rochet(declared, log_z, log_z_without, 1.05 * self.tau)


class WarmerAllocation(Mosaic):
    """Replies drawn at a tau 5 % higher than payments are for; learners are not told."""

    def allocate(self, pool, bids):
        drawn = Mosaic(1.05 * self.tau).allocate(pool, bids)
        return replace(
            super().allocate(pool, bids), probabilities=drawn.probabilities, itctr=drawn.itctr
        )

    def counterfactual(self, *asked):
        return Mosaic(self.tau).counterfactual(*asked)


class OverchargedInTheEnd(Mosaic):
    """Payments as they should be; charges 5 % above them."""

    def charge(self, *served):
        return 1.05 * super().charge(*served)


BROKEN = (Overcharged, Undercharged, WrongNeighbour, WrongTau, WarmerAllocation)
