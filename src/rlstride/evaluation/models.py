"""The models that a benchmark is asked to score: what the command line's words stand for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlstride.errors import RequestError
from rlstride.study.variants import AblationVariant
from rlstride.surgery import logits
from rlstride.surgery.ablate import StepEdits
from rlstride.trajectory.files import sha256
from rlstride.trajectory.sources.recognise import Kind
from rlstride.trajectory.sources.source import NamedTensors
from rlstride.trajectory.store import Trajectory

UNKNOWN_STEP = -1
_NAMED = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<step>\d+))?=(?P<path>.+)$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class Candidate:
    """A model to score, and its place in the tables.

    Attributes:
        variant: such as base, full, rank_1 or checkpoint.
        step: RL steps behind it; -1 where nothing tells.
        source: its Hugging Face folder, or a repository's name on the hub.
        tokenizer: where its tokenizer lies.
        labels: model, algorithm and seed of the trajectory that it was found in, if it was.
        trajectory: where its weights are read from, if they do not lie in ``source``, which then is the base.
        edits: what makes them of the trajectory's, if it is an edited step.
        logits: the base and the factor that its logits are extrapolated with, if they are (rlstride.surgery.logits).
    """

    variant: str
    step: int
    source: str
    tokenizer: str
    labels: dict[str, str | int] = field(default_factory=dict, compare=False)
    trajectory: Trajectory | None = field(default=None, compare=False)
    edits: StepEdits | None = field(default=None, compare=False)
    logits: "tuple[Candidate, float] | None" = field(default=None, compare=False)

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a model on the hub."""
        return Path(self.source) if Path(self.source).is_dir() else None

    def weights_digest(self) -> str | None:
        """A digest of the weight files; None for a model on the hub.

        Raises:
            RequestError: a file that a trajectory lists is missing.
        """
        if self.folder is None:
            return None
        if self.logits is not None:
            base, factor = self.logits
            return "/".join([str(replace(self, logits=None).weights_digest()), str(base.weights_digest()), str(factor)])
        if self.trajectory is None:
            return "".join(sha256(file) for file in sorted(self.folder.glob("*.safetensors"))) or None
        if self.edits is None:
            return self.trajectory.digest(self.step)
        return "/".join([self.edits.digest, self.variant, *self.edits.variants])  # they share one decomposition

    def tensors(self) -> NamedTensors | None:
        """Its tensors where they are read from a trajectory; None where ``source`` is the model itself.

        Raises:
            RequestError: the step cannot be read here, or its files are damaged.
        """
        if self.trajectory is None:
            return None
        return self.edits.model(self.variant) if self.edits else self.trajectory.source(self.step)


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
    if (kept := _kept_elsewhere(path)) is not None:
        return [Candidate(name, _step(named, path), kept.source, kept.tokenizer, trajectory=kept.trajectory)]
    if not (path / "config.json").is_file():
        if hub and not path.exists() and _HUB_ID.match(str(path)):
            return [Candidate(name, _step(named, path), str(path), str(path))]
        raise RequestError(
            f"{path}: neither a model folder (no config.json) nor a trajectory (no manifest.json); an adapter, FSDP "
            "shards or a whole run are scored as a trajectory, which rlstride ingest makes of them"
        )
    return [Candidate(name, _step(named, path), str(path), str(_tokenizer_folder(path)))]


def _trajectory_candidates(trajectory: Trajectory, steps: Sequence[int] | None) -> list[Candidate]:
    base, labels, candidates = trajectory.base_folder, _labels(trajectory), []
    for step in (0, *trajectory.steps) if steps is None else steps:
        checkpoint = trajectory.checkpoint(step)
        whole = checkpoint.kind is Kind.HF and (checkpoint.path / "config.json").is_file()
        source = checkpoint.path if whole else base
        variant, elsewhere = "checkpoint" if step else "base", None if whole else trajectory
        candidates.append(Candidate(variant, step, str(source), str(base), labels, elsewhere))
    return candidates


def _kept_elsewhere(folder: Path) -> Candidate | None:
    """The kept step that a folder is, where it is no model by itself, such as an adapter; None for any other folder."""
    trajectory = _trajectory_around(folder)
    kept = trajectory.steps if trajectory and not (folder / "config.json").is_file() else []
    step = next((step for step in kept if trajectory and trajectory.record(step).folder == folder.name), None)
    return None if trajectory is None or step is None else next(iter(_trajectory_candidates(trajectory, [step])))


def _edited_candidates(trajectory: Trajectory, steps: Sequence[int], asked: Edits) -> list[Candidate]:
    base, candidates = str(trajectory.base_folder), []
    for step in steps:
        edits = StepEdits(trajectory, step, asked.last if step == max(steps) else asked.on_the_way)
        labels = _labels(trajectory)
        candidates += [Candidate(name, edits.step, base, base, labels, trajectory, edits) for name in edits.variants]
    return candidates


def _labels(trajectory: Trajectory) -> dict[str, str | int]:
    manifest = trajectory.manifest
    return {"model": manifest.base.name, "algorithm": manifest.algorithm, "seed": manifest.seed}


def _step(named: re.Match[str] | None, folder: Path) -> int:
    if named and named["step"]:
        return int(named["step"])
    trajectory = _trajectory_around(folder)
    kept = trajectory.steps if trajectory else []
    return next((step for step in kept if trajectory and trajectory.record(step).folder == folder.name), UNKNOWN_STEP)


def _tokenizer_folder(folder: Path) -> Path:
    """The folder itself, or for a kept step, which holds weights alone, its trajectory's base."""
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return folder
    trajectory = _trajectory_around(folder)
    if trajectory is None:
        raise RequestError(f"{folder}: there is no tokenizer here (tokenizer.json); copy the base's into this folder")
    return trajectory.base_folder


def _trajectory_around(folder: Path) -> Trajectory | None:
    return Trajectory(folder.parent) if (folder.parent / "manifest.json").is_file() else None
