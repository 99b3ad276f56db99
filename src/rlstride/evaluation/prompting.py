"""How lm-eval's tasks are put to a model: its chat template, a system prompt, worked examples, generation arguments."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.utils import simple_parse_args_string
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rlstride.errors import RequestError, first_line
from rlstride.evaluation.completions import score_each_completion
from rlstride.evaluation.models import Candidate
from rlstride.generation import settled_sampling

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval takes the first it finds
_OF_LM_EVAL = {"until", *_LENGTHS}
_NOT_ONE_TEXT = {"num_return_sequences", "return_dict_in_generate"}  # what lm-eval cannot take apart
_TOKENIZER_FILES = {".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Prompting:
    """What is asked for beside a task's own settings; the default leaves every task as its file has it.

    Attributes:
        chat_template: whether prompts are rendered with the tokenizer's chat template.
        multiturn: with it, whether worked examples are turns of the conversation, or all in one message.
        system_prompt: before everything else; a system message where there is a template.
        fewshot: worked examples before each problem; None is the task's own number.
        generation: arguments that replace the task's.
        batch_size: sequences at once, or "auto"; None is this project's choice for the model.
        template_options: further arguments of the chat template, such as enable_thinking.
        completions: of each problem, every one scored by itself; None is the task's own way.
        pass_at: the values of k of pass@k, none above ``completions``.

    Raises:
        RequestError: pass@k is asked for of fewer completions than k.
    """

    chat_template: bool = False
    multiturn: bool = False
    system_prompt: str | None = None
    fewshot: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    completions: int | None = None
    pass_at: Sequence[int] = ()

    def __post_init__(self) -> None:
        drawn = self.completions or 0
        if wrong := [k for k in self.pass_at if not 1 <= k <= drawn]:
            raise RequestError(
                f"--pass-at: pass@{wrong[0]} cannot be told from {drawn} completions: give --completions"
            )

    def columns(self, task: Any, template: str | None) -> dict[str, str | int | bool]:
        """What a row says of how its task was put: two scorings that differ in it are told apart by these.

        Args:
            task: lm-eval's, after :func:`prepare_tasks`.
            template: the chat template that prompts are rendered with, if they are.
        """
        generates, asked = task.OUTPUT_TYPE == "generate_until", not _is_plain_text(task)
        return {
            "fewshot": int(task.get_config("num_fewshot") or 0) if asked else 0,
            "chat_template": text_digest(template) if template and asked else "",
            "multiturn": self.multiturn and asked,
            "system_prompt": (self.system_prompt or "") if asked else "",
            "generation": _as_text(task.get_config("generation_kwargs") or {}) if generates else "",
            "batch_size": str(self.batch_size or ""),
        }

    def further(self) -> dict[str, Any]:
        """What else decides a score, but is no column."""
        return {
            "template_options": dict(self.template_options),
            "completions": self.completions,
            "pass_at": list(self.pass_at),
        }


def read_system_prompt(text: str) -> str:
    """The text itself, or that of the file that it names, without the newline at its end.

    Raises:
        RequestError: the text is empty.
    """
    file = Path(text)
    is_file = len(text) < 1000 and "\n" not in text and file.is_file()  # a longer name would be an error to look for
    prompt = file.read_text(encoding="utf-8").removesuffix("\n") if is_file else text
    if not prompt.strip():
        raise RequestError(f"--system-prompt: {text!r} has no text")
    return prompt


def parse_generation(text: str) -> dict[str, Any]:
    """``k=v,k=v`` as lm-eval reads it, or a JSON object, which can hold lists.

    Raises:
        RequestError: a name is no argument of transformers' ``generate`` or of lm-eval, or has a wrong value.
    """
    if text.strip().startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise RequestError(f"--gen-kwargs: this is no JSON object ({error})") from error
    else:
        parts = [part for part in text.split(",") if part.strip()]
        if not parts or any("=" not in part for part in parts):
            raise RequestError(f"--gen-kwargs: expected k=v,k=v or a JSON object, not {text!r}")
        found = {name.strip(): value for name, value in simple_parse_args_string(text).items()}
    known = set(GenerationConfig().to_dict()) | _OF_LM_EVAL
    for name, value in found.items():
        if name not in known or name in _NOT_ONE_TEXT or name.startswith(("_", "output_")):
            raise RequestError(f"--gen-kwargs: {name} is no argument of generation that can be scored with")
        if name in _LENGTHS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RequestError(f"--gen-kwargs: {name}: expected a whole number from 1, not {value!r}")
    temperature, sampled = found.get("temperature", 1.0), found.get("do_sample", True)
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, (int, float))
        or not 0 <= temperature < float("inf")
    ):
        raise RequestError(f"--gen-kwargs: temperature: expected a number from 0, not {temperature!r}")
    if not isinstance(sampled, bool):
        raise RequestError(f"--gen-kwargs: do_sample: expected true or false, not {sampled!r}")
    return found


def prepare_tasks(tasks: Mapping[str, Any], prompting: Prompting) -> list[str]:
    """Puts worked examples, generation arguments and numbers of completions into lm-eval's tasks.

    Returns:
        sentences to tell: what was asked for and cannot be done with a task.

    Raises:
        RequestError: no task generates text, one runs what a model writes, there is nothing to take worked examples
            from, or completions cannot be scored one by one.
    """
    notes = []
    if prompting.generation and all(task.OUTPUT_TYPE != "generate_until" for task in tasks.values()):
        raise RequestError(
            f"--gen-kwargs: nothing is generated in {', '.join(tasks)}: answers are scored by likelihood"
        )
    asked = [prompting.chat_template, prompting.system_prompt is not None, bool(prompting.fewshot)]
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RequestError(f"{name}: it runs the code that a model writes, which is not done here")
        own, fewshot = task.get_config("num_fewshot"), None if _is_plain_text(task) else prompting.fewshot
        if _is_plain_text(task) and any(asked):
            notes.append(
                f"{name}: measures the likelihood of whole texts, which stand alone: nothing is put before them"
            )
        if fewshot and own == 0:  # lm-eval's own rule
            notes.append(f"{name}: its file fixes 0 worked examples, so --fewshot {fewshot} is left out")
            fewshot = 0
        if fewshot:
            _require_examples(name, task, fewshot)
        task.set_config("num_fewshot", (own or 0) if fewshot is None else fewshot)
        if prompting.generation and task.OUTPUT_TYPE == "generate_until":
            task.set_config("generation_kwargs", merged_generation(name, task, prompting.generation))
        if prompting.completions is not None:
            score_each_completion(name, task, prompting.completions, prompting.pass_at)
    return notes


def merged_generation(name: str, task: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation arguments, with those that are asked for in place of its own.

    A temperature alone says whether there is sampling, and one name of the greatest length replaces all others of it.

    Raises:
        RequestError: sampling is asked for, but the task's temperature is 0.
    """
    own = dict(task.get_config("generation_kwargs") or {})
    if any(length in asked for length in _LENGTHS):
        own = {key: value for key, value in own.items() if key not in _LENGTHS}
    if "temperature" in asked and "do_sample" not in asked:
        own.pop("do_sample", None)
    if asked.get("do_sample") and "temperature" not in asked and own.get("temperature") == 0:
        raise RequestError(f"--gen-kwargs: do_sample=true, but {name} decodes at temperature 0: add temperature=T")
    return settled_sampling({**own, **asked})


