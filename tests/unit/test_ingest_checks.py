"""What ingest finds out about a run before a number is taken from it: labels, descriptions, movement, candidates."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed.checkpoint as dcp
from peft import C3AConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from families import decoder
from rlstride.atomic_files import sha256
from rlstride.cli import main
from rlstride.config.variants import read_variants
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.trajectory.description import config_differences
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.store import Trajectory

UP = "model.layers.0.mlp.up_proj.weight"
Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """A command: its exit status, and all that it prints."""

    def run(*words: object) -> tuple[int, str]:
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def save_tokenizer(folder: Path, *more: str) -> PreTrainedTokenizerFast:
    letters = {letter: index for index, letter in enumerate(["<pad>", "<eos>", *"0123456789+-=? abcdefghij"])}
    made = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")
    fast.add_tokens(list(more))
    fast.save_pretrained(folder)
    return fast


@torch.no_grad()
def moved(model: PreTrainedModel, size: float = 0.05) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    decoder("qwen3").save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    return tmp_path / "base"


def step_of(base: Path, run: Path, step: int = 10) -> Path:
    """A checkpoint as TRL leaves it."""
    folder = run / f"checkpoint-{step}"
    moved(AutoModelForCausalLM.from_pretrained(base), 0.01 * step).save_pretrained(folder)
    return folder


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model.eval()(input_ids=torch.arange(2, 22)[None]).logits
    return found


# What a step says of itself.


def test_a_config_that_computes_something_else_is_refused_by_key(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    change(step / "config.json", rms_norm_eps=1e-2)
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 2
    assert "rms_norm_eps is 0.01, the base's 1e-06" in said
    assert not (tmp_path / "t").exists()


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE["original_max_position_embeddings"] = 64


@pytest.mark.parametrize("scaling", [None, ROPE], ids=["plain", "llama3"])
def test_a_config_is_the_same_in_the_words_of_transformers_4_and_5_and_another_rope_is_not(
    scaling: dict[str, object] | None, tmp_path: Path
) -> None:
    four = {
        "model_type": "llama",
        "hidden_size": 64,
        "rope_theta": 5e5,
        "rope_scaling": scaling,
        "torch_dtype": "bfloat16",
    }
    AutoConfig.for_model(**json.loads(json.dumps(four))).save_pretrained(tmp_path)
    five = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in five
    assert "rope_theta" not in five
    assert config_differences(five, four) == {}
    assert list(config_differences(five, four | {"rope_theta": 1e4})) == ["rope_parameters"]
    assert list(config_differences(five, four | {"rope_scaling": {**ROPE, "factor": 2.0}})) == ["rope_parameters"]


def test_settings_that_change_no_logit_are_not_told_and_other_ends_are(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    change(step / "config.json", use_cache=False, transformers_version="4.1", _name_or_path="x", eos_token_id=7)
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 0
    assert "eos_token_id is 7, the base's 1" in said
    assert "use_cache" not in said


def test_other_ends_in_a_generation_config_are_told(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    for folder, ends in ((base, 1), (step, [1, 9])):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "temperature": 0.1}))
    said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[1]
    assert "completions end at [1, 9], the base's at 1; in scoring those beside the tokenizer count" in said


def test_a_step_that_calls_itself_quantised_is_refused(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    change(step / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    for verb in (["ingest", "--out", tmp_path / "t"], ["inspect"]):
        status, said = say(verb[0], tmp_path / "run", "--base", base, *verb[1:])
        assert status in (1, 2)
        assert "this model is quantised (bitsandbytes)" in said


def test_tokens_that_a_run_added_are_scored_with_its_own_tokenizer_everywhere(
    base: Path, tmp_path: Path, say: Say
) -> None:
    step = step_of(base, tmp_path / "run")
    save_tokenizer(step, "<think>")
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 0
    assert "the run has a tokenizer of its own" in said
    trajectory = str(tmp_path / "t")
    candidates = [*parse_models([trajectory]), *parse_models([trajectory], variants=read_variants("rank_1"))]
    for verb, name in (("ablate", "rank_1"), ("extrapolate", "linear")):
        how = ["--rank", "1"] if verb == "ablate" else ["--method", "linear", "--window", "1"]
        assert say(verb, trajectory, *how, "--out", tmp_path / name)[0] == 0
        candidates += parse_models([str(tmp_path / name)])
    for candidate in candidates:
        assert len(Bench("cpu").load(candidate).tokenizer("<think>")["input_ids"]) == 1


def test_a_tokenizer_saved_again_is_still_the_bases(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    again = PreTrainedTokenizerFast.from_pretrained(base, model_max_length=99)
    again.save_pretrained(step)
    assert (step / "tokenizer_config.json").read_bytes() != (base / "tokenizer_config.json").read_bytes()
    assert "tokenizer of its own" not in say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[1]
    assert read_manifest(tmp_path / "t").tokenizer is None


def save_lora(base: Path, folder: Path, **settings: object) -> PeftModel:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def test_an_adapter_of_another_base_than_the_one_given_is_told(base: Path, tmp_path: Path, say: Say) -> None:
    save_lora(base, tmp_path / "run/checkpoint-10", r=4, target_modules=["q_proj"])
    said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[1]
    assert "was trained over" not in said
    change(tmp_path / "run/checkpoint-10/adapter_config.json", base_model_name_or_path="Qwen/Qwen3-8B-Base")
    said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "other")[1]
    assert f"the adapter was trained over Qwen/Qwen3-8B-Base: is {base} that model?" in said


# Tying.

HEADS = {
    "LoRA of the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "LoRA of the head": {"target_modules": ["q_proj", "lm_head"]},
    "a whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "neither": {"target_modules": ["q_proj", "down_proj"]},
    "neither, rank-stabilised": {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"q_proj": 3}},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("how", HEADS)
def test_an_adapter_computes_what_peft_loads_or_is_refused(how: str, tied: bool, tmp_path: Path, say: Say) -> None:
    base, step = tmp_path / "base", tmp_path / "run/checkpoint-10"
    decoder("qwen2", tie_word_embeddings=tied).save_pretrained(base)
    save_tokenizer(base)
    save_lora(base, step, r=4, lora_alpha=6, **HEADS[how])
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    if tied and not how.startswith("neither"):
        assert status == 2
        assert "the base ties its output head to the embedding" in said
        return
    assert status == 0
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), step)
    (candidate,) = parse_models([str(tmp_path / "t")], steps=[10])
    torch.testing.assert_close(logits(Bench("cpu").load(candidate).model), logits(own), rtol=0, atol=1e-4)


@pytest.mark.parametrize("modules", [["c_attn", "c_proj"], ["c_attn", "c_proj", "lm_head"]])
def test_an_adapter_of_gpt2_whose_matrices_are_transposed_computes_what_peft_loads(
    modules: list[str], tmp_path: Path, say: Say
) -> None:
    """c_proj is square: its shape does not tell, and with lm_head among them nor does PEFT's own setting."""
    decoder("gpt2", tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    step = tmp_path / "run/checkpoint-10"
    save_lora(tmp_path / "base", step, r=4, target_modules=modules)
    assert say("ingest", tmp_path / "run", "--base", tmp_path / "base", "--out", tmp_path / "t")[0] == 0
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), step)
    (candidate,) = parse_models([str(tmp_path / "t")], steps=[10])
    torch.testing.assert_close(logits(Bench("cpu").load(candidate).model), logits(own), rtol=0, atol=1e-4)


