"""The models that a benchmark is asked to score: what the command line's words stand for."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from rlstride.atomic_files import sha256
from rlstride.config.variants import AblationVariant
from rlstride.edits import logits
from rlstride.edits.step_edits import StepEdits
from rlstride.errors import RequestError
from rlstride.trajectory.description import TOKENIZERS
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.hf import read_json
from rlstride.trajectory.sources.hub import HubAddress, fetch
from rlstride.trajectory.sources.source import NamedTensors
from rlstride.trajectory.store import Trajectory

UNKNOWN_STEP = -1
_NAMED = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<step>\d+))?=(?P<path>.+)$")
_DESCRIBES_NO_COMPUTATION = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
_CONFIGURATION = ("config.json", "generation_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class Candidate:
    """A model to score, and its place in the tables.

    Attributes:
        variant: such as base, full, rank_1 or checkpoint.
        step: RL steps behind it; -1 where nothing tells.
        source: the Hugging Face folder whose config.json says what it computes, and whose weights it has unless
            ``trajectory`` is given.
        tokenizer: the folder of its tokenizer.
        labels: model, algorithm and seed of the trajectory that it was found in, if it was.
        trajectory: where its weights are read from, if not from ``source``, which then is the base.
        kept: the kept step of it that they are, or are made of; 0 is the base.
        edits: what makes them of the trajectory's, if it is an edited step.
        logits: the base and the factor that its logits are extrapolated with, if they are (rlstride.edits.logits).
    """

    variant: str
    step: int
    source: str
    tokenizer: str
    labels: dict[str, str | int] = field(default_factory=dict, compare=False)
    trajectory: Trajectory | None = field(default=None, compare=False)
    kept: int = field(default=0, compare=False)
    edits: StepEdits | None = field(default=None, compare=False)
    logits: "tuple[Candidate, float] | None" = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """The folder that describes it."""
        return Path(self.source)

    def weights_digest(self) -> str:
        """A digest of all that decides its logits: the files of its weights, its config and its tokenizer.

        Raises:
            RequestError: a file that a trajectory lists is missing, or is no longer what it was.
        """
        if self.logits is not None:
            base, factor = self.logits
            return "/".join([replace(self, logits=None).weights_digest(), base.weights_digest(), str(factor)])
        return "/".join([self.description_digest(), self._weights()])

    def _weights(self) -> str:
        if self.trajectory is None:
            return " ".join(sha256(self.folder / file) for file in self._model.stored.files())
        if self.edits is None:
            return self.trajectory.digest(self.kept)
        return "/".join([self.edits.digest, self.variant, *self.edits.variants])  # they share one decomposition

    def description_digest(self) -> str:
        """A digest of all but the weights: models of which it is equal differ in these alone."""
        digest = hashlib.sha256()
        files = [self.folder / name for name in _CONFIGURATION]
        files += [Path(self.tokenizer) / name for name in (*_CONFIGURATION[1:], *_TOKENIZER)]
        for file in files:
            digest.update(_what_counts(file))
        return digest.hexdigest()

    def tensors(self) -> NamedTensors:
        """Its tensors under the model's own names, fused matrices apart.

        Raises:
            RequestError: they cannot be read here, contradict each other, or their files are damaged or changed.
        """
        if self.trajectory is not None:
            return self.edits.model(self.variant) if self.edits else self.trajectory.source(self.kept)
        if problems := self._model.problems():
            raise RequestError(problems[0])
        return self._model.source

    @cached_property
    def _model(self) -> ModelFolder:
        return ModelFolder(self.folder)


@dataclass(frozen=True)
class Edits:
    """The edited models of a trajectory: of the last of its steps that are asked for, and of those before it."""

    last: Sequence[AblationVariant]
    on_the_way: Sequence[AblationVariant]


def parse_models(
    texts: Sequence[str],
    *,
    steps: Sequence[int] | None = None,
    variants: Sequence[AblationVariant] | None = None,
    on_the_way: Sequence[AblationVariant] | None = None,
    hub: bool = False,
) -> list[Candidate]:
    """What ``[NAME[@STEP]=]PATH`` stand for: a model folder is one model, a trajectory its base and every kept step.

    A model folder's variant is NAME, else the folder's name; its step is STEP, else a kept step's own, else -1.

    Args:
        texts: the words of the command line.
        steps: those of a trajectory that are meant, 0 for its base; None is all, or with ``variants`` the last.
        variants: a trajectory then stands for these edits of its steps, made in memory, not for base and steps.
        on_the_way: those of the steps before the last of them; all if left out.
        hub: whether org/name may stand for a repository on the hub.

    Raises:
        RequestError: a path does not exist or is no model, or two models would share a row.
    """
    if variants is not None and not any((Path(text) / "manifest.json").is_file() for text in texts):
        raise RequestError("--variants: these are edits of a trajectory's steps, but no trajectory is named")
    edits = None if variants is None else Edits(variants, variants if on_the_way is None else on_the_way)
    candidates = [candidate for text in texts for candidate in _candidates(text, steps, edits, hub)]
    seen: set[tuple[str, int]] = set()
    for candidate in candidates:
        key = (candidate.variant, candidate.step)
        if key in seen:
            raise RequestError(
                f"two models are called {candidate.variant} at step {candidate.step}: name them apart (NAME@STEP=PATH)"
            )
        seen.add(key)
    return candidates


def _candidates(text: str, steps: Sequence[int] | None, edits: Edits | None, hub: bool) -> Iterable[Candidate]:
    named = None if Path(text).exists() else _NAMED.match(text)
    path = Path(named["path"] if named else text)
    if (path / "manifest.json").is_file():
        if named:
            raise RequestError(f"{text}: a trajectory takes no name, its rows are called base and checkpoint")
        trajectory = Trajectory(path)
        if edits is None:
            return _trajectory_candidates(trajectory, steps)
        return _edited_candidates(trajectory, steps or [trajectory.steps[-1]], edits)
    name = named["name"] if named else path.resolve().name
    if (path / logits.FILE).is_file():
        folder, step, factor = logits.read_logits(path)
        base, model = _trajectory_candidates(Trajectory(folder), [0, step])
        return [replace(model, variant=name, logits=(base, factor))]
    if (kept := _kept(path)) is not None:
        step = kept.step if _step(named) == UNKNOWN_STEP else _step(named)
        return [replace(kept, variant=name, step=step, labels={})]
    if not (path / "config.json").is_file():
        if hub and not path.exists() and _HUB_ID.match(str(path)):
            copy = str(fetch(HubAddress.parse(f"hf://{path}")))
            return [Candidate(name, _step(named), copy, copy)]
        raise RequestError(
            f"{path}: neither a model folder (no config.json) nor a trajectory (no manifest.json); an adapter, FSDP "
            "shards or a whole run are scored as a trajectory, which rlstride ingest makes of them"
        )
    return [Candidate(name, _step(named), str(path), str(_tokenizer_folder(path)))]


def _trajectory_candidates(trajectory: Trajectory, steps: Sequence[int] | None) -> list[Candidate]:
    base, tokenizer = str(trajectory.base_folder), str(trajectory.tokenizer_folder)
    labels = _labels(trajectory)
    wanted = (0, *trajectory.steps) if steps is None else steps
    for step in wanted:
        trajectory.checkpoint(step)  # refuses a step that was not kept
    return [
        Candidate("checkpoint" if step else "base", step, base, tokenizer, labels, trajectory, step) for step in wanted
    ]


def _kept(folder: Path) -> Candidate | None:
    """The kept step that a folder is, such as an adapter or whole weights; None for any other folder."""
    trajectory = _trajectory_around(folder)
    kept = trajectory.steps if trajectory else []
    step = next((step for step in kept if trajectory and trajectory.record(step).folder == folder.name), None)
    return None if trajectory is None or step is None else _trajectory_candidates(trajectory, [step])[0]


def _edited_candidates(trajectory: Trajectory, steps: Sequence[int], asked: Edits) -> list[Candidate]:
    base, tokenizer, candidates = str(trajectory.base_folder), str(trajectory.tokenizer_folder), []
    for step in steps:
        edits = StepEdits(trajectory, step, asked.last if step == max(steps) else asked.on_the_way)
        labels = _labels(trajectory)
        candidates += [
            Candidate(name, step, base, tokenizer, labels, trajectory, step, edits) for name in edits.variants
        ]
    return candidates


def _labels(trajectory: Trajectory) -> dict[str, str | int]:
    manifest = trajectory.manifest
    return {"model": manifest.base.name, "algorithm": manifest.algorithm, "seed": manifest.seed}


def _step(named: re.Match[str] | None) -> int:
    return int(named["step"]) if named and named["step"] else UNKNOWN_STEP


def _tokenizer_folder(folder: Path) -> Path:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise RequestError(f"{folder}: there is no tokenizer here (tokenizer.json); copy the base's into this folder")
    return folder


def _what_counts(file: Path) -> bytes:
    """What of a file decides what a model computes or reads; of a config, all but its own history."""
    if not file.is_file():
        return b"-"
    if file.name not in _CONFIGURATION:
        return file.read_bytes()
    content = {key: value for key, value in read_json(file).items() if key not in _DESCRIBES_NO_COMPUTATION}
    return json.dumps(content, sort_keys=True).encode()


def _trajectory_around(folder: Path) -> Trajectory | None:
    return Trajectory(folder.parent) if (folder.parent / "manifest.json").is_file() else None
