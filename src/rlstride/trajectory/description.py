"""What a checkpoint says of itself beside its weights (config, tokenizer, adapter), compared with its base."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlstride.errors import RequestError, first_line
from rlstride.trajectory.architecture import CONFIG, model_config
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.sources.formats import ADAPTER, HF
from rlstride.trajectory.sources.hf import read_json
from rlstride.trajectory.sources.lora import CONFIG as ADAPTER_CONFIG
from rlstride.trajectory.sources.quantised import refuse_quantised_config
from rlstride.trajectory.sources.recognise import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
TOKENIZER_FILES = (*TOKENIZERS, "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja")
_GENERATION = "generation_config.json"
# Of a config: what changes neither a logit of the model nor what its tokens mean.
_SILENT = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "auto_map"),
    *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id", "num_labels", "problem_type"),
    *(
        "tokenizer_class",
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "hidden_dropout",
        "embd_pdrop",
    ),
    *(
        "attn_pdrop",
        "resid_pdrop",
        "classifier_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "aux_loss_alpha",
    ),
    *("router_jitter_noise", "pretraining_tp", "is_encoder_decoder", "chunk_size_feed_forward", "quantization_config"),
    *(
        "_attn_implementation",
        "_attn_implementation_internal",
        "gradient_checkpointing",
        "model_type",
        "max_window_layers",
    ),
}
# What is told: it decides where completions end or how long they may be, not what the weights compute.
_TOLD = {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "max_position_embeddings"}


@dataclass(frozen=True)
class Description:
    """What is to be known of a checkpoint beside its weights.

    Attributes:
        remarks: sentences to tell.
        tokenizer: the folder of its own tokenizer; None where it has none, or the base's.
        tokenizer_digest: of what that tokenizer is.
    """

    remarks: list[str]
    tokenizer: Path | None = None
    tokenizer_digest: str = ""


def describe_step(checkpoint: Checkpoint, base: ModelFolder) -> Description:
    """Compares what a checkpoint says of itself with its base.

    Raises:
        RequestError: the two compute different things with the same weights, or one of them says that it is quantised.
    """
    remarks = []
    if checkpoint.format is ADAPTER:
        remarks += _adapter_base(checkpoint.path, base)
    else:
        folder = description_folder(checkpoint.path)
        if folder is not None and (base.path / CONFIG).is_file():
            refuse_quantised_config(read_json(folder / CONFIG), folder / CONFIG)
            remarks += _config_remarks(folder, base.path) + _ending_remarks(folder, base.path)
        if checkpoint.format is HF and (checkpoint.path / ADAPTER_CONFIG).is_file():
            remarks.append(f"{checkpoint.path}: {ADAPTER_CONFIG} lies beside whole weights, which are what is read")
    own = tokenizer_folder(checkpoint.path)
    digest = "" if own is None else _digest_where_other(own, base.path)
    return Description(remarks, own if digest else None, digest)


def description_folder(path: Path) -> Path | None:
    """Where the config of a checkpoint is: verl has a folder for it beside the shards, TRL keeps it above."""
    return next((each for each in (path / "huggingface", path, path.parent) if (each / CONFIG).is_file()), None)


def tokenizer_folder(path: Path) -> Path | None:
    """Where the tokenizer of a checkpoint is, if it has one."""
    places = (path / "huggingface", path, path.parent if path.name.startswith("pytorch_model_fsdp") else path)
    return next((each for each in places if any((each / name).is_file() for name in TOKENIZERS)), None)


def config_differences(own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings, of those that transformers' class knows, in which two configs of a decoder differ: own and base's.

    Defaults are filled in, so that a setting that is left out and one that is spelled out are the same.
    """
    first, second = _full(own), _full(base)
    known = first.keys() & second.keys() if own.get("model_type") == base.get("model_type") else second.keys()
    found = {
        key: (first.get(key), second.get(key)) for key in sorted(known - _SILENT) if first.get(key) != second.get(key)
    }
    return found


