"""What jobs ask a cluster for."""

from pathlib import Path

import pytest
import yaml

from rlstride.budget.requests import job_request
from rlstride.budget.stages import STAGES
from rlstride.errors import RequestError
from rlstride.study.load import load_study
from rlstride.study.study import Study

ROOT = Path(__file__).parents[2]

SENT = [name for name, stage in STAGES.items() if stage.is_sent]


def study(tmp_path: Path, size: str = "7B", **changes: object) -> Study:
    """The smoke study with a published model of some size."""
    data = yaml.safe_load((ROOT / "config" / "studies" / "smoke.yaml").read_text())
    data |= {"models": ["big"], "algorithms": ["grpo", "ppo", "dapo"], **changes}
    data["define"]["models"] = {"big": {"source": f"some/Model-{size}"}}
    for name in ("algorithms.yaml", "tasks.yaml", "models.yaml"):
        (tmp_path / name).write_text((ROOT / "config" / name).read_text())
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_study(file)


def test_a_tiny_models_jobs_ask_for_two_gigabytes_and_a_quarter_of_an_hour() -> None:
    smoke = load_study(ROOT / "config" / "studies" / "smoke.yaml")
    asked = job_request(smoke, "train_cell", "tiny-llama", "grpo")
    assert (asked.mem_mb, asked.runtime, asked.threads, asked.gpu) == (2048, 15, 1, 0)


def test_a_7b_model_asks_for_its_weights_many_times_over(tmp_path: Path) -> None:
    # 7e9 weights of 4 bytes: 28,000 MB; on a CPU weights, gradients, two moments, a reference and files: six times.
    few_at_once = {"steps": 20, "micro_batch": 1}
    small = study(tmp_path, training=few_at_once)
    assert job_request(small, "train_cell", "big", "grpo").mem_mb == pytest.approx(1800 + 168_000, abs=256)
    # 128 sequences of 36 tokens at once: 61,000 MB of activations, with weights, gradients, moments and files.
    whole = study(tmp_path, training={"steps": 20})
    assert job_request(whole, "train_cell", "big", "grpo").mem_mb == pytest.approx(1800 + 140_000 + 61_000, rel=0.01)
    on_gpu = study(tmp_path, device="cuda")
    assert job_request(on_gpu, "train_cell", "big", "grpo").mem_mb == pytest.approx(1800 + 84_000, abs=256)


def test_time_grows_with_size_and_steps_and_with_what_an_algorithm_does(tmp_path: Path) -> None:
    def minutes(steps: int, size: str = "7B", algorithm: str = "grpo") -> int:
        made = study(tmp_path, size, device="cuda", training={"steps": steps, "keep_every": 20})
        return job_request(made, "train_cell", "big", algorithm).runtime

    assert minutes(4000) - 5 == pytest.approx(10 * (minutes(400) - 5), rel=0.05)
    assert minutes(4000, "14B") - 5 == pytest.approx(2 * (minutes(4000) - 5), rel=0.05)
    assert minutes(4000, algorithm="dapo") - 5 == pytest.approx(3 * (minutes(4000) - 5), rel=0.05)  # three draws
    assert minutes(4000, algorithm="ppo") > minutes(4000)


def test_further_attempts_ask_for_more_memory_up_to_four_times_and_as_much_time_again() -> None:
    smoke = load_study(ROOT / "config" / "studies" / "smoke.yaml")
    for rule in SENT:
        asked = [job_request(smoke, rule, "tiny-llama", "grpo", attempt) for attempt in (1, 2, 3, 4)]
        assert [each.mem_mb / asked[0].mem_mb for each in asked] == [1, 2, 4, 4]
        assert [each.runtime / asked[0].runtime for each in asked] == [1, 2, 3, 4]


def test_gpus_are_asked_for_where_models_run_and_one_for_each_process_of_a_training(tmp_path: Path) -> None:
    made = study(tmp_path, device="cuda", processes={"big": 4})
    asked = {rule: job_request(made, rule, "big", "grpo") for rule in SENT}
    assert (asked["train_cell"].gpu, asked["train_cell"].threads) == (4, 4)
    assert {rule for rule in SENT if asked[rule].gpu == 0} == {"pretrain_base", "measure_dynamics"}
    assert asked["evaluate_variants"].gpu == 1
    on_cpu = study(tmp_path, processes={"big": 4})
    assert all(job_request(on_cpu, rule, "big", "grpo").gpu == 0 for rule in SENT)


def test_processes_of_a_model_that_the_study_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="processes: 'large' is none of the models: big"):
        study(tmp_path, processes={"large": 2})


def test_a_benchmarks_time_grows_with_models_problems_samples_and_tokens(tmp_path: Path) -> None:
    drawn = {"task": "gsm8k", "samples": 16, "temperature": 0.6, "limit": 500, "max_tokens": 1000}
    made = study(tmp_path, device="cuda", benchmarks=[drawn], controls=["frozen"])
    # base, frozen and full on 500 problems, 16 samples of 2000 tokens: 48e6 tokens at 2 FLOP for each of 7e9 parameters
    seconds = 48e6 * 2 * 7e9 / 2e14
    asked = job_request(made, "evaluate_benchmarks", "big", "grpo")
    assert (asked.runtime - 5, asked.gpu) == (pytest.approx(4 * seconds / 60, abs=2), 1)
