"""Scores models that exist in memory alone, on the problems that methods may look at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlstride.evaluation.benchmark import StudyBenchmark, sampling_seed
from rlstride.evaluation.contrast import Contrast
from rlstride.evaluation.lm import Bench, loaded_model
from rlstride.evaluation.models import parse_models
from rlstride.evaluation.score_tables import Measurement
from rlstride.study.study import Study
from rlstride.trajectory.filling import fill
from rlstride.trajectory.store import Trajectory


class ValidationScorer:
    """Accuracy on a study's validation problems at its headline decoding, in float32; nothing is written.

    Every model is scored with the same random numbers, so that the luck of the draw is common to all of them.

    Args:
        study: names task, problems and decoding.
        trajectory: whose base has the models' architecture and tokenizer.
        device: cpu or cuda.

    Raises:
        RequestError: transformers cannot load the base.
    """

    def __init__(self, study: Study, trajectory: Trajectory, device: str = "cpu") -> None:
        evaluation, manifest = study.spec.evaluation, trajectory.manifest
        (base,) = parse_models([str(trajectory.folder)], steps=[0])
        self._benchmark = StudyBenchmark(study, "validation")
        self._lm = Bench(device, torch.float32).load(base)
        self._load_base = partial(loaded_model, base, device, torch.float32)
        self._source, self._layout = trajectory.source(0), trajectory.base.layout
        self._decoding = evaluation.decodings[evaluation.headline]
        self._model = manifest.base.name
        self._seed = sampling_seed(manifest.base.name, manifest.seed, "candidate", evaluation.headline, "validation")

    @cached_property
    def _base(self) -> PreTrainedModel:
        return self._load_base()

    def __call__(self, tensors: Mapping[str, Tensor], logit_factor: float = 1.0) -> Measurement:
        """The score of a model.

        Args:
            tensors: every tensor of the base's layout by name, fused matrices apart.
            logit_factor: c of logits l_0 + c (l - l_0), l_0 being the base's; 1 leaves them as they are.
        """
        self._lm.contrast = None if logit_factor == 1 else Contrast(self._base, logit_factor)
        fill(self._lm.model, _InMemory(tensors, self._source.own_name), self._layout)
        return self._benchmark.score(self._lm, self._model, self._decoding, self._seed)


@dataclass(frozen=True)
class _InMemory:
    """Tensors by name; the output head of tied embeddings by its own name too."""

    tensors: Mapping[str, Tensor]
    own_name: Callable[[str], str]

    def names(self) -> list[str]:
        return sorted(self.tensors)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensor(name).dtype

    def tensor(self, name: str) -> Tensor:
        return self.tensors[self.own_name(name)]
