"""`rlstride evaluate` on tasks as a chat model, a few-shot benchmark or another decoding needs them."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.evaluation.metrics import averaged_samples
from rlstride.evaluation.prompting import parse_generation
from rlstride.evaluation.score import score_on_lm_eval_tasks
from rlstride.zoo.tokenizer import build_tokenizer
from token_ids import token_ids

ALPHABET = "0123456789+=?QA: \n|abcdefghijklmnopqrstuvwxyz.<>"
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
DEAF = TEMPLATE.replace("<{{", "{% if message.role != 'system' %}<{{").replace("|{% endfor", "|{% endif %}{% endfor")
SUMS = [(a, b) for a in range(3) for b in range(4)]


def model_folder(root: Path, template: str | None = None) -> Path:
    """A random llama of one token a character; a chat model where it is given a template."""
    tokenizer: PreTrainedTokenizerFast = build_tokenizer(ALPHABET)
    tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        **token_ids(tokenizer), **sizes, head_dim=8, max_position_embeddings=256, initializer_range=0.3
    )
    LlamaForCausalLM(config).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "chat", TEMPLATE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "base")


def task_file(folder: Path, text: str = "", *, generates: bool = True, splits: str = "test_split: test") -> str:
    """Sums to complete, or to choose between two answers; training problems are other sums."""
    rows = {"test": SUMS, "train": [(5, 1), (6, 2), (7, 1)]}
    for name, sums in rows.items():
        lines = [{"q": f"{a}+{b}=", "a": str(a + b), "choices": [str(a + b), str(a + b + 1)]} for a, b in sums]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = ", ".join(f"{name}: {folder / name}.jsonl" for name in rows)
    kind = (
        "output_type: generate_until\ndoc_to_target: '{{a}}'\n"
        if generates
        else "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: 0\n"
    )
    own = "" if "generation_kwargs" in text or not generates else "generation_kwargs: {until: ['|'], max_gen_toks: 4}\n"
    metric = "exact_match" if generates else "acc"
    listed = (
        ""
        if "metric_list" in text
        else f"metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]\n"
    )
    file = folder / "sums.yaml"
    file.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{{files}}}}}\n{splits}\n"
        f"doc_to_text: 'Q: {{{{q}}}}'\n{kind}{own}{listed}{text}\n"
    )
    return str(file)


def evaluate(model: Path, task: str, out: Path, *flags: str) -> int:
    return main(["evaluate", str(model), "--tasks", task, "--out", str(out), *flags])


def lines(out: Path) -> list[dict[str, Any]]:
    file = out.with_name(f"{out.stem}-samples.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rendered(folder: Path, *messages: tuple[str, str]) -> str:
    conversation = [{"role": role, "content": content} for role, content in messages]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


def test_a_prompt_is_what_the_tokenizer_makes_of_the_conversation(chat: Path, tmp_path: Path) -> None:
    out, task = tmp_path / "a.parquet", task_file(tmp_path)
    assert evaluate(chat, task, out, "--apply-chat-template", "--system-prompt", "be brief.", "--samples") == 0
    expected = [rendered(chat, ("system", "be brief."), ("user", f"Q: {a}+{b}=")) for a, b in SUMS]
    assert expected[0] == "<system>be brief.|<user>Q: 0+0=|<assistant>"
    assert [line["prompt"] for line in lines(out)] == expected


def test_worked_examples_are_turns_or_stand_in_one_message(chat: Path, tmp_path: Path) -> None:
    task = task_file(tmp_path, splits="test_split: test\ntraining_split: train\nfewshot_config: {sampler: first_n}")
    turns, one = tmp_path / "turns.parquet", tmp_path / "one.parquet"
    flags = ("--apply-chat-template", "--fewshot", "2", "--samples")
    assert evaluate(chat, task, turns, *flags) == 0
    assert evaluate(chat, task, one, *flags, "--no-fewshot-as-multiturn") == 0
    conversation = [("user", "Q: 5+1="), ("assistant", "6"), ("user", "Q: 6+2="), ("assistant", "8")]
    assert lines(turns)[0]["prompt"] == rendered(chat, *conversation, ("user", "Q: 0+0="))
    assert lines(one)[0]["prompt"] == rendered(chat, ("user", "Q: 5+1= 6\n\nQ: 6+2= 8\n\nQ: 0+0="))
    for out, multiturn in ((turns, True), (one, False)):
        row = pd.read_parquet(out).iloc[0]
        assert (row.fewshot, row.multiturn) == (2, multiturn)
        assert row.chat_template != ""


def test_the_tokens_of_a_rendered_prompt_have_one_beginning_token(tmp_path: Path) -> None:
    """A template that writes the beginning token, and a tokenizer that adds one."""
    from tokenizers.processors import TemplateProcessing

    from rlstride.evaluation.lm import Bench
    from rlstride.evaluation.models import parse_models

    folder = model_folder(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<unk>"})
    begin = ("<unk>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[begin])
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    tokenizer.save_pretrained(folder)
    lm = Bench("cpu").load(parse_models([str(folder)])[0])
    conversation = [{"role": "user", "content": "1+1="}]
    ids, _ = lm.tok_batch_encode([lm.apply_chat_template(conversation)])
    expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert tokenizer("1")["input_ids"][0] == tokenizer.bos_token_id
    assert ids[0].tolist() == expected


def test_a_system_prompt_is_read_from_a_file(chat: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("add\nthem.\n")
    out = tmp_path / "a.parquet"
    flags = ("--system-prompt", str(tmp_path / "prompt.txt"), "--samples")
    assert evaluate(chat, task_file(tmp_path), out, *flags, "--apply-chat-template") == 0
    assert lines(out)[0]["prompt"] == rendered(chat, ("system", "add\nthem."), ("user", "Q: 0+0="))
    assert pd.read_parquet(out).system_prompt.tolist() == ["add\nthem."]


@pytest.mark.parametrize(
    ("template", "flags", "message"),
    [
        (None, ["--apply-chat-template"], "has no chat template"),
        (NO_SYSTEM, ["--apply-chat-template", "--system-prompt", "hi"], "takes no system message"),
        (DEAF, ["--apply-chat-template", "--system-prompt", "hi"], "takes no system message"),
        ("{{ nothing.at.all }}", ["--apply-chat-template"], "its chat template fails"),
        (TEMPLATE, ["--fewshot-as-multiturn"], "give --apply-chat-template too"),
        (TEMPLATE, ["--fewshot", "-1"], "expected a whole number from 0"),
        (TEMPLATE, ["--fewshot", "2"], "no split to take worked examples from"),
        (TEMPLATE, ["--gen-kwargs", "temprature=1"], "temprature is no argument of generation"),
        (TEMPLATE, ["--gen-kwargs", "temperature"], "expected k=v,k=v or a JSON object"),
        (TEMPLATE, ["--gen-kwargs", "num_return_sequences=4"], "num_return_sequences is no argument"),
        (TEMPLATE, ["--gen-kwargs", "temperature=warm"], "temperature: expected a number from 0"),
        (TEMPLATE, ["--gen-kwargs", "max_gen_toks=0"], "max_gen_toks: expected a whole number from 1"),
        (TEMPLATE, ["--batch-size", "many"], "--batch-size: expected a whole number from 1"),
        (TEMPLATE, ["--system-prompt", " "], "has no text"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(
    template: str | None, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "model", template)
    out = tmp_path / "a.parquet"
    assert evaluate(model, task_file(tmp_path), out, *flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlstride evaluate:")]
    assert message in line
    assert not out.exists()


@pytest.mark.parametrize("flag", [["--apply-chat-template"], ["--fewshot", "1"], ["--gen-kwargs", "top_k=5"]])
def test_a_studys_prompts_and_decodings_are_its_own(
    flag: list[str], chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(Path(__file__).parents[2] / "config" / "studies" / "smoke.yaml")
    assert main(["evaluate", str(chat), "--study", study, "--out", str(tmp_path / "a.parquet"), *flag]) == 2
    assert f"{flag[0]}: a study has prompts (chat of a model)" in capsys.readouterr().err


def test_a_chat_model_scored_without_its_template_is_told_so_once(
    chat: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_file(tmp_path, generates=False)
    assert main(["evaluate", str(chat), str(base), "--tasks", task, "--out", str(tmp_path / "a.parquet")]) == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "chat template" in line]
    assert told.startswith("evaluate: chat: scored without the chat template")
    assert evaluate(base, task, tmp_path / "b.parquet") == 0
    assert evaluate(chat, task, tmp_path / "c.parquet", "--apply-chat-template") == 0
    assert "chat template" not in capsys.readouterr().err


def test_a_description_that_a_template_cannot_take_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = model_folder(tmp_path / "model", NO_SYSTEM), tmp_path / "a.parquet"
    task = task_file(tmp_path, "description: 'add them.'")
    assert evaluate(model, task, out, "--apply-chat-template", "--samples") == 0
    assert "sums: without the description" in capsys.readouterr().err
    assert lines(out)[0]["prompt"] == "<user>Q: 0+0=|<assistant>"


def test_a_system_prompt_that_a_template_refuses_among_turns_is_not_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picky = "{% if messages | length > 2 and messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    model, out = model_folder(tmp_path / "model", picky + TEMPLATE), tmp_path / "a.parquet"
    task = task_file(tmp_path, splits="test_split: test\ntraining_split: train")
    flags = ("--apply-chat-template", "--system-prompt", "add.")
    assert evaluate(model, task, out, *flags) == 0
    assert evaluate(model, task, tmp_path / "b.parquet", *flags, "--fewshot", "1") == 2
    assert "the chat template refuses it in 12 of 12 prompts of sums" in capsys.readouterr().err


def test_a_text_whose_likelihood_is_measured_stands_alone_and_that_is_told(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task_file(tmp_path)
    file = tmp_path / "text.yaml"
    file.write_text(
        f"task: text\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/test.jsonl}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}{{a}}'\n"
        "metric_list:\n  - {metric: word_perplexity}\n  - {metric: bits_per_byte}\n"
    )
    values = []
    for name, flags in (("a", []), ("b", ["--apply-chat-template", "--system-prompt", "be brief."])):
        out = tmp_path / f"{name}.parquet"
        assert evaluate(chat, str(file), out, "--samples", *flags) == 0
        values.append(pd.read_parquet(tmp_path / f"{name}-metrics.parquet").set_index("metric").value.to_dict())
        row = pd.read_parquet(out).iloc[0]
        assert (row.chat_template, row.system_prompt, row.generation) == ("", "", "")
    assert "text: measures the likelihood of whole texts" in capsys.readouterr().err
    assert values[0] == values[1]
    first = lines(out)[0]
    nats = sum(line["loglikelihoods"][0] for line in lines(out))
    size = sum(len(f"{a}+{b}={a + b}") for a, b in SUMS)
    assert first["prompt"] == "0+0=0"
    assert values[0]["bits_per_byte"] == pytest.approx(-nats / size / math.log(2))


def test_generation_arguments_replace_the_tasks_and_stand_in_the_row(chat: Path, tmp_path: Path) -> None:
    sampled = "generation_kwargs: {until: ['|'], max_gen_toks: 12, do_sample: false, temperature: 0.0}"
    task, texts, rows = task_file(tmp_path, sampled), {}, {}
    for name, flags in {
        "own": [],
        "short": ["--gen-kwargs", "max_new_tokens=2"],
        "warm": ["--gen-kwargs", "temperature=1.5"],
        "stopped": ["--gen-kwargs", '{"until": ["0", "1", "2", "a", "b"]}'],
    }.items():
        out = tmp_path / f"{name}.parquet"
        assert evaluate(chat, task, out, "--samples", *flags) == 0
        texts[name] = [line["completions"][0] for line in lines(out)]
        rows[name] = json.loads(pd.read_parquet(out).generation[0])
    assert max(map(len, texts["own"])) == 12
    assert max(map(len, texts["short"])) == 2
    for own, short in zip(texts["own"], texts["short"], strict=True):  # greedy, as the task has it
        assert own.startswith(short)
    assert texts["warm"] != texts["own"]  # a temperature alone asks for sampling
    assert not set("012ab") & set("".join(texts["stopped"]))
    assert rows["warm"] == {"until": ["|"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5, "top_k": 0}
    assert rows["short"] == {"until": ["|"], "max_new_tokens": 2, "do_sample": False}


def test_a_temperature_of_0_is_greedy_for_a_task_that_samples(chat: Path, tmp_path: Path) -> None:
    task = task_file(tmp_path, "generation_kwargs: {until: ['|'], max_gen_toks: 8, do_sample: true, temperature: 2.0}")
    texts = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.parquet"
        score_on_lm_eval_tasks(
            [f"{name}={chat}"], [task], out, prompting=_prompting(generation={"temperature": 0}), samples=True
        )
        texts.append([line["completions"] for line in lines(out)])
    assert texts[0] == texts[1]  # other names have other seeds


def _prompting(**options: Any) -> Any:
    from rlstride.evaluation.prompting import Prompting

    return Prompting(**options)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("temperature=0.6,top_p=0.95,max_gen_toks=512", {"temperature": 0.6, "top_p": 0.95, "max_gen_toks": 512}),
        ("do_sample=true, temperature=1", {"do_sample": True, "temperature": 1}),
        ('{"until": ["\\n\\n", "Q:"]}', {"until": ["\n\n", "Q:"]}),
    ],
)
def test_generation_arguments_are_read_as_lm_eval_reads_them(text: str, found: dict[str, Any]) -> None:
    assert parse_generation(text) == found


def test_generation_arguments_for_a_task_without_generation_are_refused(chat: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing is generated in sums"):
        score_on_lm_eval_tasks(
            [str(chat)],
            [task_file(tmp_path, generates=False)],
            tmp_path / "a.parquet",
            prompting=_prompting(generation={"temperature": 1.0}),
        )


def test_a_number_of_examples_that_a_task_fixes_is_kept_and_told(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_file(tmp_path, "num_fewshot: 0", splits="test_split: test\ntraining_split: train")
    assert evaluate(chat, task, tmp_path / "a.parquet", "--fewshot", "2") == 0
    assert "its file fixes 0 worked examples, so --fewshot 2 is left out" in capsys.readouterr().err
    assert pd.read_parquet(tmp_path / "a.parquet").fewshot.tolist() == [0]


def test_every_metric_of_a_task_under_every_filter_is_kept(chat: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(
        "def results(doc, answers):\n"
        "    text = answers[0] if isinstance(answers[0], str) else answers[0][0]\n"
        "    return {'has_digit': float(any(c.isdigit() for c in text)), 'length': float(len(text))}\n"
    )
    task = task_file(
        tmp_path,
        "process_results: !function metrics.results\nmetric_list:\n"
        "  - {metric: has_digit, aggregation: mean, higher_is_better: true}\n"
        "  - {metric: length, aggregation: mean, higher_is_better: false}\n"
        "filter_list:\n"
        "  - {name: whole, filter: [{function: take_first}]}\n"
        "  - {name: digits, filter: [{function: regex, regex_pattern: '([0-9])', fallback: ''},"
        " {function: take_first}]}\n",
    )
    out = tmp_path / "a.parquet"
    assert evaluate(chat, task, out, "--samples") == 0
    table = pd.read_parquet(tmp_path / "a-metrics.parquet").set_index(["filter", "metric"])
    assert sorted(table.index) == [(f, m) for f in ("digits", "whole") for m in ("has_digit", "length")]
    assert table.higher_is_better.to_dict() == {key: key[1] == "has_digit" for key in table.index}
    texts = [line["completions"][0] for line in lines(out)]
    digits = [next((c for c in text if c.isdigit()), "") for text in texts]
    for filter_name, answers in (("whole", texts), ("digits", digits)):
        lengths = [len(answer) for answer in answers]
        assert table.loc[(filter_name, "length"), "value"] == pytest.approx(sum(lengths) / len(SUMS))
        has = [any(map(str.isdigit, answer)) for answer in answers]
        share = sum(has) / len(SUMS)
        assert table.loc[(filter_name, "has_digit"), "value"] == pytest.approx(share)
        assert table.loc[(filter_name, "has_digit"), "stderr"] == pytest.approx(
            math.sqrt(share * (1 - share) / (len(SUMS) - 1)), abs=1e-9
        )
        assert [line["answers"][filter_name] for line in lines(out)] == answers
        assert [line["scores"][f"length,{filter_name}"] for line in lines(out)] == lengths
    row = pd.read_parquet(out).iloc[0]
    assert (row.metric, row.accuracy) == ("has_digit,whole", table.loc[("whole", "has_digit"), "value"])
    for column in ("variant", "step", "task", "decoding", "fewshot", "chat_template", "generation", "batch_size"):
        assert table[column].tolist() == [row[column]] * 4


def test_samples_of_a_choice_hold_its_continuations_and_their_likelihoods(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.parquet"
    assert evaluate(base, task_file(tmp_path, generates=False), out, "--samples") == 0
    first = lines(out)[0]
    assert (first["variant"], first["doc_id"], first["target"]) == ("base", 0, 0)
    assert (first["prompt"], first["continuations"]) == ("Q: 0+0=", [" 0", " 1"])
    likelier = first["loglikelihoods"][0] > first["loglikelihoods"][1]
    assert first["scores"] == {"acc,none": float(likelier)}


REPEATS = "repeats: 8\ngeneration_kwargs: {until: ['|'], max_gen_toks: 1, do_sample: true, temperature: 1.0}\n"
FILTERS = {
    "take_first": ("", 1),
    "maj": ("filter_list: [{name: maj, filter: [{function: majority_vote}, {function: take_first}]}]", 1),
    "maj_list": ("filter_list: [{name: maj, filter: [{function: majority_vote}]}]", 1),
    "first_5": ("filter_list: [{name: five, filter: [{function: take_first_k, k: 5}]}]", 5),
    "first_8": ("filter_list: [{name: all, filter: [{function: take_first_k, k: 8}]}]", 8),
}


@pytest.mark.parametrize("name", FILTERS)
def test_samples_are_the_completions_that_a_score_is_the_mean_of(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, averaged = FILTERS[name]
    out = tmp_path / "a.parquet"
    assert evaluate(base, task_file(tmp_path, REPEATS + text), out, "--samples") == 0
    (row,) = pd.read_parquet(out).itertuples()
    told = f"its file has repeats: 8, but its filter leaves {averaged} to average" in capsys.readouterr().err
    found = lines(out)
    assert {len(line["completions"]) for line in found} == {8}
    assert (row.samples, told) == (averaged, averaged != 8)
    if "maj" not in name:
        right = [[text == line["target"] for text in line["completions"][:averaged]] for line in found]
        assert row.accuracy == pytest.approx(sum(map(sum, right)) / (averaged * len(SUMS)))


def test_samples_are_counted_by_document() -> None:
    """Three completions of each were drawn; the filter left two of the first and three of the second."""
    documents = [
        {"resps": [["a", "b", "c"]], "filtered_resps": [["a", "b"]]},
        {"resps": [["a", "b", "c"]], "filtered_resps": [["a", "b", "c"]]},
    ]
    assert averaged_samples(documents) == 2
    # What a filter cuts one completion into is no number of completions.
    assert averaged_samples([{"resps": [["a b c"]], "filtered_resps": [["a", "b", "c"]]}]) == 1
    assert averaged_samples([{"resps": [[(-1.0, True)]] * 2, "filtered_resps": [(-1.0, True)] * 2}]) == 1


def test_prompts_that_the_model_cannot_take_whole_are_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.parquet"
    words = "a" * 400
    assert evaluate(base, task_file(tmp_path, f"description: {words}"), out) == 0
    assert pd.read_parquet(out).cut_prompts.tolist() == [len(SUMS)]
    assert f"up to {len(SUMS)} prompts were longer than the model takes" in capsys.readouterr().err
    whole = tmp_path / "whole.parquet"
    assert evaluate(base, task_file(tmp_path), whole) == 0
    assert pd.read_parquet(whole).cut_prompts.tolist() == [0]


def test_a_batch_size_changes_how_many_sequences_are_computed_at_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = LlamaForCausalLM.forward

    def seen(self: Any, input_ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(input_ids))
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", seen)
    texts = []
    for size in ("5", "12"):
        out = tmp_path / f"{size}.parquet"
        sizes.clear()
        assert evaluate(base, task_file(tmp_path), out, "--batch-size", size, "--samples") == 0
        assert max(sizes) == int(size)
        assert pd.read_parquet(out).batch_size.tolist() == [size]
        texts.append([line["completions"] for line in lines(out)])
    assert texts[0] == texts[1]


SCORINGS: list[Sequence[str]] = [
    (),
    ("--apply-chat-template",),
    ("--apply-chat-template", "--system-prompt", "be brief."),
    ("--system-prompt", "be brief."),
    ("--fewshot", "1"),
    ("--fewshot", "1", "--apply-chat-template"),
    ("--fewshot", "1", "--apply-chat-template", "--no-fewshot-as-multiturn"),
    ("--gen-kwargs", "max_gen_toks=2"),
    ("--batch-size", "3"),
    ("--limit", "5"),
]


def test_two_scorings_that_differ_are_never_taken_for_each_other(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before their tables are written, ten scorings of one file leave ten entries, and their rows all differ."""
    from rlstride.evaluation import score

    task, rows = task_file(tmp_path, splits="test_split: test\ntraining_split: train"), []
    out = tmp_path / "a.parquet"

    def killed(out: Path, found: list[Any], with_texts: bool) -> None:
        rows.extend(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "write_tables", killed)
    for flags in SCORINGS:
        assert evaluate(chat, task, out, *flags) == 1
    journal = (tmp_path / ".a.unfinished.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in journal}) == len(SCORINGS)
    assert len({json.dumps({**row.labels, **row.how}) for row in rows}) == len(SCORINGS)
    assert evaluate(chat, task, out, *SCORINGS[2]) == 1  # the same again is found
    assert len((tmp_path / ".a.unfinished.jsonl").read_text().splitlines()) == len(SCORINGS)
    lines_of_data = tmp_path / "test.jsonl"
    lines_of_data.write_text(lines_of_data.read_text().replace("0+0=", "9+0="))
    assert evaluate(chat, task, out, *SCORINGS[2]) == 1  # other problems under the same name are not
    assert len((tmp_path / ".a.unfinished.jsonl").read_text().splitlines()) == len(SCORINGS) + 1
