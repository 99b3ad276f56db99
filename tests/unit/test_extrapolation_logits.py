"""Logit extrapolation: a model without weights of its own, scored like any other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from planted_run import SmallRun
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.evaluation.lm import Bench, CountingHFLM
from rlstride.evaluation.models import parse_models

PROMPTS = ["12+3=", "9-4+77+1=", "5="]  # of three lengths: padded on the left


@pytest.fixture
def folder(small_run: SmallRun, tmp_path: Path) -> Path:
    """The model of the window 0.4, whose last step is 8 of 20: c = 2.5."""
    run = small_run.copy_to(tmp_path / "copy")
    flags = ["--method", "logits", "--window", "0.4", "--out", str(run.folder / "models" / "logits")]
    assert main(["extrapolate", str(run.path), *flags]) == 0
    return run.folder / "models" / "logits"


def seated(folder: Path) -> CountingHFLM:
    (candidate,) = parse_models([str(folder)])
    return Bench("cpu").load(candidate)


def extrapolated(folder: Path, ids: torch.Tensor, factor: float) -> torch.Tensor:
    """l_0 + c (l_8 - l_0) of one sequence (T,), by two plain models: (T, vocabulary)."""
    run = folder.parents[1]
    sources = [run.parent / "base", run / "trajectory" / "step_000008"]
    with torch.no_grad():
        base, model = (AutoModelForCausalLM.from_pretrained(source)(ids[None]).logits[0] for source in sources)
    found: torch.Tensor = base + factor * (model - base)
    return found


def test_the_folder_names_two_models_and_a_factor_and_holds_no_weights(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "logits.json"]
    named = json.loads((folder / "logits.json").read_text())
    assert named == {"trajectory": "../../trajectory", "step": 8, "factor": 2.5}
    (candidate,) = parse_models([f"window_0.4_logits@8={folder}"])
    assert (candidate.variant, candidate.step) == ("window_0.4_logits", 8)


def test_greedy_completions_follow_the_extrapolated_logits_token_by_token(folder: Path) -> None:
    lm = seated(folder)
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}
    requests = [Instance("generate_until", {}, (prompt, options), index) for index, prompt in enumerate(PROMPTS)]
    end = lm.eot_token_id
    for prompt, text in zip(PROMPTS, lm.generate_until(requests), strict=True):
        ids, written = torch.tensor(lm.tok_encode(prompt)), list[int]()
        while len(written) < 12 and end not in written:
            logits = extrapolated(folder, torch.cat([ids, torch.tensor(written, dtype=ids.dtype)]), 2.5)
            written.append(int(logits[-1].argmax()))
        assert text == lm.tok_decode([token for token in written if token != end])


def test_log_likelihoods_are_those_of_the_extrapolated_logits(folder: Path) -> None:
    lm = seated(folder)
    [(found, _)] = lm.loglikelihood([Instance("loglikelihood", {}, ("12+3=", "15"), 0)])
    ids = torch.tensor(lm.tok_encode("12+3=15"))
    log_probabilities = extrapolated(folder, ids, 2.5).log_softmax(-1)
    expected = sum(float(log_probabilities[place - 1, ids[place]]) for place in (-2, -1))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_factor_of_one_is_the_windows_last_model_and_the_next_model_is_itself_again(folder: Path) -> None:
    named = json.loads((folder / "logits.json").read_text())
    (folder / "logits.json").write_text(json.dumps(named | {"factor": 1.0}))
    (candidate,) = parse_models([str(folder)])
    last, base = parse_models([str(folder / named["trajectory"])], steps=[8, 0])
    bench, ids = Bench("cpu"), torch.tensor([[5, 6, 7]])
    own, plain, first = (bench.load(each)._model_call(ids).clone() for each in (candidate, last, base))
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(plain, first, atol=1e-3)
    assert bench.load(last).contrast is None


def test_a_measurement_is_about_both_models_and_the_factor(folder: Path) -> None:
    def digest() -> str | None:
        (candidate,) = parse_models([str(folder)])
        return candidate.weights_digest()

    found = {digest()}
    named = json.loads((folder / "logits.json").read_text())
    (folder / "logits.json").write_text(json.dumps(named | {"factor": 3.0}))
    found.add(digest())
    step, other = (folder / named["trajectory"] / f"step_{number:06d}" / "model.safetensors" for number in (8, 10))
    assert load_file(step).keys() == load_file(other).keys()
    shutil.copy(other, step)
    with pytest.raises(RequestError, match=r"step_000008/model\.safetensors: changed since the manifest was written"):
        digest()
    SmallRun(folder.parents[1], {}).restate()
    found.add(digest())
    assert len(found) == 3


def test_a_damaged_folder_is_named(folder: Path) -> None:
    (folder / "logits.json").write_text('{"step": 8}')
    with pytest.raises(RequestError, match=r"logits\.json: expected trajectory, step and factor"):
        parse_models([str(folder)])
