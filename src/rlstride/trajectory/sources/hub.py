"""Checkpoints on the Hugging Face hub: ``hf://org/repo@revision``; ``{n}`` in the revision stands for the step."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rlstride.errors import RequestError, first_line

# What it lets through where a server cannot be reached: the error of httpx, or of httpx2 in later versions.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]

_SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@(.+))?")
_NUMBER = "{n}"
# Weights, configuration and tokenizer; never a repository's own code, nor pickled weights.
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class HubAddress:
    """A revision of a repository, or several: ``{n}`` in ``revision`` is any step's number."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> "HubAddress":
        """Raises: RequestError, where ``text`` is no ``hf://org/repo`` or ``hf://org/repo@revision``."""
        found = _ADDRESS.fullmatch(text)
        if not found or (found[2] or "").count(_NUMBER) > 1:
            raise RequestError(f"{text}: expected hf://org/repo@revision; {{n}} may stand once, for the step's number")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{_SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_address(text: str) -> bool:
    """Whether this is an address on the hub rather than a path."""
    return text.startswith(_SCHEME)


def is_repository(text: str) -> bool:
    """Whether this could be a repository's name, org/repo, written without the scheme: there is no such path."""
    return _ADDRESS.fullmatch(_SCHEME + text) is not None and not Path(text).exists()


def revisions(address: HubAddress, cache: Path | None = None) -> dict[HubAddress, int | None]:
    """The revisions that an address stands for, with their numbers, ascending; an address without ``{n}`` is its own.

    Branches and tags are listed on the hub; where it cannot be reached, those in the local cache stand in, which is
    printed.

    Args:
        address: what to expand.
        cache: the local cache; None is huggingface_hub's own.

    Raises:
        RequestError: no branch or tag fits.
    """
    if address.revision is None or _NUMBER not in address.revision:
        return {address: None}
    pattern = re.compile(re.escape(address.revision).replace(re.escape(_NUMBER), r"0*(\d+)"))
    names = _references(address, cache)
    numbers = {name: int(found[1]) for name in names if (found := pattern.fullmatch(name))}
    if not numbers:
        raise RequestError(f"{address}: none of the {len(names)} branches and tags is named like this")
    ordered = sorted(numbers, key=lambda name: numbers[name])
    return {replace(address, revision=name): numbers[name] for name in ordered}


def fetch(address: HubAddress, cache: Path | None = None) -> Path:
    """The local copy of a revision, downloaded where it is not in the cache yet.

    Raises:
        RequestError: there is no such revision, or the hub cannot be reached and the cache does not have it.
    """
    try:
        return Path(
            snapshot_download(address.repository, revision=address.revision, cache_dir=cache, allow_patterns=_FILES)
        )
    except (OSError, _HTTP_ERROR, HFValidationError) as error:
        raise RequestError(f"{address}: cannot be had from the hub or the local cache ({_sentence(error)})") from error


def _references(address: HubAddress, cache: Path | None) -> set[str]:
    try:
        found = HfApi().list_repo_refs(address.repository)
        return {ref.name for ref in [*found.branches, *found.tags]}
    except (OSError, _HTTP_ERROR, HFValidationError) as error:
        cached = _cached_references(address, cache)
        if not cached:
            raise RequestError(f"{address}: its branches and tags cannot be listed ({_sentence(error)})") from error
        print(f"{address}: the hub cannot be asked; the {len(cached)} cached revisions stand in", file=sys.stderr)
        return cached


def _cached_references(address: HubAddress, cache: Path | None) -> set[str]:
    try:
        repositories = scan_cache_dir(cache or constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return set()
    own = [repo for repo in repositories if repo.repo_type == "model" and repo.repo_id == address.repository]
    return {name for repo in own for name in repo.refs}


def _sentence(error: Exception) -> str:
    """What is wrong; of a message that may be a page, the first sentence."""
    if isinstance(error, RevisionNotFoundError):
        return "there is no such branch, tag or commit"
    if isinstance(error, GatedRepoError):  # a kind of the next one
        return "it is gated: ask for access on its page, then hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private: hf auth login"
    return first_line(error).split(". ")[0].rstrip(".")