def chat_template(candidate: Candidate) -> tuple[PreTrainedTokenizerBase, str | None]:
    """A model's tokenizer, and the template that its conversations are rendered with; None where it has none.

    Raises:
        RequestError: transformers cannot load the tokenizer, or it has several templates without a default.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(candidate.tokenizer)
        if tokenizer.chat_template is None:
            return tokenizer, None
        return tokenizer, str(tokenizer.get_chat_template())
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{candidate.tokenizer}: transformers cannot load this tokenizer ({first_line(error)})"
        ) from error


def require_template(candidate: Candidate, tokenizer: PreTrainedTokenizerBase, prompting: Prompting) -> bool:
    """Whether the template takes a system message.

    Raises:
        RequestError: the tokenizer has no template, the template fails, or it loses the system prompt asked for.
    """
    if tokenizer.chat_template is None:
        raise RequestError(
            f"--apply-chat-template: the tokenizer in {candidate.tokenizer} has no chat template; "
            "score this model without one"
        )
    user, probe = {"role": "user", "content": "?"}, prompting.system_prompt or "A probe."
    try:
        tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError) as error:
        raise RequestError(f"{candidate.tokenizer}: its chat template fails ({first_line(error)})") from error
    try:
        system = {"role": "system", "content": probe}
        taken = probe.strip() in str(tokenizer.apply_chat_template([system, user], tokenize=False))
    except TemplateError:
        taken = False
    if prompting.system_prompt is not None and not taken:
        raise RequestError(
            f"--system-prompt: the chat template of {candidate.tokenizer} takes no system message; put the text into "
            "the task's prompts"
        )
    return taken


def files_digest(folder: str) -> str:
    """A digest of a tokenizer's, and a model's, small files; empty for a repository on the hub."""
    digest = hashlib.sha256()
    files = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    for file in files:
        if file.suffix in _TOKENIZER_FILES and file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest() if files else ""


def documents_digest(task: Any, limit: int | None) -> str:
    """A digest of the problems that a task asks, and of those that its worked examples are drawn from."""
    digest = hashlib.sha256()
    for _, document in task.doc_iterator(limit=limit):
        digest.update(_as_text(document).encode())
    for document in _examples(task) if task.get_config("num_fewshot") else []:
        digest.update(_as_text(document).encode())
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """Twelve characters that tell one text from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_plain_text(task: Any) -> bool:
    return bool(task.OUTPUT_TYPE == "loglikelihood_rolling")


def _require_examples(name: str, task: Any, count: int) -> None:
    """Worked examples must not be the problems that are asked, but where lm-eval leaves each out of its own prompt."""
    if not hasattr(task, "sampler"):  # a task written in Python, which draws them in its own way
        return
    if len(_examples(task)) < count:
        raise RequestError(f"--fewshot: {name} has {len(_examples(task))} worked examples to draw from, not {count}")
    config, pool = task.config, task.fewshot_cfg
    if pool.split is None and pool.samples is not None:
        return
    drawn_from = pool.split or config.training_split or config.validation_split or config.test_split
    asked_from = config.test_split or config.validation_split
    if drawn_from == asked_from and pool.split != config.test_split:
        raise RequestError(
            f"--fewshot: {name} has no split to take worked examples from but the one that is scored, so a problem's "
            "answer could stand in its own prompt; give the task a fewshot_split or training_split"
        )


def _examples(task: Any) -> list[Any]:
    return list(task.sampler.df) if hasattr(task, "sampler") else []


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)


def names_of(candidates: Sequence[Candidate]) -> str:
    """Models as a sentence names them: the first three, and how many more."""
    names = list(dict.fromkeys(candidate.variant for candidate in candidates))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