def test_a_circulant_adapter_over_names_that_transformers_renames_is_read(tmp_path: Path, say: Say) -> None:
    """The base as torch.compile saved it; PEFT knows the model's own names alone."""
    model = decoder("llama")
    model.save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    adapted = get_peft_model(model, C3AConfig(target_modules=["q_proj"], block_size=4, init_weights="gaussian"))
    adapted.save_pretrained(tmp_path / "run/checkpoint-10")
    stored = load_file(tmp_path / "base/model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in stored.items()}, tmp_path / "base/model.safetensors")
    assert say("ingest", tmp_path / "run", "--base", tmp_path / "base", "--out", tmp_path / "t")[0] == 0
    (candidate,) = parse_models([str(tmp_path / "t")], steps=[10])
    torch.testing.assert_close(logits(Bench("cpu").load(candidate).model), logits(adapted), rtol=0, atol=1e-4)


# Several candidates.


def save_dcp(folder: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    dcp.save({name: dict(state) for name, state in groups.items()}, checkpoint_id=folder, no_dist=True)


def test_of_several_models_in_one_checkpoint_the_one_that_fits_is_read(base: Path, tmp_path: Path, say: Say) -> None:
    policy = moved(decoder("qwen3")).state_dict()
    value = {n: 3 * t for n, t in policy.items() if n != "lm_head.weight"} | {"score.weight": torch.ones(1, 16)}
    save_dcp(tmp_path / "run/step_10", {"zz_policy": policy, "value": value})
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    assert torch.equal(Trajectory(tmp_path / "t").source(10).tensor(UP), policy[UP])


def test_where_several_fit_all_are_named_and_the_user_says_which(base: Path, tmp_path: Path, say: Say) -> None:
    policy, ema = moved(decoder("qwen3")).state_dict(), moved(decoder("qwen3"), 0.5).state_dict()
    save_dcp(tmp_path / "run/step_10", {"model": policy, "ema": ema})
    asked = ("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    status, said = say(*asked)
    assert status == 2
    assert "several models in it fit the base: ema, model; say with --model-key" in said
    assert say(*asked, "--model-key", "reference")[0] == 2
    assert say(*asked, "--model-key", "model")[0] == 0
    assert torch.equal(Trajectory(tmp_path / "t").source(10).tensor(UP), policy[UP])


def test_checkpoints_in_a_folder_that_is_called_like_a_step_are_the_steps(base: Path, tmp_path: Path, say: Say) -> None:
    run = tmp_path / "grpo-iter2"
    for step in (100, 200):
        step_of(base, run, step)
    moved(decoder("qwen3"), 3.0).save_pretrained(run)  # the final model, as TRL leaves it on top
    status, said = say("ingest", run, "--base", base, "--out", tmp_path / "t")
    assert status == 0
    assert "the model in the run's own folder has no step's number, and is left out" in said
    assert Trajectory(tmp_path / "t").steps == [100, 200]


def test_numbers_that_contradict_the_order_of_the_names_are_refused(base: Path, tmp_path: Path, say: Say) -> None:
    folders = [step_of(base, tmp_path / "run", step) for step in (10, 100, 20)]
    asked = ("ingest", *folders, "--base", base, "--out", tmp_path / "t")
    status, said = say(*asked, "--steps", "10,20,100")
    assert status == 2
    assert "checkpoint-100 is called step 100" in said
    assert say(*asked, "--steps", "1,10,2")[0] == 0
    records = {record.step: Path(record.folder).name for record in read_manifest(tmp_path / "t").steps}
    assert records == {1: "checkpoint-10", 2: "checkpoint-20", 10: "checkpoint-100"}


# Something must have happened.


def test_a_run_of_which_no_step_differs_from_the_base_is_refused_and_a_step_is_told(
    base: Path, tmp_path: Path, say: Say
) -> None:
    decoder("qwen3").save_pretrained(tmp_path / "run/checkpoint-10")
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 2
    assert "every tensor is equal to the base's: nothing was trained" in said
    step_of(base, tmp_path / "run", 20)
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 0
    assert "step 10: every tensor is equal to the base's" in said
    status, said = say("spectra", tmp_path / "t", "--out", tmp_path / "s.parquet")
    assert status == 0
    assert "step 10: every tensor is equal to the base's, so its shares are undefined" in said
    status, said = say("ablate", tmp_path / "t", "--step", "10", "--rank", "1", "--out", tmp_path / "v")
    assert status == 2
    assert "there is no update to edit" in said


def test_an_adapter_with_an_alpha_of_zero_is_refused(base: Path, tmp_path: Path, say: Say) -> None:
    save_lora(base, tmp_path / "run/checkpoint-10", r=4, target_modules=["q_proj"])
    change(tmp_path / "run/checkpoint-10/adapter_config.json", lora_alpha=0)
    for verb in (["ingest", "--out", tmp_path / "t"], ["inspect"]):
        status, said = say(verb[0], tmp_path / "run", "--base", base, *verb[1:])
        assert status in (1, 2)
        assert "lora_alpha is 0" in said


def test_a_variant_that_edits_no_tensor_is_told(base: Path, tmp_path: Path, say: Say) -> None:
    save_lora(base, tmp_path / "run/checkpoint-10", r=4, target_modules=["q_proj"])
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    status, said = say("ablate", tmp_path / "t", "--variants", "rank_1_in_mlp,rank_1", "--out", tmp_path / "v")
    assert status == 0
    assert "rank_1_in_mlp: no matrix of its scope moved by step 10: it is the base" in said
    assert "rank_1: no matrix" not in said
    asked = ("evaluate", tmp_path / "t", "--variants", "rank_1_in_mlp", "--tasks", "rlstride_chain", "--limit", "1")
    assert "rank_1_in_mlp: no matrix of its scope moved" in say(*asked, "--out", tmp_path / "a.parquet")[1]
    assert (
        "moved outside of it: model.layers.0.self_attn.q_proj" in (tmp_path / "v/rank_1_in_mlp/README.md").read_text()
    )


@pytest.mark.parametrize("what", ["a step", "a base", "a base's config"])
def test_files_that_changed_since_ingest_are_refused_by_every_verb(
    what: str, base: Path, tmp_path: Path, say: Say
) -> None:
    step, t = step_of(base, tmp_path / "run"), tmp_path / "t"
    assert say("ingest", tmp_path / "run", "--base", base, "--out", t)[0] == 0
    for file in base.iterdir():
        os.utime(file)  # a copy has another time, and the same bytes
    assert say("inspect", t)[0] == 0
    if what == "a base's config":
        change(base / "config.json", rms_norm_eps=0.5)
    else:
        moved(decoder("qwen3"), 0.5).save_pretrained(step if what == "a step" else base)
    asked = {
        "inspect": [],
        "spectra": ["--out", tmp_path / "s.parquet"],
        "ablate": ["--rank", "1", "--out", tmp_path / "r"],
        "extrapolate": ["--method", "linear", "--window", "1", "--out", tmp_path / "l"],
        "evaluate": ["--tasks", "rlstride_chain", "--limit", "1", "--out", tmp_path / "a.parquet"],
    }
    for verb, words in asked.items():
        status, said = say(verb, t, *words)
        assert status == (1 if verb == "inspect" else 2)
        assert "changed since the manifest was written" in said


def test_a_card_names_the_digests_of_what_was_read(base: Path, tmp_path: Path, say: Say) -> None:
    step = step_of(base, tmp_path / "run")
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    assert say("ablate", tmp_path / "t", "--rank", "1", "--out", tmp_path / "r")[0] == 0
    card = (tmp_path / "r/README.md").read_text()
    for file in (base / "model.safetensors", base / "config.json", step / "model.safetensors"):
        assert sha256(file) in card
    assert "- edited: 14 matrices, " in card
    assert "- moved outside of it: lm_head, model.embed_tokens, " in card


def test_the_card_of_a_prediction_says_what_moved_outside_its_scope(base: Path, tmp_path: Path, say: Say) -> None:
    step_of(base, tmp_path / "run")
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    asked = ("extrapolate", tmp_path / "t", "--method", "last", "--window", "1", "--out", tmp_path / "p")
    assert say(*asked)[0] == 0
    card = (tmp_path / "p/README.md").read_text()
    assert "- in scope: 14 matrices, " in card
    assert "- moved outside of it: lm_head, model.embed_tokens, " in card


# The model's names.


def test_tensors_that_transformers_drops_are_none_of_the_model_and_stay_in_what_is_written(
    base: Path, tmp_path: Path, say: Say
) -> None:
    stored = load_file(base / "model.safetensors")
    more = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(2)}
    more |= {"model.layers.2.eh_proj.weight": torch.ones(16, 32)}
    save_file(stored | more, base / "model.safetensors", metadata={"format": "pt"})
    step_of(base, tmp_path / "run")
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 0
    assert "3 tensors are none of the model's and are left out" in said
    assert say("spectra", tmp_path / "t", "--out", tmp_path / "s.parquet")[0] == 0
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert not table.module.str.contains("inv_freq|eh_proj").any()
    assert say("ablate", tmp_path / "t", "--rank", "1", "--out", tmp_path / "r")[0] == 0
    written = load_file(tmp_path / "r/model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in more.items())


def test_what_ablate_writes_beside_an_adapters_leftovers_loads_as_it_was_made(
    base: Path, tmp_path: Path, say: Say
) -> None:
    """A merged model in the folder of its adapter: the whole weights are the model, for us and for transformers."""
    save_lora(base, tmp_path / "left-over", r=4, target_modules=["q_proj"])
    for file in (tmp_path / "left-over").glob("adapter*"):
        shutil.copy(file, base)
    change(base / "config.json", dtype="bfloat16")
    step_of(base, tmp_path / "run")
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    assert say("ablate", tmp_path / "t", "--variants", "in_scope_full", "--out", tmp_path / "v")[0] == 0
    folder = tmp_path / "v/in_scope_full"
    assert not list(folder.glob("adapter*"))
    (written,) = parse_models([str(folder)])
    (made,) = parse_models([str(tmp_path / "t")], variants=read_variants("in_scope_full"))
    own = Bench("cpu").load(written).model
    assert own.dtype == torch.float32
    assert torch.equal(logits(own), logits(Bench("cpu").load(made).model))
    assert torch.equal(logits(own), logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)))


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("default/adapter_config.json", "there is an adapter in"),
        ("zero/model.norm.weight/fp32.pt", "a universal checkpoint of DeepSpeed"),
        ("mp_rank_00/model_optim_rng.pt", "these are Megatron's files"),
    ],
)
def test_a_folder_of_a_known_other_kind_says_what_to_give_instead(
    mark: str, sentence: str, base: Path, tmp_path: Path, say: Say
) -> None:
    file = tmp_path / "run/checkpoint-10" / mark
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    status, said = say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")
    assert status == 2
    assert sentence in said


def test_inspect_and_spectra_say_how_much_is_in_scope_and_what_moved_outside(
    base: Path, tmp_path: Path, say: Say
) -> None:
    step_of(base, tmp_path / "run")
    model = decoder("qwen3")
    inside = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    share = 100 * inside / sum(p.numel() for p in model.parameters())
    assert f"in scope: 14 matrices, {share:.1f} % of the parameters" in say("inspect", base)[1]
    assert say("ingest", tmp_path / "run", "--base", base, "--out", tmp_path / "t")[0] == 0
    said = say("spectra", tmp_path / "t", "--out", tmp_path / "s.parquet")[1]
    assert f"in scope: 14 matrices, {share:.1f} % of the parameters" in said
    squares = pd.read_parquet(tmp_path / "s.parquet").set_index("module").frobenius ** 2
    kept = 100 * squares[squares.index.str.contains(r"layers.*proj")].sum() / squares.sum()
    assert f"step 10: {kept:.1f} % of the squared norm of the update is in scope; outside of it: " in said
