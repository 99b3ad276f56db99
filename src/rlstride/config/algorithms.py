"""Hyper-parameters of the RL algorithms and controls: the entries of algorithms.yaml, one class for each trainer.

A *step* is one batch of rollouts (or of demonstrations) with all the optimiser updates that are made from it, so that
the steps of all algorithms cost the same rollouts.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from rlstride.config.kinds import Kinds, union_of
from rlstride.config.section import Strict
from rlstride.config.stride import Stride

_algorithms = Kinds("rlstride.algorithms", by="trainer")


class Optimisation(Strict):
    """What every trainer has.

    Attributes:
        models_in_memory: what a training holds, as multiples of a policy with its gradients, moments and reference.
    """

    if TYPE_CHECKING:
        trainer: str

    models_in_memory: ClassVar[int] = 1

    learning_rate: float = Field(ge=0, description="AdamW's rate; 0 makes a frozen control.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimiser updates of linear warm-up of the rate.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")

    @property
    def updates_per_step(self) -> int:
        """Optimiser updates that are made from one batch."""
        return 1

    @property
    def cost(self) -> float:
        """What a step costs, as a multiple of one that draws its rollouts once and updates the policy once or twice."""
        return 1.0


class PolicyGradient(Optimisation):
    """What every RL algorithm with a clipped importance ratio has."""

    epsilon: float = Field(default=0.2, gt=0, description="Clip range of the importance ratio.")
    minibatches: int = Field(default=1, ge=1, description="Updates in one pass over a batch of rollouts.")
    epochs: int = Field(default=1, ge=1, description="Passes over each batch of rollouts.")
    stride: Stride | None = Field(default=None, description="Jump along the run's own movement; null: never.")

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A run without strides is the run that it was before there were any, hash and all."""
        plain: dict[str, Any] = handler(self)
        if self.stride is None:
            plain.pop("stride", None)
        return plain

    @property
    def updates_per_step(self) -> int:
        """Optimiser updates that are made from one batch."""
        return self.minibatches * self.epochs

    @property
    def draws(self) -> float:
        """What drawing the rollouts and reading them costs, as a multiple of one draw."""
        return 1.0

    @property
    def cost(self) -> float:
        """What a step costs; searches for a jump inside."""
        return self.draws * max(1.0, 0.5 * self.updates_per_step) * (1.0 if self.stride is None else 1.3)


@_algorithms.made_by("rlstride.training.grpo:build")
class GRPO(PolicyGradient):
    """Group-normalised advantages (arXiv 2402.03300)."""

    trainer: Literal["grpo"] = Field(description="The trainer's name in the registry of rlstride.training.")
    beta: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the base, in the loss.")


@_algorithms.made_by("rlstride.training.rloo:build")
class RLOO(PolicyGradient):
    """Leave-one-out baseline (arXiv 2402.14740)."""

    trainer: Literal["rloo"] = Field(description="The trainer's name in the registry of rlstride.training.")
    beta: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the base, in the reward.")


@_algorithms.made_by("rlstride.training.dr_grpo:build")
class DrGRPO(PolicyGradient):
    """GRPO without its length and standard deviation biases (arXiv 2503.20783)."""

    trainer: Literal["dr_grpo"] = Field(description="The trainer's name in the registry of rlstride.training.")


@_algorithms.made_by("rlstride.training.dapo:build")
class DAPO(PolicyGradient):
    """Higher upper clip, token-level loss, dynamic sampling, overlong punishment (arXiv 2503.14476)."""

    trainer: Literal["dapo"] = Field(description="The trainer's name in the registry of rlstride.training.")
    epsilon_high: float = Field(default=0.28, gt=0, description="Upper clip range of the importance ratio.")
    max_rounds: int = Field(
        default=3, ge=1, description="Draws of prompts in a step, at most, to fill it with informative groups."
    )
    overlong_buffer: int = Field(
        default=8,
        ge=1,
        description="Tokens beyond the task's longest solution, over which the punishment grows from 0 to 1.",
    )

    @property
    def draws(self) -> float:
        """Of prompts, until the batch is full: at most."""
        return float(self.max_rounds)


@_algorithms.made_by("rlstride.training.gspo:build")
class GSPO(PolicyGradient):
    """One importance ratio, and its clip, for a whole completion (arXiv 2507.18071)."""

    trainer: Literal["gspo"] = Field(description="The trainer's name in the registry of rlstride.training.")
    epsilon: float = Field(default=3e-4, gt=0, description="Lower clip range of a completion's importance ratio.")
    epsilon_high: float = Field(default=4e-4, gt=0, description="Upper clip range of a completion's importance ratio.")
    minibatches: int = Field(default=4, ge=1, description="Updates in one pass over a batch of rollouts.")


@_algorithms.made_by("rlstride.training.sft:build")
class SFT(Optimisation):
    """Supervised fine-tuning on right solutions, as many in a step as RL has rollouts."""

    trainer: Literal["sft"] = Field(description="The trainer's name in the registry of rlstride.training.")


@_algorithms.made_by("rlstride.training.distillation:build")
class Distillation(Optimisation):
    """Distillation of a teacher's next-token distribution (arXiv 2306.13649), as many completions as RL has."""

    trainer: Literal["distillation"] = Field(description="The trainer's name in the registry of rlstride.training.")
    teacher: str = Field(
        description="An algorithm of the same study, whose last step of the same model and seed teaches; or the path "
        "of a Hugging Face folder with the same vocabulary."
    )
    completions_from: Literal["teacher", "student"] = Field(
        default="teacher", description="Who writes the completions: the teacher (off-policy) or the student."
    )
    beta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="The divergence: 0 is KL(teacher, student), 1 is KL(student, teacher), in between Jensen-Shannon.",
    )


@_algorithms.made_by("rlstride.training.ppo:build")
class PPO(PolicyGradient):
    """Generalised advantage estimates from a value model (arXiv 1707.06347, 1506.02438)."""

    trainer: Literal["ppo"] = Field(description="The trainer's name in the registry of rlstride.training.")
    value_learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's rate for the value model.")
    value_epsilon: float = Field(
        default=0.2, gt=0, description="A value may move this far from the one at sampling before its loss is clipped."
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="Discount of a reward for each token that it is away.")
    gae_lambda: float = Field(
        default=0.95, ge=0, le=1, description="Bias against variance of the advantages: 1 trusts returns, 0 the values."
    )
    beta: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the base, in tokens' rewards.")

    models_in_memory: ClassVar[int] = 2  # a value model as large as the policy

    @property
    def draws(self) -> float:
        """With the value model's reading and updates; measured in docs/benchmarks.md."""
        return 1.8


@_algorithms.made_by("rlstride.training.reinforce_pp:build")
class ReinforcePP(PolicyGradient):
    """REINFORCE++: returns normalised over the whole batch, without a baseline (arXiv 2501.03262)."""

    trainer: Literal["reinforce_pp"] = Field(description="The trainer's name in the registry of rlstride.training.")
    beta: float = Field(default=0.0, ge=0, description="Weight of the KL divergence to the base, in tokens' rewards.")


ALGORITHMS = _algorithms.by_name()
if TYPE_CHECKING:
    Algorithm = Optimisation
else:
    Algorithm = union_of(ALGORITHMS)
