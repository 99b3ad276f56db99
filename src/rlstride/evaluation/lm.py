"""lm-eval's Hugging Face model, loaded once, with other models' weights put into it in place."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlstride.errors import RequestError, first_line
from rlstride.evaluation.contrast import Contrast, ContrastProcessor
from rlstride.evaluation.models import Candidate
from rlstride.generation import asked_generation, settled_sampling
from rlstride.progress import quiet
from rlstride.trajectory.compare import widest_dtype
from rlstride.trajectory.layout import Layout, read_layout
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.sources.source import NamedTensors

_TINY_PARAMETERS = 10_000_000
_TINY_BATCH = 1024  # on one core a larger batch gains nothing for models this small
_GPU_BATCH = 64  # completions drawn at once, where lm-eval would look for the largest batch by trial
_DESCRIBES_NO_COMPUTATION = ("_name_or_path", "transformers_version")
_CONFIGURATION = ("config.json", "generation_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Completion:
    """A sampled completion as token ids.

    Attributes:
        prompt: what the model was given, without padding.
        tokens: what it wrote, up to and including the first end token.
    """

    prompt: list[int]
    tokens: list[int]


class CountingHFLM(HFLM):
    """HFLM that counts the tokens it generates, and leaves progress to its caller.

    Attributes:
        tokens: completion tokens generated so far, end-of-sequence tokens included, padding not.
        cut: prompts so far that were longer than the model takes: lm-eval leaves out their beginnings.
        contrast: what its logits are extrapolated from; None leaves them as they are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        batch_size: int | str = _TINY_BATCH if parameters < _TINY_PARAMETERS else "auto" if _on_gpu(model) else 8
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.tokens = self.cut = 0
        self.contrast: Contrast | None = None

    def use_batch_size(self, size: int | str) -> None:
        """Takes ``size`` sequences at once from now on; "auto" looks for the most that fit, once for each model."""
        self.batch_size_per_gpu, self.batch_schedule = size, 1
        self.batch_sizes: dict[int, int] = {}  # of an earlier search

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = super().tok_batch_encode(strings, padding_side, None, truncation)  # (B, P)
        if left_truncate_len:
            self.cut += int((mask.sum(dim=1) > left_truncate_len).sum())
            ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return ids, mask

    def _loglikelihood_tokens(self, requests: list[Any], *arguments: Any, **options: Any) -> list[tuple[float, bool]]:
        self.cut += sum(len(context) + len(rest) > self.max_length + 1 for _, context, rest in requests)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, *arguments, **options)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        completions: list[str] = super().generate_until(requests, disable_tqdm=True)
        return completions

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def sample(self, prompts: Sequence[str], temperature: float, max_tokens: int) -> list[Completion]:
        """One completion for each prompt, drawn as :meth:`generate_until` does, from the whole distribution.

        Args:
            prompts: at least one.
            temperature: above 0.
            max_tokens: of a completion, the end token included.
        """
        at_once = self.batch_size if isinstance(self.batch_size, int) else _GPU_BATCH
        found = []
        for start in range(0, len(prompts), at_once):
            batch = list(prompts[start : start + at_once])
            ids, mask = self.tok_batch_encode(batch, left_truncate_len=self.max_length - max_tokens)  # (B, P)
            context = ids.to(self.device)
            drawn = self._model_generate(
                context,
                attention_mask=mask.to(self.device),
                max_length=context.shape[1] + max_tokens,
                stop=[self.tok_decode(self.eot_token_id, skip_special_tokens=False)],
                do_sample=True,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
            )[:, context.shape[1] :].cpu()  # (B, T)
            over = already_over(drawn, self._end_tokens())
            found += [
                Completion(prompt[kept.bool()].tolist(), tokens[~past].tolist())
                for prompt, kept, tokens, past in zip(ids, mask, drawn, over, strict=True)
            ]
        return found

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        options = settled_sampling(options)
        if self.contrast is not None:
            options["logits_processor"] = [ContrastProcessor(self.contrast, options["attention_mask"])]
        with asked_generation(self.model):
            ids: torch.Tensor = super()._model_generate(context, *arguments, **options)  # (B, prompt + completion)
        self.tokens += count_tokens(ids[:, context.shape[1] :], self._end_tokens())
        return ids

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, *arguments, **options)  # (B, T, vocabulary)
        return logits if self.contrast is None else self.contrast.of_sequences(inps, logits)

    def _end_tokens(self) -> list[int]:
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [] if configured is None else [configured]
        return [*ends, self.eot_token_id]


def count_tokens(completions: torch.Tensor, end_tokens: list[int]) -> int:
    """Tokens in a batch of completions (B, T): each up to its first end token, which counts, or to T."""
    return int((~already_over(completions, end_tokens)).sum())


def already_over(completions: torch.Tensor, end_tokens: list[int]) -> torch.Tensor:
    """Where a batch of completions (B, T) has had its first end token already; (B, T), False at that token itself."""
    ends = torch.isin(completions, torch.tensor(end_tokens, device=completions.device)).int()  # (B, T)
    return ends.cumsum(dim=1) - ends > 0


