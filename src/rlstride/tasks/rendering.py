"""How a problem is put to a model: its prompt bare, or as a user's message in the tokenizer's chat template.

Training, scoring and what is shown of a first batch render prompts here, so that they are equal to the byte.
"""

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import TemplateError

from rlstride.config.models import Chat
from rlstride.errors import RequestError, first_line

Render = Callable[[str], str]


def bare(prompt: str) -> str:
    """The prompt as it is."""
    return prompt


def renderer(tokenizer: Any, chat: Chat | None) -> Render:
    """From a problem's prompt to what a model reads.

    A template that writes the token that begins a sequence would have it twice, as trainers and lm-eval tokenise
    prompts with the tokenizer's own special tokens: it is left out where the tokenizer puts it.

    Args:
        tokenizer: transformers'.
        chat: how the model is spoken to; None leaves prompts bare.

    Raises:
        RequestError: the tokenizer has no chat template, it fails, or it loses the system message or the prompt.
    """
    if chat is None:
        return bare
    where = tokenizer.name_or_path or "its folder"
    if tokenizer.chat_template is None:
        raise RequestError(f"models.yaml: chat: the tokenizer in {where} has no chat template; leave chat out")
    options = {} if chat.thinking is None else {"enable_thinking": chat.thinking}
    system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    begins = tokenizer.bos_token if _begins_sequences(tokenizer) else ""

    def render(prompt: str) -> str:
        messages = [*system, {"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        except (TemplateError, ValueError) as error:
            raise RequestError(f"{where}: its chat template fails ({first_line(error)})") from error
        for message in messages:
            if message["content"].strip() not in text:
                raise RequestError(f"{where}: its chat template loses the {message['role']} message")
        return str(text).removeprefix(begins)

    render("1 + 1 =")
    return render


def _begins_sequences(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its token before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("1")["input_ids"][:1] == [tokenizer.bos_token_id]
