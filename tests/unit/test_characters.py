"""A published model whose tokenizer does not know a task's characters is refused by check, and told elsewhere."""

from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlstride.cli import main
from rlstride.study.load import load_study
from rlstride.zoo.bases import build_model
from rlstride.zoo.characters import missing_characters
from rlstride.zoo.tokenizer import build_tokenizer

CHAIN = "0123456789+-=#TQG"


def byte_level(normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, which knows every text, as those of published models do."""
    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_characters_that_are_unknown_dropped_or_read_back_as_others_are_missing() -> None:
    assert missing_characters(build_tokenizer(CHAIN), CHAIN) == []
    assert missing_characters(build_tokenizer("0123456789+-"), CHAIN) == list("=#TQG")
    assert missing_characters(byte_level(), CHAIN) == []
    assert missing_characters(byte_level(normalizers.Lowercase()), CHAIN) == list("TQG")
    assert missing_characters(byte_level(normalizers.Replace("#", "")), CHAIN) == ["#"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of a published model whose tokenizer knows digits and signs alone."""
    catalogue = Path(__file__).parents[2] / "config" / "config.yaml"
    published, tokenizer = tmp_path / "published", build_tokenizer("0123456789+-")
    model = build_model(load_study(catalogue).models["tiny-llama"], tokenizer)  # type: ignore[arg-type]
    model.save_pretrained(published)
    tokenizer.save_pretrained(published)
    settings = yaml.safe_load(catalogue.read_text(encoding="utf-8"))
    mine = {"models": ["mine"], "algorithms": ["grpo"], "controls": [], "results": str(tmp_path / "results")}
    define = {"models": {"mine": {"source": str(published)}}}
    define["algorithms"] = {"grpo": {"trainer": "grpo", "learning_rate": 1e-4}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(settings | mine | {"define": define}), encoding="utf-8")
    monkeypatch.chdir(catalogue.parents[1])  # where the task's catalogue is
    return file


SENTENCE = "its tokenizer does not know = # T Q G, of which the task chain is made"


def test_check_refuses_the_model_in_one_sentence(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--study", str(study)]) == 2
    source = study.parent / "published"
    assert capsys.readouterr().err == f"rlstride check: models.yaml: mine.source: {source}: {SENTENCE}\n"


def test_a_base_is_made_of_it_and_what_to_expect_is_told(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "base"
    assert main(["pretrain", "--study", str(study), "--model", "mine", "--out", str(out)]) == 0
    assert f"{SENTENCE}: expect no reward on it" in capsys.readouterr().err
    assert (out / "config.json").is_file()


def test_check_says_where_a_tokenizer_could_not_be_looked_at(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(study.read_text(encoding="utf-8"))
    settings["define"]["models"]["mine"]["source"] = str(tmp_path / "elsewhere")
    study.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["check", "--study", str(study)]) == 0
    said = capsys.readouterr().out
    assert f"mine: the tokenizer of {tmp_path / 'elsewhere'} cannot be read" in said
    assert "whether it knows the characters of chain is not checked" in said
