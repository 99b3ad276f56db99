"""Levels for tests that come one after another, nobody knows how many: alpha-investing (Foster and Stine 2008)."""

from dataclasses import dataclass, field

_BET = 0.25  # of the wealth, on every test


@dataclass
class AlphaInvesting:
    """A wealth that every test bets a part of, that confirmed ones add to, and that others use up.

    With V of R confirmations due to luck, E[V] <= rate (E[R] + 1) however the tests depend on what was found before
    (Foster and Stine 2008, J. R. Stat. Soc. B 70(2), theorem 1 with eta = 1 and omega = alpha), as long as each test
    has its level given the past. Where confirmations are many, tests become lenient; where there are none, strict.

    Attributes:
        rate: the share of confirmations that luck may have (alpha).
        wealth: what is left.
    """

    rate: float
    wealth: float = field(init=False)

    def __post_init__(self) -> None:
        self.wealth = self.rate

    @property
    def level(self) -> float:
        """Of the next test: what it costs, level / (1 - level), is a quarter of the wealth; at most ``rate``."""
        bet = _BET * self.wealth
        return min(self.rate, bet / (1 + bet))

    def settle(self, confirmed: bool) -> None:
        """After a test at ``level``."""
        self.wealth += self.rate if confirmed else -self.level / (1 - self.level)

    def refute(self) -> None:
        """After a confirmation has turned out to be luck: half of the wealth, so that the way stays open."""
        self.wealth /= 2
