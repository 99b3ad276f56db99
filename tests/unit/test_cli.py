import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from rlstride.cli.app import cluster, main, with_all_verbs
from rlstride.config.methods import METHODS
from rlstride.progress import hush, track


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "--study", "nowhere.yaml"], "rlstride check: nowhere.yaml: there is no such file"),
        (["spectra", "nowhere", "--out", "x.parquet"], "rlstride spectra: nowhere: no manifest.json here"),
        (
            ["spectra", "nowhere", "--rank", "0", "--out", "x"],
            "rlstride spectra: --rank: expected a whole number from 1",
        ),
        (["ablate", "nowhere", "--rank", "1", "--out", "x"], "rlstride ablate: nowhere: no manifest.json here"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_exit_status_2(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert len(error.strip().splitlines()) == 1


VERBS = {
    " ".join([*place, command.name or ""]): typer.main.get_command_from_info(
        command_info=command, pretty_exceptions_short=True, rich_markup_mode=None
    )
    for place, group in (((), with_all_verbs()), (("cluster",), cluster))
    for command in group.registered_commands
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_that_it_can_read(verb: str) -> None:
    examples = re.findall(r"^Example: rlstride (.*)$", VERBS[verb].help or "", flags=re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(verb)
        VERBS[verb].make_context(verb, shlex.split(example.removeprefix(verb)))  # raises where it cannot


def test_an_option_of_several_verbs_has_one_meaning_and_one_default() -> None:
    seen: dict[str, set[tuple[str, str]]] = {}
    for verb in VERBS.values():
        for parameter in verb.params:
            for flag in parameter.opts:
                seen.setdefault(flag, set()).add((str(parameter.default), str(parameter.help)))
    for flag in ("--device", "--decoding", "--force", "--model-key", "--json", "--debug", "--quiet"):
        assert len(seen[flag]) == 1, flag


def test_results_are_json_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert [method["method"] for method in methods] == list(METHODS)


def test_a_quiet_verb_says_nothing_of_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    hush(True)
    assert list(track([1, 2], "work")) == [1, 2]
    hush(False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_verbs(shell: str) -> None:
    command = str(Path(sys.executable).parent / "rlstride")

    def asked(what: str, **words: str) -> str:
        environment = os.environ | {"_RLSTRIDE_COMPLETE": f"{what}_{shell}"} | words
        return subprocess.run([command], env=environment, capture_output=True, text=True, check=True).stdout

    assert "_RLSTRIDE_COMPLETE" in asked("source")
    words = {"COMP_WORDS": "rlstride sp", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "rlstride sp"}
    assert "spectra" in asked("complete", **words)


def test_a_base_that_reads_like_a_repository_is_hinted_at_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ingest", "run", "--base", "Qwen/Qwen2.5-0.5B", "--out", "out"]) == 2
    assert capsys.readouterr().err.strip().endswith("model folder, or on the hub hf://Qwen/Qwen2.5-0.5B")
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert main(["ingest", "run", "--base", "models/mine", "--out", "out"]) == 2
    assert "hf://" not in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error_to_speak_of() -> None:
    grid = Path(__file__).parents[2] / "config" / "studies" / "grid.yaml"
    command = [sys.executable, "-m", "rlstride.cli", "check", "--study", str(grid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == ""
        assert process.wait(timeout=300) == 1


def test_a_wrong_cell_names_those_that_there_are(default_study_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["train", "--study", default_study_file, "--cell", "tiny-llama/ppo/0", "--out", "x"])
    assert status == 2
    assert "there is no cell 'tiny-llama/ppo/0'; the study has tiny-qwen3/grpo/0," in capsys.readouterr().err


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of the installed command."""
    result = subprocess.run([sys.executable, "-m", "rlstride.cli", *arguments], capture_output=True, text=True)
    return result.returncode, result.stderr


def test_a_process_ends_with_its_verbs_status_and_no_package_that_it_imports_says_a_word() -> None:
    status, error = run("evaluate", "nowhere", "--out", "x")
    assert status == 2
    assert error.startswith("rlstride evaluate: give either --study")
    assert len(error.strip().splitlines()) == 1


def test_debug_shows_where_an_error_came_from() -> None:
    status, error = run("check", "--study", "nowhere.yaml", "--debug")
    assert status == 1
    assert "Traceback" in error


def test_checking_a_study_does_not_wait_for_torch(default_study_file: str) -> None:
    code = (
        "import sys; from rlstride.cli import main; main(['check', '--study', sys.argv[1]]); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, default_study_file], check=True, capture_output=True)


@pytest.mark.slow
def test_training_does_not_wait_for_mlflow(default_study_file: str, tmp_path: Path) -> None:
    code = (
        "import sys; from rlstride.cli import main; "
        "status = main(['train', '--study', sys.argv[1], '--cell', 'tiny-qwen3/grpo/0', '--out', 'trajectory']); "
        "assert status == 2 and 'trl' in sys.modules and 'mlflow' not in sys.modules"  # 2: the base is not there
    )
    file = Path(default_study_file).resolve()
    subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, cwd=tmp_path)
