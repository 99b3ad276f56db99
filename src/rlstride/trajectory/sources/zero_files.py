"""Which files make up a DeepSpeed ZeRO checkpoint, and what they hold before a tensor is read."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlstride.errors import RequestError
from rlstride.trajectory.sources.hf import INDEX, SINGLE
from rlstride.trajectory.sources.safe_load import load_deepspeed

# The script unpickles without restriction.
WAY_OUT = (
    "if you trust who made it, run the zero_to_fp32.py that DeepSpeed left above this folder "
    "(python zero_to_fp32.py . OUT --safe_serialization) and give OUT"
)
_WHOLE = "mp_rank_00_model_states.pt"
_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_model_states\.pt")
_MASTERS = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")
_TENSOR_PARALLEL = re.compile(r".*mp_rank_(?!00_)\d+_(?:model|optim)_states\.pt")
# Stages of a pipeline, and experts that have ranks of their own.
_OTHER_PIECES = re.compile(r"layer_.*_states\.pt|expp_rank_.*_states\.pt")


@contextmanager
def naming_the_copy(path: Path) -> Iterator[None]:
    """Adds to an error that the trainer left the whole model beside this folder, where it did."""
    try:
        yield
    except RequestError as error:
        whole = next((name for name in (SINGLE, INDEX) if (path.parent / name).is_file()), None)
        if whole is None:
            raise
        way = f"move {path.name} away, and {whole} beside it is read, in the dtype of training"
        raise RequestError(f"{error} ({way})") from error


class ZeROFiles:
    """The files of a checkpoint, by name.

    Attributes:
        path: their folder.
        split: whether the weights themselves are spread over the ranks, as by ZeRO 3.
        model: the model's file, or each rank's by rank where they are split.
        masters: the optimiser's file of each rank; none where they are not there.

    Raises:
        RequestError: the model is split in another way too, its file is missing, or two runs lie side by side.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names = sorted(file.name for file in path.iterdir())
        for name in names:
            if _TENSOR_PARALLEL.fullmatch(name):
                raise self.error(name, "tensor-parallel: each matrix is cut into mp_ranks; only one mp_rank is read")
            if _OTHER_PIECES.fullmatch(name):
                raise self.error(name, "a piece of a pipeline- or expert-parallel model, which is not read")
        split = self._by_rank(names, _MODEL)
        if split and _WHOLE in names:
            raise self.error(_WHOLE, "it lies beside ZeRO 3's files, which need none: two runs side by side?")
        self.split = bool(split)
        self.model = split or ({0: _WHOLE} if _WHOLE in names else {})
        self.masters = self._by_rank(names, _MASTERS)
        if 0 not in self.model:
            name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if split else _WHOLE
            raise self.error(name, "missing; it names the weights")

    def load(self, name: str) -> Mapping[str, Any]:
        """What a file holds, its tensors mapped.

        Raises:
            RequestError: the file is damaged, or holds something else than DeepSpeed puts there.
        """
        found = load_deepspeed(self.path / name, WAY_OUT)
        if not isinstance(found, Mapping):
            raise self.error(name, f"expected what DeepSpeed saves, found a {type(found).__name__}")
        return found

    def check_ranks(self, ranks: int) -> None:
        """Whether there are the files of so many ranks, no fewer and no more.

        Raises:
            RequestError: there are not.
        """
        for found in [self.masters, *([self.model] if self.split else [])]:
            absent = next((rank for rank in range(ranks) if rank not in found), None)
            if absent is not None:
                name = re.sub(r"pp_rank_\d+", f"pp_rank_{absent}", next(iter(found.values())))
                raise self.error(name, f"missing; {len(found)} of {ranks} ranks' files are here")
            if len(found) > ranks:
                name = found[max(found)]
                raise self.error(name, f"a file of {len(found)} ranks, but the first one says that they were {ranks}")

    def error(self, name: str, what: str) -> RequestError:
        """What is wrong with a file, as a sentence."""
        return RequestError(f"{self.path / name}: {what}")

    def _by_rank(self, names: list[str], pattern: re.Pattern[str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for name in names:
            if match := pattern.fullmatch(name):
                if int(match[1]) in found:
                    raise self.error(name, f"beside {found[int(match[1])]}: two runs side by side")
                found[int(match[1])] = name
        return dict(sorted(found.items()))
