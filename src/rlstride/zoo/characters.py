"""Whether a model's tokenizer knows the characters of a task: a published one may not; a tiny one is made of them."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlstride.config.models import PackageFile, PublishedModel
from rlstride.errors import RequestError, first_line
from rlstride.study.paths import SOURCE_REPORT, source_folder
from rlstride.study.study import Study
from rlstride.tasks import Task, build_task


def check_tokenizers(study: Study) -> list[str]:
    """Looks at the tokenizer of every published model of a study.

    Returns:
        a sentence for each that cannot be read here, such as that of a hub that is not reached.

    Raises:
        RequestError: one lacks characters of the study's task, or a model's folder holds no tokenizer.
    """
    unread, task = [], build_task(study.spec.task, study.task)
    for name, model in study.models.items():
        if not isinstance(model, PublishedModel):
            continue
        fetched = source_folder(study, name)
        place = fetched if fetched is not None and (fetched / SOURCE_REPORT).is_file() else model.source
        try:
            if isinstance(place, PackageFile):
                raise OSError("it is not fetched yet")
            tokenizer = AutoTokenizer.from_pretrained(place, revision=model.revision)
        except (OSError, ValueError) as error:
            reason = f"the tokenizer of {model.source} cannot be read ({first_line(error)})"
            if fetched is None:
                raise RequestError(f"models.yaml: {name}.source: {reason}") from error
            unread.append(f"{name}: {reason}; whether it knows the characters of {task.name} is not checked.")
        else:
            if lacks := lacking_characters(tokenizer, task):
                raise RequestError(f"models.yaml: {name}.source: {model.source}: {lacks}")
    return unread


def lacking_characters(tokenizer: PreTrainedTokenizerBase, task: Task) -> str | None:
    """What keeps a tokenizer from writing what a task is made of, as a part of a sentence; None where nothing does."""
    missing = missing_characters(tokenizer, task.alphabet)
    return (
        f"its tokenizer does not know {' '.join(missing)}, of which the task {task.name} is made" if missing else None
    )


def missing_characters(tokenizer: PreTrainedTokenizerBase, characters: str) -> list[str]:
    """Those of some characters that a tokenizer drops, takes for unknown, or reads back as another."""
    missing = []
    for character in characters:
        tokens = tokenizer.encode(character, add_special_tokens=False)
        is_unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens
        if is_unknown or character not in str(tokenizer.decode(tokens)):
            missing.append(character)
    return missing
