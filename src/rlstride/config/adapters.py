"""Adapters that a study may train in place of full weights: the key ``training.adapter``, one class for each kind.

Every kind covers the 2-D weights inside the decoder layers; all other weights stay the base's.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rlstride.config.kinds import Kinds, union_of
from rlstride.config.section import Share, Strict

_adapters = Kinds("rlstride.adapters")


class AdapterSection(Strict):
    """What every kind of adapter has."""

    if TYPE_CHECKING:
        kind: str

    @abstractmethod
    def parameters(self, rows: int, cols: int) -> int:
        """Trained parameters of one matrix's update."""


class LowRank(AdapterSection):
    """What the kinds have whose update is a product of two thin matrices."""

    rank: int = Field(default=8, ge=1, description="Rank of each matrix's update; NExt's is 64 (arXiv 2604.11446).")
    alpha: float = Field(default=4, gt=0, description="The update is alpha / rank times the factors' product.")

    def parameters(self, rows: int, cols: int) -> int:
        """Of both factors; PRILoRA's ranks have their mean here."""
        return self.rank * (rows + cols)


@_adapters.made_by("rlstride.training.adapters:lora")
class LoRA(LowRank):
    """W0 + (alpha / rank) B A in every matrix (arXiv 2106.09685)."""

    kind: Literal["lora"] = Field(description="The kind of adapter: PEFT's LoRA.")


@_adapters.made_by("rlstride.training.adapters:prilora")
class PRILoRA(LowRank):
    """LoRA whose rank rises linearly with depth, from half of ``rank`` to one and a half (arXiv 2401.11316)."""

    kind: Literal["prilora"] = Field(description="The kind of adapter: PEFT's LoRA with a rank for each layer.")


@_adapters.made_by("rlstride.training.adapters:adalora")
class AdaLoRA(LowRank):
    """W0 + (alpha / initial rank) P E Q; the least important triplets are masked on the way (arXiv 2303.10512)."""

    kind: Literal["adalora"] = Field(description="The kind of adapter: PEFT's AdaLoRA; rank is the mean at the end.")
    initial_rank: int | None = Field(
        default=None, ge=2, description="Rank of each matrix at the start; null is one and a half of rank, rounded up."
    )
    warmup: Share = Field(default=0.1, description="Share of the updates before ranks start to shrink.")
    final: Share = Field(default=0.2, description="Share of the updates at the end, in which ranks stay as they are.")
    orthogonality: float = Field(
        default=0.5, ge=0, description="Weight of |P^T P - I|F + |Q Q^T - I|F, the mean over matrices, in the loss."
    )

    @property
    def first_rank(self) -> int:
        """The rank of each matrix at the start."""
        return -(-3 * self.rank // 2) if self.initial_rank is None else self.initial_rank

    def parameters(self, rows: int, cols: int) -> int:
        """It is kept at its first rank, masked triplets and all."""
        return self.first_rank * (rows + cols + 1)

    @model_validator(mode="after")
    def _ranks_shrink(self) -> "AdaLoRA":
        if self.first_rank <= self.rank:
            raise ValueError(f"initial_rank {self.first_rank} leaves nothing to shrink to rank {self.rank}")
        if self.warmup + self.final >= 1:
            raise ValueError("warmup and final leave no update in which ranks could shrink")
        return self


@_adapters.made_by("rlstride.training.adapters:c3a")
class C3A(AdapterSection):
    """W0 + a block-circulant matrix, one kernel of ``block_size`` numbers for each block (arXiv 2407.19342)."""

    kind: Literal["c3a"] = Field(description="The kind of adapter: PEFT's C3A.")
    block_size: int = Field(default=16, ge=1, description="Side of a block; it divides both sides of every matrix.")

    def parameters(self, rows: int, cols: int) -> int:
        """A kernel for each block."""
        return rows * cols // self.block_size


ADAPTERS = _adapters.by_name()
if TYPE_CHECKING:
    Adapter = AdapterSection
else:
    Adapter = union_of(ADAPTERS)
