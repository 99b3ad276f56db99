"""docs/bring-your-own.md is true: its commands run, write what it names, and print what it shows.

In the document, in order: a block without a language lists files, path first; ``sh`` holds commands, one a line; and
``python`` a script, all scripts sharing one namespace. ``text`` right after one of these is what its first command or
the script prints, numbers aside; a line of dots in it stands for any lines.
"""

import contextlib
import hashlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pipeline import ROOT

from owner_runs import HUB_CACHE
from rlstride.cli import main

pytestmark = pytest.mark.slow  # two processes and a trainer write the runs

DOCUMENT = ROOT / "docs" / "bring-your-own.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"\s+# exit status (\d)$")
_OUTPUTS = re.compile(r"`((?:verl|trl|lora|my-run)/[\w./-]+)`")
_VALUE = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|nan|true|false)(?![\w.])", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """A fenced block of the document: its language and its text."""

    language: str
    text: str


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit status, and what it wrote to the two streams."""

    status: int
    out: str
    err: str


def blocks(document: str) -> list[Block]:
    return [Block(found[1], found[2]) for found in _BLOCK.finditer(document)]


def run(command: str) -> Ran:
    """Runs ``rlstride ...`` in this process, as the program of that name does."""
    program, *arguments = shlex.split(command)
    assert program == "rlstride", command
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as wrong:  # argparse, of a flag that does not exist
            status = int(wrong.code or 0)
    return Ran(status, out.getvalue(), err.getvalue())


def run_commands(text: str) -> str:
    """Runs each line, and checks its exit status; returns what the first of them says."""
    said = []
    for line in text.splitlines():
        found = _STATUS.search(line)
        command, expected = _STATUS.sub("", line), int(found[1]) if found else 0
        done = run(command)
        assert done.status == expected, f"{command}\n{done.err}"
        out = Path(shlex.split(command)[shlex.split(command).index("--out") + 1]) if " --out " in command else None
        assert out is None or out.exists() == (expected == 0), command
        said.append(done.err if expected else done.out)
    return said[0]


def run_script(text: str, names: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(text, names)
    return out.getvalue()


def assert_shown(shown: str, printed: str) -> None:
    """Line by line, with numbers, truth values and widths of columns left open."""
    patterns = [r"(?:.*\n)*" if line == "..." else re.escape(_bare(line)) + r"\n" for line in shown.splitlines()]
    found = "".join(f"{_bare(line)}\n" for line in printed.splitlines())
    assert re.fullmatch("".join(patterns), found), f"shown:\n{shown}\nprinted:\n{printed}"


def _bare(line: str) -> str:
    return " ".join(_VALUE.sub("#", line).split())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def there(owned: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with the hub's cache in place of a network."""
    monkeypatch.chdir(owned)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(owned / HUB_CACHE))
    return owned


def test_every_command_runs_and_prints_what_is_shown_and_leaves_the_runs_as_they_were(there: Path) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    before = digests(there)
    said, names = "", dict[str, Any]()
    ran = 0
    for block in blocks(document):
        match block.language:
            case "":
                absent = [line for line in block.text.splitlines() if not Path(line.split()[0]).is_file()]
                assert not absent, absent
            case "sh":
                said = run_commands(block.text)
                ran += block.text.count("\n")
            case "python":
                said = run_script(block.text, names)
            case "text":
                assert_shown(block.text, said)
            case "yaml" | "py":  # a file that the commands need, named in its first line
                name, text = re.fullmatch(r"# (\S+)\n(.*)", block.text, re.DOTALL).groups()  # type: ignore[union-attr]
                assert Path(name).read_text(encoding="utf-8") == text
            case other:
                raise AssertionError(f"the document has a block of {other!r}, which nothing checks")
    assert ran > 20
    outputs = set(_OUTPUTS.findall(document))
    assert len(outputs) > 5
    assert not [path for path in outputs if not Path(path).exists()]
    assert {file: digest for file, digest in digests(there).items() if file in before} == before


def test_a_flag_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no such option: --no-such-flag"):
        run_commands("rlstride inspect runs/verl --no-such-flag\n")


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no such folder"):
        run_commands(f"rlstride inspect {tmp_path}/nowhere\n")


def test_only_numbers_and_elided_lines_of_what_is_shown_are_left_open() -> None:
    assert_shown("a 1.50 False\n...\nend\n", "a   12,000 True\nb\nc\nend\n")
    for printed in ("a 1 False\nb\n", "a x False\nend\n", "c 1 False\nend\n"):
        with pytest.raises(AssertionError):
            assert_shown("a 1.50 False\n...\nend\n", printed)
