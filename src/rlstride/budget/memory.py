"""What a training holds in memory where the model runs: a GPU's for each process, or the host's.

Static parts are exact for the shapes that config.json tells. Activations are what autograd keeps of a decoder layer
with a gated MLP and fused attention: counted with saved-tensor hooks on llama and qwen3, in bytes for each token and
layer. TRL 1.16 makes logits in tiles: they are left out. Allocators and padding waste some more: leave a tenth free.
"""

from dataclasses import dataclass, fields

from rlstride.budget.sizes import Shape, adapter_parameters, model_parameters, shape_of
from rlstride.config.algorithms import Distillation
from rlstride.config.training import Training
from rlstride.study.study import Study

# Bytes that autograd keeps of a layer for each token: of hidden size, MLP's width, all query heads, all key heads.
_KEPT = {
    ("fp32", "fp32"): (26.0, 16.0, 24.5, 8.3),
    ("bf16", "fp32"): (27.0, 8.0, 14.5, 6.3),
    ("bf16", "bf16"): (17.0, 8.0, 14.5, 6.3),
}
_BYTES = {"fp32": 4, "bf16": 2}
_HALF_COPY = 2  # bytes: of autocast's bf16 copy of a weight


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that one process of a training holds.

    Attributes:
        weights: the policy's, and autocast's copies of them.
        gradients: of what is trained.
        moments: Adam's two averages of what is trained.
        others: a frozen reference, a teacher, or PPO's value model with its own gradients and averages.
        activations: of one forward and backward pass over a micro-batch.
        rollouts: keys and values of all rollouts of a step, drawn together by transformers; vLLM has its own share.
    """

    weights: float
    gradients: float
    moments: float
    others: float
    activations: float
    rollouts: float

    @property
    def total(self) -> float:
        """The most at once: rollouts are drawn while there are neither gradients nor activations."""
        static = self.weights + self.moments + self.others
        return static + max(self.gradients + self.activations, self.rollouts)

    def parts(self) -> dict[str, float]:
        """Every part that is there, by its name."""
        found = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: size for name, size in found.items() if size}


def training_memory(study: Study, model: str, algorithm: str) -> TrainingMemory | None:
    """Of a cell; None where neither a configuration nor the model's name tells its size.

    Args:
        study: names lengths, batch, precision and adapter.
        model: one of its models.
        algorithm: one of its algorithms or controls.
    """
    made_from, training = study.models[model], study.spec.training
    size, shape = model_parameters(made_from), shape_of(made_from)
    if size is None or shape is None:
        return None
    settings = {**study.algorithms, **study.controls}[algorithm]
    trained = size if training.adapter is None else adapter_parameters(training.adapter, made_from) or 0.01 * size
    held = _BYTES[training.masters]
    copies = _HALF_COPY * size if training.precision == "bf16" else 0  # of fp32 weights
    has_reference = bool(getattr(settings, "beta", 0)) and training.adapter is None
    others = held * size if has_reference and not isinstance(settings, Distillation) else 0
    others += 4 * size if isinstance(settings, Distillation) else 0
    others += (settings.models_in_memory - 1) * (4 * 4 * size + copies)
    tokens, sequences = tokens_per_sequence(study), sequences_at_once(study, model, algorithm)
    drawn = study.spec.training.problems_per_step * training.completions_per_problem / _processes(study, model)
    cached = 2 * shape.keys * shape.layers * _BYTES[training.precision]
    kept = sequences * tokens_to_read(study) * _activations_per_token(shape, training)
    return TrainingMemory(
        weights=held * size + (copies if training.masters == "fp32" else 0),
        gradients=held * trained,
        moments=2 * held * trained,
        others=others,
        activations=settings.models_in_memory * kept,
        rollouts=0 if training.generation != "hf" else drawn * tokens * cached,
    )


def sequences_at_once(study: Study, model: str, algorithm: str) -> int:
    """Of one forward and backward pass, at most."""
    training = study.spec.training
    settings = {**study.algorithms, **study.controls}[algorithm]
    share = training.problems_per_step * training.completions_per_problem // _processes(study, model)
    share = max(1, share // getattr(settings, "minibatches", 1))
    return min(training.micro_batch or share, share)


def tokens_per_sequence(study: Study) -> int:
    """Tokens of the longest prompt with its completion in training: the study's, else the task's."""
    training, task = study.spec.training, study.task
    prompt = training.max_prompt_tokens or getattr(task, "max_prompt_tokens", None)
    completion = training.max_completion_tokens or getattr(task, "max_completion_tokens", None)
    if prompt is not None and completion is not None:
        return int(prompt + completion)
    return max(task.max_tokens, prompt or 0, completion or 0)


def tokens_to_read(study: Study) -> float:
    """Tokens that a pass reads for each sequence: all of them, or where prompts are shared, its part of its prompt."""
    tokens, training = tokens_per_sequence(study), study.spec.training
    if not training.share_prompts:
        return tokens
    completion = training.max_completion_tokens or getattr(study.task, "max_completion_tokens", None) or 0
    return (tokens - completion) / training.completions_per_problem + completion + 1  # a prompt's last token is its own


def _activations_per_token(shape: Shape, training: Training) -> float:
    """Bytes of all layers; with checkpointing, of each layer's input, and of one layer in full."""
    hidden, wide, queries, keys = _KEPT[training.precision, training.masters]
    layer = hidden * shape.hidden + wide * shape.wide + queries * shape.queries + keys * shape.keys
    if training.activation_checkpointing:
        return shape.layers * shape.hidden * _BYTES[training.masters] + layer
    return shape.layers * layer


def _processes(study: Study, model: str) -> int:
    return study.spec.processes.get(model, 1)
