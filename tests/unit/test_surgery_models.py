import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from planted_run import STEPS, SmallRun
from rlstride.cli import main
from rlstride.config.variants import parse_ablation
from rlstride.edits.model_writer import write_model
from rlstride.edits.step_edits import write_ablations
from rlstride.errors import RequestError


def ablate(run: SmallRun, out: Path, *flags: str) -> int:
    return main(["ablate", str(run.path), "--out", str(out), *flags])


def test_an_edited_model_opens_as_an_ordinary_one(small_run: SmallRun, tmp_path: Path) -> None:
    assert ablate(small_run, tmp_path / "model", "--rank", "1") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert model.state_dict().keys() == written.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, written[name])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("1+2=")["input_ids"]) == "1+2="


def test_the_card_states_method_step_base_and_that_nothing_was_measured(small_run: SmallRun, tmp_path: Path) -> None:
    assert ablate(small_run, tmp_path / "model", "--rank", "2", "--step", "4") == 0
    card = (tmp_path / "model" / "README.md").read_text()
    for fact in (
        "rank-2 update",
        "- step: 4",
        "accuracy is not measured",
        *small_run.trajectory.manifest.base.sha256.values(),
    ):
        assert fact in card


def test_several_variants_go_into_a_folder_each(small_run: SmallRun, tmp_path: Path) -> None:
    assert ablate(small_run, tmp_path / "models", "--variants", "rank_1,in_scope_full") == 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["in_scope_full", "rank_1"]


def test_the_work_is_in_the_ledger(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    assert ablate(run, tmp_path / "models", "--variants", "rank_1,rank_2") == 0
    entry = json.loads((run.folder / "ledger" / "ablate.jsonl").read_text())
    assert (entry["status"], entry["step"], entry["variants"]) == ("done", STEPS[-1], ["rank_1", "rank_2"])


@pytest.mark.parametrize("step", ["3", "22"])
def test_a_step_that_was_not_kept_is_refused(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    assert ablate(small_run, tmp_path / "model", "--rank", "1", "--step", step) == 2
    assert f"step {step}" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_the_base_has_no_update_to_edit(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="step 0 is the base"):
        write_ablations(small_run.trajectory, 0, {tmp_path / "model": parse_ablation("rank_1")})


def test_a_folder_of_something_else_is_never_replaced(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "thesis"
    keep.mkdir()
    (keep / "chapter.tex").write_text("years of work")
    assert ablate(small_run, keep, "--rank", "1", "--force") == 2
    assert "holds something other than an edited model" in capsys.readouterr().err
    assert (keep / "chapter.tex").read_text() == "years of work"


def test_an_edited_model_is_replaced_by_its_next_version_only_with_force(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "model" / "README.md"
    assert ablate(small_run, tmp_path / "model", "--rank", "1") == 0
    assert ablate(small_run, tmp_path / "model", "--rank", "2") == 2
    assert "an edited model here already; name another one, or replace it with --force" in capsys.readouterr().err
    assert "rank-1 update" in card.read_text()
    assert ablate(small_run, tmp_path / "model", "--rank", "2", "--force") == 0
    assert "rank-2 update" in card.read_text()


def test_a_write_that_fails_leaves_the_earlier_model_whole(small_run: SmallRun, tmp_path: Path) -> None:
    base = small_run.trajectory.base_folder
    source = small_run.trajectory.source(0)
    whole = {name: source.tensor(name) for name in source.names()}
    write_model(tmp_path / "model", base, whole, "first")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):  # safetensors refuses two names for one storage
        write_model(tmp_path / "model", base, whole | {"model.norm.weight": shared, "lm_head.weight": shared}, "second")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
