from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlstride.errors import RequestError
from rlstride.evaluation.lm import count_tokens
from rlstride.evaluation.models import UNKNOWN_STEP, parse_models
from rlstride.trajectory.filling import fill, load_model
from rlstride.trajectory.layout import read_layout
from rlstride.trajectory.model_folder import ModelFolder

END, PAD = 1, 0


def test_tokens_are_counted_up_to_and_with_the_first_end_of_sequence() -> None:
    completions = torch.tensor(
        [
            [5, 6, END, PAD],  # 3
            [END, PAD, PAD, PAD],  # 1
            [5, 6, 7, 8],  # 4: cut off
        ]
    )
    assert count_tokens(completions, [END]) == 8


def test_padding_with_the_end_token_counts_it_once() -> None:
    assert count_tokens(torch.tensor([[5, END, END, END]]), [END]) == 2


def test_any_of_several_end_tokens_ends_a_completion() -> None:
    assert count_tokens(torch.tensor([[5, 9, PAD], [END, 9, PAD]]), [END, 9]) == 3


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A qwen3 whose output layer is its own, or its embedding."""
    config = Qwen3Config(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=request.param,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_weights_put_in_place_compute_what_the_checkpoint_computes(folder: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    other = Qwen3ForCausalLM(loaded.config).eval()
    ids = torch.arange(12)[None]  # (1, 12)
    with torch.no_grad():
        assert not torch.equal(other(ids).logits, loaded(ids).logits)
        fill(other, ModelFolder(folder).source, read_layout(folder))
        assert torch.equal(other(ids).logits, loaded(ids).logits)


def test_a_model_that_lacks_a_tensor_or_has_another_shape_is_refused_by_name(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    for changed, sentence in (
        (tensors | {name: torch.zeros(3, 3)}, rf"{name}: its shape is \(3, 3\), but config.json says \(12, 8\)"),
        ({key: tensor for key, tensor in tensors.items() if key != name}, f"no file holds {name}"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(RequestError, match=sentence):
            load_model(folder, torch.float32)


@pytest.mark.parametrize(
    ("prefix", "variant", "step"),
    [
        ("", "model", UNKNOWN_STEP),
        ("rank_1=", "rank_1", UNKNOWN_STEP),
        ("window_0.4_alpharl@24=", "window_0.4_alpharl", 24),
        ("base@0=", "base", 0),
    ],
)
def test_a_models_name_and_step_are_read_from_its_word(prefix: str, variant: str, step: int, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (candidate,) = parse_models([f"{prefix}{folder}"])
    assert (candidate.variant, candidate.step, candidate.folder) == (variant, step, folder)


def test_a_folder_whose_name_holds_an_equals_sign_is_still_a_folder(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    odd = folder.rename(folder.with_name("lr=1"))
    (candidate,) = parse_models([str(odd)])
    assert candidate.variant == "lr=1"
