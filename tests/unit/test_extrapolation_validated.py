"""Methods that choose how far they go: by a scorer, and by a study's validation problems."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from planted_run import SmallRun, quick
from rlstride.cli import main
from rlstride.config.variants import window_variant
from rlstride.config.yaml_files import read_yaml
from rlstride.evaluation.score_tables import Measurement
from rlstride.evaluation.scorer import ValidationScorer
from rlstride.extrapolation import next_predictor
from rlstride.extrapolation.method import Target
from rlstride.extrapolation.next_predictor import NExt, Trained
from rlstride.extrapolation.predict import write_predictions
from rlstride.extrapolation.registry import METHODS
from rlstride.study.load import resolve_study, resolved_yaml
from rlstride.study.plan import asked_predictions, tried_targets
from rlstride.study.study import Study
from rlstride.tasks import build_task, draw_problems
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter
from rlstride.zoo.pretraining import encode_batch
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

CONFIG = Path(__file__).parents[2] / "config" / "config.yaml"
PROBLEMS = 16


def test_the_step_itself_and_the_multiples_beyond_it_are_tried() -> None:
    assert tried_targets(8, 20) == [8, 10, 15, 20, 30, 40]  # c = 1, 1.25, 1.875, 2.5, 3.75, 5
    assert tried_targets(20, 20) == [20, 30, 40]
    assert tried_targets(2, 20)[:3] == [2, 2.5, 5]


def chosen(
    run: SmallRun, out: Path, method: str, wanted: torch.Tensor, name: str, window: float = 0.4
) -> dict[str, float]:
    """The ledger entry of a method whose scorer likes one tensor best: accuracy falls with the distance to it."""

    def score(model: Mapping[str, torch.Tensor], logit_factor: float) -> Measurement:
        assert logit_factor == 1
        distance = float((model[name].double() - wanted.double()).norm())
        return Measurement(1, 1, 1 / (1 + distance), 0.0, 1.0, seconds=0.5, tokens=7, scores=[])

    write_predictions(run.trajectory, {out: (method, window)}, evaluations=None, decoding="t1.0", scorer=lambda: score)
    found: dict[str, float] = json.loads((run.folder / "ledger" / "extrapolate.jsonl").read_text().splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("method", "step", "factor"), [("linear_validated", 8, 1.875), ("first_update_validated", 2, 7.5)]
)
def test_the_factor_is_the_one_whose_model_scores_best(
    small_run: SmallRun, tmp_path: Path, method: str, step: int, factor: float
) -> None:
    run, name = small_run.copy_to(tmp_path / "copy"), "model.layers.0.mlp.up_proj.weight"
    base = load_file(run.trajectory.base_folder / "model.safetensors")
    seen = load_file(run.trajectory.model_folder(step) / "model.safetensors")
    wanted = base[name].double() + 1.01 * factor * (seen[name].double() - base[name].double())
    entry = chosen(run, tmp_path / "m", method, wanted, name)
    assert entry["factor"] == pytest.approx(factor)
    written = load_file(tmp_path / "m" / "model.safetensors")
    for each, tensor in written.items():
        torch.testing.assert_close(tensor, base[each] + factor * (seen[each] - base[each]), rtol=1e-5, atol=1e-6)
    tried = len(tried_targets(step, 20))
    assert (entry["scoring_seconds"], entry["tokens"]) == (0.5 * tried, 7 * tried)
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"method: {method}" in card
    assert f"- target: factor {factor:g}, chosen on validation among 1, " in card
    assert "Of several models this one was best on validation problems, with 0." in card


def test_full_shrunk_goes_back_to_the_factor_whose_model_scores_best(small_run: SmallRun, tmp_path: Path) -> None:
    run, name = small_run.copy_to(tmp_path / "copy"), "model.layers.0.mlp.up_proj.weight"
    base, last = (load_file(run.trajectory.model_folder(step) / "model.safetensors") for step in (0, 20))
    wanted = base[name].double() + 0.3 * (last[name].double() - base[name].double())
    found = chosen(run, tmp_path / "full_shrunk", "full_shrunk", wanted, name, window=1.0)
    assert (found["chosen"], found["factor"]) == ("factor", 0.25)
    assert set(found["tried"]) == {"1", "0.75", "0.5", "0.25", "0.1"}
    for tensor, value in load_file(tmp_path / "full_shrunk" / "model.safetensors").items():
        torch.testing.assert_close(value, base[tensor] + 0.25 * (last[tensor] - base[tensor]), rtol=0, atol=1e-6)


def test_full_shrunk_is_the_run_itself_where_nothing_is_better(small_run: SmallRun, tmp_path: Path) -> None:
    run, name = small_run.copy_to(tmp_path / "copy"), "model.layers.0.mlp.up_proj.weight"
    last = load_file(run.trajectory.model_folder(20) / "model.safetensors")
    assert chosen(run, tmp_path / "full_shrunk", "full_shrunk", last[name], name, window=1.0)["factor"] == 1
    for tensor, value in load_file(tmp_path / "full_shrunk" / "model.safetensors").items():
        assert torch.equal(value, last[tensor])


def test_a_method_of_the_whole_run_is_asked_once_whatever_the_windows() -> None:
    assert asked_predictions(["last", "full_shrunk", "linear"], [0.2, 0.4]) == [
        *((0.2, "last"), (0.2, "linear"), (0.4, "last"), (0.4, "linear")),
        (1.0, "full_shrunk"),
    ]
    assert window_variant(1.0, "full_shrunk") == "full_shrunk"
    assert window_variant(1.0, "last") == "window_1_last"


def test_logits_are_scored_as_the_windows_last_model_with_each_factor(small_run: SmallRun, tmp_path: Path) -> None:
    run, out = small_run.copy_to(tmp_path / "copy"), tmp_path / "m"
    last, tried = load_file(run.trajectory.model_folder(8) / "model.safetensors"), list[float]()

    def score(model: Mapping[str, torch.Tensor], logit_factor: float) -> Measurement:
        assert all(torch.equal(model[name], last[name]) for name in last)
        tried.append(logit_factor)
        return Measurement(1, 1, 1 - abs(logit_factor - 2) / 10, 0.0, 1.0, seconds=0.5, tokens=7, scores=[])

    jobs = {out: ("logits_validated", 0.4)}
    write_predictions(run.trajectory, jobs, evaluations=None, decoding="t1.0", scorer=lambda: score)
    assert tried == [1, 1.25, 1.875, 2.5, 3.75, 5]
    assert json.loads((out / "logits.json").read_text())["factor"] == 1.875


@pytest.mark.parametrize("alpha", [2.5, 1.5, 0.5])
def test_next_takes_its_jump_as_many_times_as_scores_best_and_trains_once(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    name, window = "model.layers.0.mlp.up_proj.weight", small_run.trajectory.window(0.8)
    monkeypatch.setitem(METHODS, "next_validated", quick(METHODS["next_validated"]))
    plain = quick(METHODS["next"])
    assert isinstance(plain, NExt)
    base, last = (load_file(window.model_folder(step) / "model.safetensors") for step in (0, 16))
    jumped = {key: base[key] + delta for key, delta in plain.fit(window, {}).predict(Target(1, 20)).deltas}  # alpha 1.5
    wanted = last[name] + 1.01 * alpha / 1.5 * (jumped[name] - last[name])

    trained, train = list[int](), next_predictor.train_network

    def train_and_count(*arguments: Any, **options: Any) -> Trained:
        trained.append(options["seed"])
        return train(*arguments, **options)

    monkeypatch.setattr(next_predictor, "train_network", train_and_count)
    entry = chosen(small_run, tmp_path / "m", "next_validated", wanted, name, window=0.8)
    assert entry["alpha"] == alpha
    assert len(trained) == len(set(trained)), "a network for each shape, not for each alpha"
    written = load_file(tmp_path / "m" / "model.safetensors")
    for key, tensor in written.items():
        torch.testing.assert_close(tensor, (last[key] + alpha / 1.5 * (jumped[key] - last[key])).float())
    assert (entry["scoring_seconds"], entry["tokens"]) == (0.5 * 6, 7 * 6)
    assert entry["predictor_seconds"] > 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"- target: alpha {alpha:g}, chosen on validation among 0, 0.5, 1, 1.5, 2, 2.5" in card


@pytest.mark.parametrize(("method", "window", "step"), [("linear_validated", 0.4, 8), ("next_validated", 0.8, 16)])
def test_of_equally_good_candidates_the_nearest_is_kept(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, window: float, step: int
) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    equal = Measurement(1, 1, 0.5, 0.0, 1.0, seconds=0.5, tokens=7, scores=[])
    monkeypatch.setitem(METHODS, method, quick(METHODS[method]))
    out = tmp_path / "m"
    write_predictions(
        run.trajectory,
        {out: (method, window)},
        evaluations=None,
        decoding="t1.0",
        scorer=lambda: lambda model, logit_factor: equal,
    )
    written, last = (load_file(folder / "model.safetensors") for folder in (out, run.trajectory.model_folder(step)))
    assert all(torch.equal(written[name], last[name]) for name in last)


def test_without_a_study_a_choosing_method_says_what_is_missing_before_anything_is_written(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "last,linear_validated", "--window", "0.4", "--out", str(tmp_path / "models")]
    assert main(["extrapolate", str(small_run.path), *flags]) == 2
    message = "--study: linear_validated tries its models on validation problems; name a study"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.fixture(scope="module")
def study() -> Study:
    evaluation = {"headline": "greedy", "decodings": {"greedy": {"temperature": 0}}}
    data = read_yaml(CONFIG) | {"evaluation": {**evaluation, "test_problems": 8, "validation_problems": PROBLEMS}}
    return resolve_study(data, CONFIG)


@pytest.fixture(scope="module")
def learnt(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    """Steps 4, 8 and 20, on a straight line from a random base that reaches, at step 16, a model that knows the
    validation problems by heart; the last step is the base again."""
    root = tmp_path_factory.mktemp("learnt")
    task = build_task(study.spec.task, study.task)
    tokenizer = build_tokenizer(task.alphabet)
    torch.manual_seed(0)
    config = Qwen3Config(
        **token_ids(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    problems = draw_problems(task, "validation", PROBLEMS, seed=0)
    ids, labels = encode_batch(tokenizer, [(each.prompt, f"G#{each.answer}") for each in problems])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(300):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writer = TrajectoryWriter(root / "cell" / "trajectory")
    for step, share in ((4, 0.25), (8, 0.5), (20, 0.0)):
        model.load_state_dict({name: start[name] + share * (end[name] - start[name]) for name in start})
        writer.keep(step, model)
    writer.finish("base", root / "base", algorithm="planted", seed=0, config_hash="0", training=[])
    return Trajectory(root / "cell" / "trajectory")


def test_a_study_scores_candidates_on_its_validation_problems_in_memory(study: Study, learnt: Trajectory) -> None:
    scorer = ValidationScorer(study, learnt)
    base = load_file(learnt.base_folder / "model.safetensors")
    half = load_file(learnt.model_folder(8) / "model.safetensors")
    whole = {name: base[name] + 2 * (half[name] - base[name]) for name in base}
    assert scorer(base).accuracy < 0.5
    found = scorer(whole)
    assert found.accuracy > 0.9
    assert (found.n, found.samples) == (PROBLEMS, 1)
    assert scorer(base).accuracy < 0.5  # nothing of the model before is left
    assert scorer(whole).scores == found.scores
    assert scorer(half, 1e-6).accuracy < 0.5  # logits of the base, but for a millionth
    assert scorer(half, 1.0).scores == scorer(half).scores


def test_the_verb_finds_the_model_that_solves_the_validation_problems(
    study: Study, learnt: Trajectory, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(resolved_yaml(study))
    flags = ["--method", "linear_validated", "--window", "0.4", "--target-step", "16", "--out", str(tmp_path / "m")]
    assert main(["extrapolate", str(learnt.folder), *flags, "--study", str(tmp_path / "study.yaml")]) == 0
    entry = json.loads((learnt.folder.parent / "ledger" / "extrapolate.jsonl").read_text().splitlines()[-1])
    assert list(entry["tried"]) == ["1", "1.5", "2", "3", "4"]
    assert entry["tried"][f"{entry['factor']:g}"] == entry["validation_accuracy"]
    assert entry["validation_accuracy"] == max(entry["tried"].values()) > 0.9
    assert entry["tokens"] > 0
    assert 0 < entry["scoring_seconds"] < entry["seconds"]