def _full(content: Mapping[str, Any]) -> dict[str, Any]:
    try:
        config = model_config(content)
    except ValueError:
        config = None
    if config is None:
        found: dict[str, Any] = dict(content.get("text_config", content))
        return found
    text: dict[str, Any] = config.get_text_config().to_dict()
    known = type(config.get_text_config())().to_dict().keys()
    return {key: value for key, value in text.items() if key in known}


def _config_remarks(folder: Path, base: Path) -> list[str]:
    found = config_differences(read_json(folder / CONFIG), read_json(base / CONFIG))
    changing = {key: pair for key, pair in found.items() if key not in _TOLD}
    if changing:
        said = "; ".join(f"{key} is {own}, the base's {other}" for key, (own, other) in list(changing.items())[:3])
        raise RequestError(
            f"{folder / CONFIG}: {said}: the same weights compute something else with it; give the base with the run's "
            "settings, or correct the file that is wrong"
        )
    said = "; ".join(f"{key} is {own}, the base's {other}" for key, (own, other) in found.items())
    return [f"{folder / CONFIG}: {said}"] if said else []


def _ending_remarks(folder: Path, base: Path) -> list[str]:
    """Where completions end: all of a generation_config.json that counts when models are scored."""
    files = folder / _GENERATION, base / _GENERATION
    if folder == base or not all(file.is_file() for file in files):
        return []
    own, other = (read_json(file).get("eos_token_id") for file in files)
    if own == other:
        return []
    return [f"{files[0]}: completions end at {own}, the base's at {other}; in scoring those beside the tokenizer count"]


def _adapter_base(path: Path, base: ModelFolder) -> list[str]:
    named = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return []
    folder = Path(named)
    if folder.is_dir() and (folder.resolve() == base.path.resolve() or _same_files(folder, base.path)):
        return []
    origin = read_json(base.path / CONFIG).get("_name_or_path", "") if (base.path / CONFIG).is_file() else ""
    if folder.name in (base.path.resolve().name, Path(str(origin)).name) or _in_cache_of(base.path, named):
        return []
    return [f"{path / ADAPTER_CONFIG}: the adapter was trained over {named}: is {base.path} that model?"]


def _in_cache_of(base: Path, named: str) -> bool:
    """Whether a folder is the local copy of a repository on the hub."""
    return f"models--{named.replace('/', '--')}" in base.resolve().parts


def _same_files(first: Path, second: Path) -> bool:
    names = {file.name for file in second.glob("*.safetensors")}
    if not names or names != {file.name for file in first.glob("*.safetensors")}:
        return False
    return all((first / name).stat().st_size == (second / name).stat().st_size for name in names)


@dataclass(frozen=True)
class _TokenizerFiles:
    """A tokenizer on disk; two with the same bytes are one."""

    folder: Path = field(compare=False)
    digest: str

    @classmethod
    def of(cls, folder: Path) -> "_TokenizerFiles":
        present = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        parts = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in present]
        return cls(folder, " ".join(parts))


def _digest_where_other(own: Path, base: Path) -> str:
    """A digest of a tokenizer; empty where it is the base's."""
    mine, theirs = _TokenizerFiles.of(own), _TokenizerFiles.of(base)
    if mine == theirs or (theirs.digest and _tokenizer_text(mine) == _tokenizer_text(theirs)):
        return ""
    return hashlib.sha256(_tokenizer_text(mine).encode()).hexdigest()


@lru_cache(maxsize=16)  # a run keeps the same one beside each of its steps
def _tokenizer_text(files: _TokenizerFiles) -> str:
    """All of a tokenizer that decides what a text becomes: tokens, rules, special tokens, chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.folder)
    except (OSError, ValueError, ImportError) as error:
        raise RequestError(
            f"{files.folder}: transformers cannot load the tokenizer there ({first_line(error)})"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    for each in ("truncation", "padding"):  # set anew with each call
        rules.pop(each, None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return json.dumps([rules, special, tokenizer.chat_template], sort_keys=True)
