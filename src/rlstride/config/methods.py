"""Every extrapolation method as studies, plans, tables, figures and the command line know it: the one list.

It imports nothing that is slow. A new method is an entry here and the object that ``make`` names; another package adds
one by an entry point of the group ``rlstride.methods`` that names a :class:`MethodSpec`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlstride.config.plugins import with_plugins

MULTIPLES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the run's last step: the target steps that are tried
NEXT_ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)  # of NExt's jump, that next_validated tries
SHRINK_FACTORS = (1.0, 0.75, 0.5, 0.25, 0.1)  # of the run's update, that full_shrunk tries, from the run itself

# Families that are read against each other: a row of panels for each, in this order.
Family = Literal[
    "floor", "straight on", "fitted to the window", "low rank", "networks", "what the model says", "controls"
]
_EXTRAPOLATION = "rlstride.extrapolation."


@dataclass(frozen=True)
class MethodSpec:
    """What is known of a method before it is loaded.

    Attributes:
        name: in studies, tables and on the command line.
        about: what it does, in a sentence.
        family: which others it is read against.
        make: MODULE:OBJECT, the rlstride.extrapolation.method.Method.
        fewest_steps: kept steps that a window must hold.
        uses_accuracy: whether it needs the accuracy of the window's steps.
        oracle: whether it is told the fully trained run's accuracy: what nobody who stops at the window has.
        reach_through: of a method that tries target steps on validation problems, the kept step of the window that it
            extrapolates through: 0 the first, -1 the last.
        factors: of a method that tries factors of its jump there, these.
        has_weights: whether its model has weights of its own, which a run can go on from.
        whole_run: whether it sees the run to its end, whatever windows are asked for: it predicts nothing, and its
            model is called by its own name.
    """

    name: str
    about: str
    family: Family
    make: str
    fewest_steps: int = 1
    uses_accuracy: bool = False
    oracle: bool = False
    reach_through: int | None = None
    factors: tuple[float, ...] = ()
    has_weights: bool = True
    whole_run: bool = False

    @property
    def uses_scores(self) -> bool:
        """Whether it chooses how far it goes on validation problems."""
        return bool(self.factors) or self.reach_through is not None

    @property
    def can_jump(self) -> bool:
        """Whether a run that is training can be put where it points: it needs nothing but the window."""
        return self.has_weights and not self.uses_scores and not self.oracle and not self.whole_run


_ALL = (
    MethodSpec("last", "The window's last checkpoint.", "floor", _EXTRAPOLATION + "linear:LAST"),
    MethodSpec(
        "linear",
        "Straight on from the base through the window's last checkpoint (RL-Extra, ExPO).",
        "straight on",
        _EXTRAPOLATION + "linear:LINEAR",
    ),
    MethodSpec(
        "linear_validated",
        "linear, as far as validation problems say.",
        "straight on",
        _EXTRAPOLATION + "validated:LINEAR_VALIDATED",
        reach_through=-1,
    ),
    MethodSpec(
        "first_update",
        "Straight on through the first kept step.",
        "straight on",
        _EXTRAPOLATION + "controls:FIRST_UPDATE",
    ),
    MethodSpec(
        "first_update_validated",
        "first_update, as far as validation problems say.",
        "straight on",
        _EXTRAPOLATION + "validated:FIRST_UPDATE_VALIDATED",
        reach_through=0,
    ),
    MethodSpec(
        "norm_only",
        "The last update's rank-1 direction at linear's norm.",
        "controls",
        _EXTRAPOLATION + "controls:NORM_ONLY",
    ),
    MethodSpec(
        "random_direction",
        "A random direction at linear's norm.",
        "controls",
        _EXTRAPOLATION + "controls:RANDOM_DIRECTION",
    ),
    MethodSpec(
        "alpharl",
        "AlphaRL (arXiv 2510.00553): PLS of the leading singular vectors on accuracy.",
        "low rank",
        _EXTRAPOLATION + "alpharl:ALPHARL",
        fewest_steps=3,
        uses_accuracy=True,
    ),
    MethodSpec(
        "alpharl_repo",
        "AlphaRL as its authors' code has it.",
        "low rank",
        _EXTRAPOLATION + "alpharl:ALPHARL_REPO",
        fewest_steps=3,
        uses_accuracy=True,
    ),
    MethodSpec(
        "alpharl_oracle",
        "AlphaRL that is told the full run's accuracy.",
        "low rank",
        _EXTRAPOLATION + "alpharl:ALPHARL_ORACLE",
        fewest_steps=3,
        uses_accuracy=True,
        oracle=True,
    ),
    MethodSpec(
        "relex",
        "RELEX (arXiv 2605.21468): one fixed direction, its coefficient a line in the step.",
        "fitted to the window",
        _EXTRAPOLATION + "coordinates:RELEX",
        fewest_steps=2,
    ),
    MethodSpec(
        "taylor",
        "Second-order Taylor expansion in three coordinates.",
        "fitted to the window",
        _EXTRAPOLATION + "coordinates:TAYLOR",
        fewest_steps=3,
    ),
    MethodSpec(
        "dmd",
        "Dynamic mode decomposition (Schmid 2010) in two coordinates.",
        "fitted to the window",
        _EXTRAPOLATION + "coordinates:DMD_RANK_2",
        fewest_steps=3,
    ),
    MethodSpec(
        "logits",
        "Logits extrapolated from the base's.",
        "what the model says",
        _EXTRAPOLATION + "logits:LOGITS",
        has_weights=False,
    ),
    MethodSpec(
        "logits_validated",
        "logits, as far as validation problems say.",
        "what the model says",
        _EXTRAPOLATION + "validated:LOGITS_VALIDATED",
        reach_through=-1,
        has_weights=False,
    ),
    MethodSpec(
        "next",
        "NExt (arXiv 2604.11446): networks that predict the singular triplets of later updates.",
        "networks",
        _EXTRAPOLATION + "next_predictor:NEXT",
        fewest_steps=7,
    ),
    MethodSpec(
        "next_validated",
        "NExt with its factor chosen on validation problems.",
        "networks",
        _EXTRAPOLATION + "validated:NEXT_VALIDATED",
        fewest_steps=7,
        factors=NEXT_ALPHAS,
    ),
    MethodSpec(
        "next_without_g",
        "NExt without its global part.",
        "networks",
        _EXTRAPOLATION + "next_predictor:NEXT_WITHOUT_G",
        fewest_steps=7,
    ),
    MethodSpec(
        "next_without_l",
        "NExt without its local part.",
        "networks",
        _EXTRAPOLATION + "next_predictor:NEXT_WITHOUT_L",
        fewest_steps=7,
    ),
    MethodSpec(
        "full_shrunk",
        "The whole run's update times a factor of 1 or less, as validation problems say.",
        "controls",
        _EXTRAPOLATION + "validated:FULL_SHRUNK",
        factors=SHRINK_FACTORS,
        whole_run=True,
    ),
)
METHODS: Mapping[str, MethodSpec] = with_plugins("rlstride.methods", MethodSpec, _ALL)

if TYPE_CHECKING:
    MethodName = str
    JumpMethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
    JumpMethodName = Literal[tuple(name for name, method in METHODS.items() if method.can_jump)]
