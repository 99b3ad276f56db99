"""Studies: names looked up, sweeps expanded, mistakes told in one sentence, and what a study will make."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlstride.budget.estimates import describe, tiny_seconds
from rlstride.budget.sizes import adapter_parameters, model_parameters
from rlstride.config.section import digest
from rlstride.config.study_file import StudyFile
from rlstride.config.training import Training
from rlstride.errors import RequestError
from rlstride.study.load import load_study, resolve_study, resolved_yaml
from rlstride.study.paths import base_folder, study_paths
from rlstride.study.plan import PlannedPrediction, kept_steps, predictions, step_folder, tried_models, window_steps
from rlstride.study.stride_pairs import paired_algorithms, stride_pairs_of
from rlstride.study.study import Cell, Study
from rlstride.training.launch import cell_settings

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "name": "small",
    "task": "chain",
    "models": ["tiny-llama"],
    "algorithms": ["grpo"],
    "training": {"steps": 24},
}


def study(**changes: Any) -> Study:
    return resolve_study({**MINIMAL, **changes}, ROOT / "config" / "small.yaml")


def sentence_for(**changes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        study(**changes)
    return str(caught.value).removeprefix(f"{ROOT / 'config' / 'small.yaml'}: ")


def test_a_grid_is_every_model_with_every_algorithm_and_seed() -> None:
    grid = study(models=["tiny-qwen3", "tiny-llama"], algorithms=["grpo", "rloo"], seeds=[0, 3])
    assert [str(cell) for cell in grid.cells] == [
        f"{model}/{algorithm}/{seed}"
        for model in ("tiny-qwen3", "tiny-llama")
        for algorithm in ("grpo", "rloo")
        for seed in (0, 3)
    ]
    assert [cell.algorithm for cell in grid.control_cells] == ["frozen"] * 4


def test_a_sweep_makes_an_algorithm_of_each_combination_and_keeps_the_plain_one() -> None:
    swept = study(sweep={"grpo": {"learning_rate": [3.0e-4, 1.5e-5], "beta": [0.0, 0.04]}})
    assert list(swept.algorithms) == [
        "grpo",
        "grpo-lr3e-4-beta0",
        "grpo-lr3e-4-beta0.04",
        "grpo-lr1.5e-5-beta0",
        "grpo-lr1.5e-5-beta0.04",
    ]
    assert swept.algorithm(Cell("tiny-llama", "grpo-lr1.5e-5-beta0.04", 0)).learning_rate == 1.5e-5
    assert swept.algorithm(Cell("tiny-llama", "grpo-lr1.5e-5-beta0.04", 0)).beta == 0.04


def test_a_swept_value_that_the_algorithm_has_already_adds_no_second_run_of_it() -> None:
    own = study().algorithms["grpo"].learning_rate
    swept = study(sweep={"grpo": {"learning_rate": [5.0e-5, own]}})
    assert swept.algorithms["grpo"].learning_rate == own
    assert [name for name in swept.algorithms if name.startswith("grpo")] == ["grpo", "grpo-lr5e-5"]


def test_supervised_runs_are_cells_like_any_other_but_no_rl() -> None:
    mixed = study(algorithms=["grpo", "sft", "dist"])
    assert {cell.algorithm for cell in mixed.cells} == {"grpo", "sft", "dist"}
    assert {cell.algorithm for cell in mixed.rl_cells} == {"grpo"}


def test_the_twin_of_a_striding_algorithm_is_the_one_of_its_name_that_never_jumps() -> None:
    plain: dict[str, Any] = {"trainer": "grpo", "learning_rate": 1e-4}
    jumps = plain | {"stride": {}}
    defined = {"grpo": plain, "grpo-stride": jumps, "a": jumps, "a-stride": jumps, "b": plain, "b-stride": plain}
    defined |= {"alone-stride": jumps, "sft-stride": {"trainer": "sft", "learning_rate": 1e-4}}
    paired = study(algorithms=["sft", *defined], seeds=[0, 3], define={"algorithms": defined})
    assert paired_algorithms(paired) == {"grpo": "grpo-stride"}
    assert [[str(cell) for cell in twins.cells] for twins in stride_pairs_of(paired)] == [
        ["tiny-llama/grpo/0", "tiny-llama/grpo-stride/0"],
        ["tiny-llama/grpo/3", "tiny-llama/grpo-stride/3"],
    ]
    assert stride_pairs_of(study()) == []


def test_a_sweep_leaves_the_other_cells_as_they_were() -> None:
    plain, swept = study(), study(sweep={"grpo": {"learning_rate": [3.0e-4]}})
    assert swept.algorithms["grpo"] == plain.algorithms["grpo"]
    assert study_paths(swept).cell(swept.cells[0]) == study_paths(plain).cell(plain.cells[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sweep": {"gropo": {"learning_rate": [1e-4]}}}, "sweep: 'gropo' is not one of the study's algorithms"),
        (
            {"sweep": {"grpo": {"learning_rat": [1e-4]}}},
            "sweep.grpo.learning_rat: unknown key; did you mean 'learning_rate'?",
        ),
        ({"sweep": {"grpo": {"learning_rate": [-1e-4]}}}, "sweep.grpo.learning_rate: "),
        ({"models": ["tiny-lama"]}, "models: there is no 'tiny-lama' in models.yaml; did you mean 'tiny-llama'?"),
        ({"controls": ["cold"]}, "controls: there is no 'cold' in algorithms.yaml"),
        ({"task": "chess"}, "task: there is no 'chess' in tasks.yaml"),
        ({"extrapolation": {"windows": [0.0]}}, "extrapolation.windows.0: input should be greater than 0"),
        ({"extrapolation": {"methods": ["alpha"]}}, "extrapolation.methods.0: "),
        (
            {"ablation": {"at": [0.5]}},
            "ablation: at: claims are read at the run's last step",
        ),
        ({"ablation": {"at": []}}, "ablation.at: list should have at least 1 item"),
        ({"ablation": {"variants": ["rank_1", "rank_1"]}}, "ablation: a variant is named twice"),
        ({"ablation": {"on_the_way": ["rank_3"]}}, "ablation: on_the_way: 'rank_3' is none of the variants"),
        ({"ablation": {"decodings": ["t0.9"]}}, "ablation: decodings: 't0.9' is none of t1.0"),
        (
            {"ablation": {"decodings": ["greedy"]}},
            "ablation: decodings: claims are read at t1.0",
        ),
        ({"ablation": {"variants": ["rank_0"]}}, "ablation: 'rank_0' is not a variant"),
        ({"evaluation": {"headline": "t9"}}, "evaluation: headline 't9' is not one of the decodings"),
        ({"training": {}}, "training.steps: this key is missing"),
        ({"name": "a/b"}, "name: "),
    ],
)
def test_a_mistake_is_one_sentence_that_names_its_key(changes: dict[str, Any], sentence: str) -> None:
    told = sentence_for(**changes)
    assert told.startswith(sentence)
    assert "\n" not in told


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("name: a\nname: b\n")
    with pytest.raises(RequestError, match="the key 'name' is given twice"):
        load_study(tmp_path / "twice.yaml")


def test_the_resolved_file_is_the_same_study_without_its_catalogues(tmp_path: Path) -> None:
    full = load_study(ROOT / "config" / "config.yaml")
    swept = resolve_study(
        {**yaml.safe_load(resolved_yaml(full)), "sweep": {"rloo": {"learning_rate": [3.0e-4]}}}, full.path
    )
    (tmp_path / "study.yaml").write_text(resolved_yaml(swept))
    again = load_study(tmp_path / "study.yaml")
    assert (again.cells, again.algorithms, again.controls) == (swept.cells, swept.algorithms, swept.controls)
    assert (again.models, again.task) == (swept.models, swept.task)
    assert [base_folder(again, model) for model in again.models] == [base_folder(full, model) for model in full.models]
    assert resolved_yaml(again) == resolved_yaml(swept)


def test_a_base_moves_when_what_it_is_made_from_changes_and_only_then() -> None:
    before = base_folder(study(), "tiny-llama")
    assert base_folder(study(seeds=[5], algorithms=["rloo"]), "tiny-llama") == before
    shorter = yaml.safe_load((ROOT / "config" / "tasks.yaml").read_text())["chain"] | {"max_digits": 5}
    assert base_folder(study(define={"tasks": {"chain": shorter}}), "tiny-llama") != before


def test_the_last_step_is_kept_even_where_it_is_no_multiple() -> None:
    assert kept_steps(Training(steps=7, keep_every=3)) == [3, 6, 7]
    assert kept_steps(Training(steps=6, keep_every=3)) == [3, 6]
    assert kept_steps(Training(steps=2, keep_every=5)) == [2]


def test_a_window_holds_the_steps_up_to_its_share_of_the_last_one() -> None:
    training = Training(steps=10, keep_every=1)
    assert window_steps(training, 0.3) == [1, 2, 3]  # 0.3 * 10 is 2.9999... in floating point
    assert window_steps(training, 0.05) == []
    assert window_steps(training, 1.0)[-1] == 10


def test_alpharl_is_left_out_where_a_window_holds_fewer_than_three_steps() -> None:
    spec = StudyFile.model_validate({**MINIMAL, "extrapolation": {"windows": [0.2, 0.25]}})
    assert [(found.variant, found.step) for found in predictions(spec)] == [
        ("window_0.2_last", 4),
        ("window_0.2_linear", 4),
        ("window_0.25_last", 6),
        ("window_0.25_linear", 6),
        ("window_0.25_alpharl", 6),
    ]


def test_the_plan_counts_tried_models_of_those_methods_that_score_any() -> None:
    from rlstride.extrapolation.registry import METHODS

    training = Training(steps=40, keep_every=2)
    for name, method in METHODS.items():
        tried = tried_models(PlannedPrediction(f"window_0.4_{name}", name, 0.4, 16), training)
        assert (tried > 0) == method.spec.uses_scores


def test_step_folders_sort_as_their_steps_do() -> None:
    names = [step_folder(step) for step in (2, 10, 100)]
    assert names == sorted(names)
    assert names[0] == "step_000002"


@pytest.mark.parametrize("model", ["tiny-qwen3", "tiny-llama"])
def test_the_estimate_of_a_tiny_models_size_is_within_two_percent_of_the_built_one(model: str) -> None:
    from rlstride.tasks import build_task
    from rlstride.zoo.bases import build_model
    from rlstride.zoo.tokenizer import build_tokenizer

    small = study(models=[model])
    tokenizer = build_tokenizer(build_task("chain", small.task).alphabet)
    built = sum(tensor.numel() for tensor in build_model(small.models[model], tokenizer).parameters())
    assert model_parameters(small.models[model]) == pytest.approx(built, rel=0.02)


def test_a_hundred_more_steps_take_the_time_of_a_hundred_steps(tmp_path: Path) -> None:
    short = study(results=str(tmp_path), training={"steps": 100, "keep_every": 100})
    long = study(results=str(tmp_path), training={"steps": 200, "keep_every": 200})
    extra = tiny_seconds(long, "tiny-llama") - tiny_seconds(short, "tiny-llama")
    assert extra == pytest.approx(2 * 100 * 0.28, rel=0.01)  # a cell and its control, 0.28 s a step


def test_the_size_of_a_published_model_comes_from_its_name_and_gives_gpu_hours() -> None:
    published = {"big": {"source": "Qwen/Qwen2.5-7B"}, "nameless": {"source": "org/model"}}
    text = describe(study(models=["big", "nameless"], define={"models": published}, device="cuda"))
    # 7e9 parameters in fp32, a base and 12 kept steps of 2 runs: 28 GB x 25; 24 steps of 128 x 36 tokens, 2 runs.
    assert "big: 7 B parameters; 700 GB of disk" in text
    assert f"about {8 * 7e9 * 24 * 128 * 36 * 2 / 2e14 / 3600:.2g} GPU-hours" in text
    assert "nameless: neither its name nor a local config.json tells its size" in text


def test_a_published_model_without_a_gpu_takes_core_hours_of_training_and_of_scoring(tmp_path: Path) -> None:
    task = {"kind": "dataset", "source": "sums.jsonl", "prompt": "{{ question }}", "verifier": "verbatim"}
    task |= {"max_prompt_tokens": 60, "max_completion_tokens": 5}
    asked = {
        "task": "sums",
        "models": ["small-135M"],
        "define": {"tasks": {"sums": task}, "models": {"small-135M": {"source": "org/small-135M"}}},
        "training": {"steps": 10, "keep_every": 5, "problems_per_step": 4, "completions_per_problem": 8},
        "ablation": {"variants": []},
        "extrapolation": {"windows": []},
        "drift": {"at": []},
        "device": "cpu",
    }
    small = study(**asked)
    # Two runs of 10 steps of 32 rollouts: 4 passes of 2 FLOP over 65 tokens, of which 5 are drawn once.
    pass_seconds = {"read": 2 * 135e6 / 1.5e11, "drawn": 2 * 135e6 / 3e10}  # for each token
    training = 2 * 10 * 32 * (pass_seconds["read"] * (4 * 65 - 5) + pass_seconds["drawn"] * 5)
    # Base and two kept steps of both runs on 256 x 4 validation completions; base, full and frozen on 512 x 9.
    completions = 2 * 3 * 256 * 4 + 3 * 512 * 9
    scoring = completions * (pass_seconds["read"] * 60 + pass_seconds["drawn"] * 5)
    text = describe(small)
    assert f"about {training / 3600:.2g} core-hours of RL, {scoring / 3600:.2g} of scoring" in text
    assert "GPU" not in text
    reading = (2 * 3 * 256 + 3 * 512) * pass_seconds["read"] * 65
    text = describe(study(**asked, evaluation={"scorer": "exact"}))
    assert f"{reading / 3600:.2g} of scoring" in text


ADAPTERS = {
    "lora": {"kind": "lora", "rank": 4},
    "adalora": {"kind": "adalora", "rank": 4, "initial_rank": 6},
    "prilora": {"kind": "prilora", "rank": 4},
    "c3a": {"kind": "c3a", "block_size": 16},
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_the_size_of_an_adapter_is_that_of_what_is_trained(adapter: dict[str, Any], tmp_path: Path) -> None:
    from peft import get_peft_model

    from rlstride.tasks import build_task
    from rlstride.training.adapters import peft_config
    from rlstride.zoo.bases import build_model
    from rlstride.zoo.tokenizer import build_tokenizer

    small = study(training={"steps": 24, "adapter": adapter})
    model = build_model(small.models["tiny-llama"], build_tokenizer(build_task("chain", small.task).alphabet))
    model.save_pretrained(tmp_path)
    settings = peft_config(tmp_path, small.spec.training, updates=24)
    assert settings is not None
    trained = sum(weight.numel() for weight in get_peft_model(model, settings).parameters() if weight.requires_grad)
    assert small.spec.training.adapter is not None
    assert adapter_parameters(small.spec.training.adapter, small.models["tiny-llama"]) == trained


def test_a_study_of_adapters_keeps_a_base_and_adapters(tmp_path: Path) -> None:
    config = {"hidden_size": 1000, "num_attention_heads": 10, "intermediate_size": 3000, "num_hidden_layers": 10}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 5000}))
    adapted = study(
        models=["local", "hub-7B"],
        define={"models": {"local": {"source": str(tmp_path)}, "hub-7B": {"source": "org/hub-7B"}}},
        training={"steps": 24, "adapter": {"kind": "lora", "rank": 10}},
        extrapolation={"windows": []},
    )
    # 10 M of embeddings, ten layers of 4 M and 9 M: 0.14 B in fp32. Ten ranks of 4 x 2,000 and 3 x 4,000 numbers in ten
    # layers: 2 M, 8 MB for each of 12 kept steps of two runs. In passing thrice the adapter.
    text = describe(adapted)
    assert "local: 0.14 B parameters; 752 MB of disk for its base and kept adapters, 24 MB in passing" in text
    assert "hub-7B: 7 B parameters; 28 GB of disk for its base (a local config.json would tell the size of its" in text


def test_choosing_how_far_to_go_takes_a_look_at_validation_problems_for_each_candidate(tmp_path: Path) -> None:
    def seconds(method: str) -> float:
        asked = study(
            results=str(tmp_path), training={"steps": 20}, extrapolation={"methods": [method], "windows": [0.4]}
        )
        return tiny_seconds(asked, "tiny-llama")

    # Through step 8 of 20 the targets are 8, 10, 15, 20, 30 and 40; through step 2: 2, 2.5, 5 and these from 10 on.
    look = 256 * 4 * 0.001
    assert seconds("linear_validated") - seconds("linear") == pytest.approx(6 * look, rel=1e-3)
    assert seconds("first_update_validated") - seconds("first_update") == pytest.approx(8 * look, rel=1e-3)


def test_striding_runs_take_the_time_of_their_searches_too(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"trainer": "grpo", "learning_rate": 1e-4}

    def asked(**stride: Any) -> Study:
        algorithm = plain | {"stride": stride} if stride else plain
        return study(algorithms=["a"], results=str(tmp_path), define={"algorithms": {"a": algorithm}})

    without = tiny_seconds(asked(), "tiny-llama")
    # A search after steps 3, 6, ..., 21 of 24: of the batch's 128 rollouts, or of as many of each of two candidates.
    read = tiny_seconds(asked(window=3), "tiny-llama") - without
    assert read == pytest.approx(7 * 0.15, rel=1e-3)
    drawn = tiny_seconds(asked(window=3, verify="rollouts"), "tiny-llama") - without
    assert drawn == pytest.approx(7 * 2 * 128 * 0.001, rel=1e-3)
    assert tiny_seconds(asked(window=3, verify="none"), "tiny-llama") == without
    assert "Each run of a: up to 7 searches for a jump." in describe(asked(window=3))
    assert "searches" not in describe(asked()) + describe(asked(verify="none"))


def test_the_searches_of_a_published_model_cost_a_forward_pass_of_each_candidate() -> None:
    algorithm = {"trainer": "grpo", "learning_rate": 1e-4, "stride": {"window": 2}}
    text = describe(
        study(
            models=["big"],
            algorithms=["a"],
            controls=[],
            define={"models": {"big": {"source": "org/model-70B"}}, "algorithms": {"a": algorithm}},
            device="cuda",
        )
    )
    # 24 steps at 8 FLOP, 11 searches of two candidates at 2.
    hours = (24 * 8 + 11 * 2 * 2) * 70e9 * 128 * 36 / 2e14 / 3600
    assert f"about {hours:.2g} GPU-hours" in text
    assert f"{hours:.2g}" != f"{24 * 8 * 70e9 * 128 * 36 / 2e14 / 3600:.2g}"


def test_check_tells_which_predictions_are_not_applicable() -> None:
    assert "Not applicable: alpharl at window 0.2, which holds too few kept steps." in describe(study())


def test_a_run_that_never_strides_has_the_hash_that_it_had_before_strides_were_there() -> None:
    plain = study()
    cell = Cell("tiny-llama", "grpo", 0)
    settings = {
        "model": plain.models["tiny-llama"].model_dump(mode="json"),
        "task": plain.task.model_dump(mode="json"),
        "training": plain.spec.training.model_dump(mode="json"),
        "algorithm": {
            "learning_rate": 2e-4,
            "warmup_steps": 0,
            "max_grad_norm": 1.0,
            "epsilon": 0.2,
            "minibatches": 1,
            "epochs": 1,
            "trainer": "grpo",
            "beta": 0.001,
        },
        "seed": 0,
    }
    assert digest(cell_settings(plain, cell)) == digest(settings)


def test_a_stride_with_contrary_limits_is_refused() -> None:
    algorithm = {"trainer": "grpo", "learning_rate": 1e-4, "stride": {"window": 20, "longest_window": 12}}
    sentence = sentence_for(algorithms=["jumps"], define={"algorithms": {"jumps": algorithm}})
    assert "longest_window: 12 is shorter than the window, 20" in sentence
