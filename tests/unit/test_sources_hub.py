"""Addresses on the hub, tried on a local cache in huggingface_hub's own layout; nothing here reaches the hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from foreign_runs import cached_revisions, tiny_model
from rlstride.errors import RequestError
from rlstride.trajectory.sources.hub import HubAddress, fetch, is_address, revisions


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    tiny_model("llama").save_pretrained(root / "model")
    names = ("main", "step_100", "step_20", "step_003", "step_x", "a_step_5")
    cached_revisions(root / "cache", "org/run", dict.fromkeys(names, root / "model"))
    return root / "cache"


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("hf://org/repo", "org/repo", None),
        ("hf://org/repo@main", "org/repo", "main"),
        ("hf://org/re.po-2@refs/pr/1", "org/re.po-2", "refs/pr/1"),
        ("hf://org/repo@step_{n}", "org/repo", "step_{n}"),
    ],
)
def test_an_address_is_a_repository_and_a_revision(text: str, repository: str, revision: str | None) -> None:
    address = HubAddress.parse(text)
    assert (address.repository, address.revision, str(address)) == (repository, revision, text)


@pytest.mark.parametrize("text", ["hf://repo", "hf://org/repo/folder", "hf://org/repo@", "hf://org/repo@{n}-{n}"])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert is_address(text)
    with pytest.raises(RequestError, match="expected hf://org/repo@revision"):
        HubAddress.parse(text)


def test_a_pattern_stands_for_every_revision_that_fits_in_order_of_its_number(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = revisions(HubAddress.parse("hf://org/run@step_{n}"), cache)
    assert [(address.revision, step) for address, step in found.items()] == [
        ("step_003", 3),
        ("step_20", 20),
        ("step_100", 100),
    ]
    assert "the hub cannot be asked; the 6 cached revisions stand in" in capsys.readouterr().err


def test_an_address_without_a_pattern_is_itself(cache: Path) -> None:
    address = HubAddress.parse("hf://org/run@step_20")
    assert revisions(address, cache) == {address: None}


def test_a_cached_revision_is_had_without_the_hub(cache: Path) -> None:
    folder = fetch(HubAddress.parse("hf://org/run@step_20"), cache)
    assert (folder / "model.safetensors").is_file()
    assert folder.is_relative_to(cache)


@pytest.mark.parametrize("text", ["hf://org/run@step_21", "hf://org/other"])
def test_what_is_not_in_the_cache_is_one_sentence(cache: Path, text: str) -> None:
    with pytest.raises(RequestError, match="cannot be had from the hub or the local cache") as error:
        fetch(HubAddress.parse(text), cache)
    assert str(error.value).startswith(f"{text}: ")
    assert "\n" not in str(error.value)


def test_a_pattern_that_fits_nothing_is_refused(cache: Path) -> None:
    with pytest.raises(RequestError, match="none of the 6 branches and tags is named like this"):
        revisions(HubAddress.parse("hf://org/run@checkpoint-{n}"), cache)
    with pytest.raises(RequestError, match="its branches and tags cannot be listed"):
        revisions(HubAddress.parse("hf://org/other@step_{n}"), cache)


def test_a_hub_that_does_not_answer_is_like_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    assert list(revisions(HubAddress.parse("hf://org/run@step_{n}"), cache).values()) == [3, 20, 100]
    with pytest.raises(RequestError, match="its branches and tags cannot be listed"):
        revisions(HubAddress.parse("hf://org/other@step_{n}"), cache)