class Bench:
    """Holds one model at a time. Models that compute alike share it: only the weights are exchanged.

    Args:
        device: cpu or cuda.
        dtype: what every model computes in; by default what its own weights are stored in.
    """

    def __init__(self, device: str, dtype: torch.dtype | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._lm: CountingHFLM | None = None
        self._fingerprint: str | None = None
        self._seated: Candidate | None = None
        self._base: tuple[str, PreTrainedModel] | None = None

    def seat(self, candidate: Candidate) -> CountingHFLM:
        """lm-eval's model with the candidate's weights in it.

        Raises:
            RequestError: transformers cannot load the model or its tokenizer, or a step's files are damaged.
        """
        before, self._seated = self._seated, None
        if self._lm is not None and before is candidate:
            self._seated = candidate
            return self._lm
        if before is not None and before.edits is not None and before.edits is not candidate.edits:
            before.edits.forget()  # the decompositions of a large model are many gigabytes
        step = candidate.tensors()
        dtype = self._dtype or ("auto" if step is None else widest_dtype(step))  # so that nothing is rounded
        fingerprint = _fingerprint(candidate)
        alike = fingerprint is not None and fingerprint == self._fingerprint
        if self._lm is None or not alike or not _takes(self._lm.model, candidate, dtype):
            self._lm = self._fingerprint = None  # frees the old model before the new one takes its memory
            self._lm, self._fingerprint = _load(candidate, self._device, dtype), fingerprint
        if step is not None:
            put_step(self._lm.model, step, read_layout(Path(candidate.source)))
        self._lm.contrast = self._contrast(candidate, self._lm.model)
        self._seated = candidate
        return self._lm

    def _contrast(self, candidate: Candidate, model: PreTrainedModel) -> Contrast | None:
        if candidate.logits is None:
            self._base = None  # a second model in memory only while it is needed
            return None
        base, factor = candidate.logits
        if self._base is None or self._base[0] != base.source or self._base[1].dtype != model.dtype:
            self._base = base.source, load_model(base.source, self._device, model.dtype)
        return Contrast(self._base[1], factor)


def _takes(model: PreTrainedModel, candidate: Candidate, dtype: torch.dtype | str) -> bool:
    """Whether the model can take a candidate that computes alike; one with a folder of its own is in it then."""
    if candidate.trajectory is not None:
        return bool(model.dtype == dtype)
    return put_weights(model, HFFolder(candidate.source))


@torch.no_grad()
def put_weights(model: PreTrainedModel, source: HFFolder) -> bool:
    """Copies a checkpoint's tensors into a model of the same architecture.

    Returns:
        False if names, shapes or dtypes differ: the model then has to be loaded by itself.
    """
    places = model.state_dict()
    names = source.names()
    if any(name not in places or source.shape(name) != tuple(places[name].shape) for name in names):
        return False
    filled = {places[name].data_ptr() for name in names}
    if any(place.data_ptr() not in filled for place in places.values()):  # tied tensors share one place
        return False
    for name in names:
        tensor = source.tensor(name)
        if tensor.dtype != places[name].dtype:
            return False
        places[name].copy_(tensor)
    return True


@torch.no_grad()
def put_step(model: PreTrainedModel, step: NamedTensors, layout: Layout) -> None:
    """Copies the tensors of a kept step, or of an edited one, into the model of its base, whichever it fuses.

    Args:
        model: the base's architecture.
        step: the tensors, fused matrices apart.
        layout: the base's, which says what the model fuses.

    Raises:
        RequestError: the step lacks one of the model's tensors, or its files are damaged.
    """
    for name, place in model.state_dict().items():
        parts = layout.parts(name, tuple(place.shape)) if layout.may_split(name) else []
        if not parts:
            place.copy_(step.tensor(name))
        for part in parts:
            whole = place if part.expert is None else place[part.expert]
            whole[part.start : part.stop].copy_(step.tensor(part.name))


def quiet_lm_eval() -> AbstractContextManager[None]:
    """Without lm-eval's own running commentary: the caller knows the tasks and models that it passes."""
    return quiet("lm_eval")


def _load(candidate: Candidate, device: str, dtype: torch.dtype | str) -> CountingHFLM:
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: this machine has no CUDA device that torch can use; use cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(candidate.tokenizer)
        model = load_model(candidate.source, device, dtype)
    except (OSError, ValueError) as error:
        raise RequestError(f"{candidate.source}: transformers cannot load this model ({first_line(error)})") from error
    with quiet_lm_eval():  # it warns of every preloaded model
        return CountingHFLM(model, tokenizer)


def load_model(source: str, device: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal language model of a folder, or of a repository's name on the hub; errors are those of transformers."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device)
    return model


def _fingerprint(candidate: Candidate) -> str | None:
    """A digest of all but the weights: equal for models that only differ in them. None where files cannot tell."""
    if candidate.folder is None or not any(candidate.folder.glob("*.safetensors")):
        return None
    digest = hashlib.sha256()
    for name in _CONFIGURATION:
        digest.update(_configuration(candidate.folder / name))
    for name in _TOKENIZER:
        file = Path(candidate.tokenizer) / name
        digest.update(file.read_bytes() if file.is_file() else b"-")
    return digest.hexdigest()


def _configuration(file: Path) -> bytes:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return json.dumps(
        {key: value for key, value in content.items() if key not in _DESCRIBES_NO_COMPUTATION}, sort_keys=True
    ).encode()


def _on_gpu(model: PreTrainedModel) -> bool:
    return bool(model.device.type == "cuda")
