"""Checkpoints that DeepSpeed wrote are read as its own zero_to_fp32 converts them, and run nothing.

The files are in tests/fixtures/deepspeed, with the script that made them.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.trajectory.manifest import read_manifest
from rlstride.trajectory.sources import formats
from rlstride.trajectory.sources.recognise import find_checkpoint
from rlstride.trajectory.sources.safe_load import load_deepspeed
from rlstride.trajectory.sources.zero import ZeROShards

FIXTURES = Path(__file__).parents[1] / "fixtures" / "deepspeed"
STEPS = sorted(file.with_suffix("") for file in FIXTURES.glob("*/*.safetensors") if file.parent.name != "base")
WEIGHT = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
RUN = FIXTURES / "zero2-bf16-groups"
ZERO3 = FIXTURES / "zero3-bf16-groups"
MODEL, MODEL3 = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_model_states.pt"
MASTERS = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"

every_step = pytest.mark.parametrize("folder", STEPS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")


def copied(case: Path, tmp_path: Path) -> Path:
    """A copy of a case's last step."""
    return Path(shutil.copytree(case / "global_step2", tmp_path / "run" / "global_step2"))


def edited(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Writes a file again after a change, without DeepSpeed's own records."""
    state = load_deepspeed(file, "")
    inner = state.get("optimizer_state_dict", {})
    for record in ("loss_scaler", "zero_stage", "param_slice_mappings"):
        inner.pop(record, None)
    edit(state)
    torch.save(state, file.with_suffix(".new"))  # the tensors are still mapped from the file itself
    file.with_suffix(".new").replace(file)


@every_step
def test_every_tensor_is_what_deepspeeds_own_conversion_gives_to_the_bit(folder: Path) -> None:
    source, expected = ZeROShards(folder), load_file(folder.with_suffix(".safetensors"))
    # The conversion leaves out what ZeRO 1 does not train.
    kept = {EMBEDDING, "lm_head.weight"} if folder.parent.name == "zero1-bf16-frozen" else set()
    assert set(source.names()) - expected.keys() == kept - expected.keys()
    for name, tensor in expected.items():
        found = source.tensor(name)
        assert (found.dtype, source.dtype(name)) == (tensor.dtype, tensor.dtype)
        assert source.shape(name) == tuple(tensor.shape)
        assert torch.equal(found, tensor)


@every_step
def test_rows_are_those_of_the_whole_tensor_wherever_the_ranks_were_cut(folder: Path) -> None:
    source = ZeROShards(folder)
    for name in source.names():
        whole = source.tensor(name)
        for start, stop in ((0, 3), (1, 2), (len(whole) - 2, len(whole)), (2, 2), (-2, 99)):
            assert torch.equal(source.rows(name, start, stop), whole[start:stop])


def test_the_cases_have_what_makes_the_layout_hard() -> None:
    def masters(case: str, rank: int) -> Any:
        prefix = "" if "fp32" in case else "bf16_"
        name = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        return load_deepspeed(FIXTURES / case / "global_step2" / name, "")["optimizer_state_dict"]

    def lengths(case: str) -> list[int]:
        return [len(masters(case, rank)["single_partition_of_fp32_groups"][0]) for rank in range(3)]

    # 752 numbers, filled up to 756 = 126 * (2 * 3): some optimisers save the filling, some do not.
    assert lengths("zero2-bf16-groups") == [252, 252, 248]
    assert lengths("zero1-bf16-optimizer") == [252, 252, 252]
    assert any(gap for group in masters("zero2-bf16-aligned", 0)["param_alignment_paddings"] for gap in group)
    assert len(masters("zero3-bf16-groups", 0)["fp32_flat_groups"]) > 2  # more than there are parameter groups
    shapes = load_deepspeed(ZERO3 / "global_step2" / MODEL3.format(0), "")["frozen_param_shapes"]
    assert shapes[EMBEDDING].numel() % 3


def test_masters_are_finer_than_the_weights_of_training_which_are_their_rounding() -> None:
    folder = RUN / "global_step2"
    source, trained = ZeROShards(folder), load_deepspeed(folder / MODEL, "")["module"]
    assert source.names() == sorted(trained)
    for name in source.names():
        assert torch.equal(source.tensor(name).bfloat16(), trained[name])
    assert not torch.equal(source.tensor(WEIGHT), trained[WEIGHT].float())


@pytest.mark.parametrize("case", ["zero1-bf16-frozen", "zero2-bf16-frozen", "zero3-bf16-groups"])
def test_a_frozen_weight_is_the_bases_in_the_dtype_of_training(case: str) -> None:
    source, base = ZeROShards(FIXTURES / case / "global_step2"), load_file(FIXTURES / "base" / "model.safetensors")
    assert torch.equal(source.tensor(EMBEDDING), base[EMBEDDING].bfloat16())
    assert source.dtype(WEIGHT) is torch.float32
    assert source.remark is None


def test_a_weight_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    folder = copied(RUN, tmp_path)
    source = ZeROShards(folder)
    row = source.tensor(EMBEDDING)[0].clone()
    file = folder / MASTERS.format(0)
    data = file.read_bytes()
    at = data.index(row.numpy().tobytes())
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes(row.nbytes))
    assert not source.rows(EMBEDDING, 0, 1).any()


def test_without_the_optimisers_files_the_weights_of_training_are_read_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(RUN, tmp_path)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    source = ZeROShards(folder)
    remark = "without its ZeRO optimiser's files, so the weights are bfloat16, not the fp32 masters"
    assert source.remark == remark
    assert {source.dtype(name) for name in source.names()} == {torch.bfloat16}
    assert main(["ingest", str(folder), "--base", str(FIXTURES / "base"), "--out", str(tmp_path / "t")]) == 0
    assert f"ingest: step 2: {remark}" in capsys.readouterr().err
    assert read_manifest(tmp_path / "t").steps[0].dtype == "bfloat16"
    assert main(["inspect", str(folder)]) == 0
    assert f"DeepSpeed ZeRO shards, one file for each rank, {remark}" in capsys.readouterr().out


def test_weights_trained_in_fp32_are_their_own_masters(tmp_path: Path) -> None:
    folder = copied(FIXTURES / "zero2-fp32-tied", tmp_path)
    masters = ZeROShards(folder)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    source = ZeROShards(folder)
    assert source.remark is None
    assert all(torch.equal(source.tensor(name), masters.tensor(name)) for name in masters.names())


@pytest.mark.parametrize("case", [RUN, ZERO3])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_rank_is_named(case: Path, rank: int, tmp_path: Path) -> None:
    folder = copied(case, tmp_path)
    (folder / MASTERS.format(rank)).unlink()
    with pytest.raises(RequestError, match=f"{MASTERS.format(rank)}: missing; 2 of 3 ranks' files are here$"):
        ZeROShards(folder)
    (folder.parent / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        RequestError, match=r"\(move global_step2 away, and model\.safetensors beside it is read, in the dtype"
    ):
        ZeROShards(folder)


def test_the_files_that_name_the_weights_may_not_be_missing(tmp_path: Path) -> None:
    folder = copied(RUN, tmp_path / "2")
    (folder / MODEL).unlink()
    with pytest.raises(RequestError, match=f"{MODEL}: missing; it names the weights"):
        ZeROShards(folder)
    folder = copied(ZERO3, tmp_path / "3")
    (folder / MODEL3.format(2)).unlink()
    with pytest.raises(RequestError, match=f"{MODEL3.format(2)}: missing; 2 of 3 ranks' files are here"):
        ZeROShards(folder)
    (folder / MODEL3.format(0)).unlink()
    with pytest.raises(RequestError, match=f"{MODEL3.format(0)}: missing; it names the weights"):
        ZeROShards(folder)


def test_zero_3_without_the_optimisers_files_holds_no_weights(tmp_path: Path) -> None:
    folder = copied(ZERO3, tmp_path)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    with pytest.raises(RequestError, match="missing; ZeRO 3 keeps the weights in its optimiser's files alone"):
        ZeROShards(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", [MODEL, MASTERS.format(1)])
def test_a_half_written_file_is_named(name: str, share: float, tmp_path: Path) -> None:
    file = copied(RUN, tmp_path) / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(RequestError, match=rf"{name}: not a whole file of torch\.save"):
        ZeROShards(file.parent)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("mp_rank_01_model_states.pt", "tensor-parallel: each matrix is cut into mp_ranks"),
        ("bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor-parallel"),
        ("layer_00-model_00-model_states.pt", "a piece of a pipeline- or expert-parallel model"),
        ("layer_0_expert_3_mp_rank_00_model_states.pt", "a piece of a pipeline- or expert-parallel model"),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", f"beside {MASTERS.format(0)}: two runs side by side"),
        (
            "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt",
            "a file of 4 ranks, but the first one says that they were 3",
        ),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "two runs side by side"),
    ],
)
def test_a_file_too_many_is_named(extra: str, sentence: str, tmp_path: Path) -> None:
    folder = copied(RUN, tmp_path)
    shutil.copy(folder / MASTERS.format(0), folder / extra)
    with pytest.raises(RequestError, match=sentence):
        ZeROShards(folder)


def test_files_of_two_runs_do_not_fit(tmp_path: Path) -> None:
    folder, other = copied(FIXTURES / "zero2-bf16-frozen", tmp_path), FIXTURES / "zero2-bf16-aligned" / "global_step2"
    for rank in range(2):
        shutil.copy(other / MASTERS.format(rank), folder)
    with pytest.raises(RequestError, match="does not fit the 11 weights of group 0: the files are not of one run"):
        ZeROShards(folder)
    shutil.copy(RUN / "global_step2" / MODEL, folder)
    with pytest.raises(RequestError, match="it has 1 parameter groups, but the model's file names 2"):
        ZeROShards(folder)


@pytest.mark.parametrize(
    ("case", "file", "edit", "sentence"),
    [
        (RUN, MODEL, lambda state: state.update(module=None), "there are no weights by name in it"),
        (RUN, MODEL, lambda state: state.update(param_shapes=None), "param_shapes does not list the weights"),
        (RUN, MODEL, lambda state: state.update(param_shapes=[{"w": "x"}] * 2), "something other than a shape"),
        (RUN, MODEL, lambda state: state.update(param_shapes=[{"w": (-2, 3)}] * 2), "something other than a shape"),
        (RUN, MODEL, lambda state: state.update(shared_params=["w"]), "shared_params is no mapping from names"),
        (ZERO3, MODEL3, lambda state: state.pop("buffer_names"), "buffer_names is no list"),
        (RUN, MASTERS, lambda state: state.pop("optimizer_state_dict"), "there is no state of an optimiser in it"),
        (RUN, MASTERS, lambda state: inside(state).update(partition_count=[]), "it does not say how many ranks"),
        (RUN, MASTERS, lambda state: inside(state).update(partition_count=[3, 1]), "over different numbers of ranks"),
        (RUN, MASTERS, lambda state: inside(state).update(partition_count=4), r"rank_3_.*: missing; 3 of 4 ranks'"),
        (RUN, MASTERS, lambda state: inside(state).update(param_alignment_paddings=[[0]]), "paddings does not fit"),
        (RUN, MASTERS, lambda state: inside(state).pop("single_partition_of_fp32_groups"), "where the fp32 masters"),
        (RUN, MASTERS, lambda state: cut_short(inside(state)), r"group 0 has 503 numbers, but the .* take 752"),
        (ZERO3, MASTERS, lambda state: inside(state).update(fp32_flat_groups=[torch.ones(2, 2)]), "plain vectors"),
        (ZERO3, MASTERS, lambda state: inside(state)["fp32_flat_groups"].pop(), "rank 0 has .* names take"),
        (ZERO3, MODEL3, lambda state: state["frozen_param_fragments"].clear(), f"{EMBEDDING}: there is no share of 46"),
    ],
)
def test_what_is_not_as_deepspeed_writes_it_is_named(
    case: Path, file: str, edit: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path
) -> None:
    folder = copied(case, tmp_path)
    edited(folder / file.format(0), edit)
    with pytest.raises(RequestError, match=sentence) as error:
        ZeROShards(folder)
    assert str(error.value).startswith(f"{folder}/")


def inside(state: dict[str, Any]) -> Any:
    return state["optimizer_state_dict"]


def cut_short(state: dict[str, Any]) -> None:
    state["single_partition_of_fp32_groups"][0] = torch.ones(3)


class Malicious:
    """Its pickle makes a folder where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("file", [MODEL, MASTERS.format(1)])
def test_what_a_file_hides_is_refused_and_does_not_run(file: str, tmp_path: Path) -> None:
    folder, trace = copied(RUN, tmp_path), tmp_path / "trace"
    edited(folder / file, lambda state: state.update(hidden=[Malicious(trace)]))
    said = rf"{file}: refused, and nothing in it was run: it asks for posix\.mkdir, but only tensors and"
    with pytest.raises(RequestError, match=rf"{said} .*; if you trust who made it, run the zero_to_fp32\.py"):
        ZeROShards(folder)
    assert not trace.exists()
    torch.load(folder / file, weights_only=False)
    assert trace.exists()  # what plain pickle would have done


def test_deepspeeds_other_classes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    engine = type("Engine", (), {"__module__": "deepspeed.runtime.engine"})
    monkeypatch.setattr(sys.modules["deepspeed.runtime.engine"], "Engine", engine, raising=False)
    folder = copied(RUN, tmp_path)
    edited(folder / MASTERS.format(0), lambda state: state.update(x=engine()))
    with pytest.raises(RequestError, match=r"it asks for deepspeed\.runtime\.engine\.Engine, but only tensors"):
        ZeROShards(folder)


def test_deepspeeds_own_records_leave_nothing_behind() -> None:
    state = load_deepspeed(RUN / "global_step2" / MASTERS.format(0), "")["optimizer_state_dict"]
    for record in (state["loss_scaler"], state["zero_stage"]):
        assert not hasattr(record, "__dict__")


def test_the_folder_that_latest_names_is_read(tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(RUN / f"global_step{step}", tmp_path / f"global_step{step}")
    with pytest.raises(RequestError, match="global_step1 and global_step2 are both here; name one"):
        find_checkpoint(tmp_path)
    (tmp_path / "latest").write_text("global_step1\n")
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert (found.format, found.path.name) == (formats.ZERO, "global_step1")
    for elsewhere in ("global_step9", "../global_step1", ""):
        (tmp_path / "latest").write_text(elsewhere)
        with pytest.raises(RequestError, match="latest: there are no files of DeepSpeed in the folder that it names"):
            find_checkpoint(tmp_path)


def test_masters_are_preferred_to_the_copy_that_the_trainer_casts(tmp_path: Path) -> None:
    folder = copied(RUN, tmp_path)
    (folder.parent / "model.safetensors").write_bytes(b"")
    found = find_checkpoint(folder.parent)
    assert found is not None
    assert (found.format, found.path) == (formats.ZERO, folder)
    for file in folder.glob("*_optim_states.pt"):
        file.unlink()
    found = find_checkpoint(folder.parent)
    assert found is not None
    assert (found.format, found.path) == (formats.HF, folder.parent)


@pytest.mark.parametrize("nested", [False, True])
def test_a_run_is_ingested_inspected_and_measured_as_its_conversion_would_be(
    nested: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(shutil.copytree(FIXTURES / "base", tmp_path / "base"))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    for step in (1, 2):
        tag = f"global_step{step}"
        place = tmp_path / "zero" / f"checkpoint-{step}" if nested else tmp_path / "zero"
        shutil.copytree(RUN / tag, place / tag)
        (place / "latest").write_text(tag)
        converted = tmp_path / "hf" / f"checkpoint-{step}"
        converted.mkdir(parents=True)
        shutil.copy(RUN / f"{tag}.safetensors", converted / "model.safetensors")
    tables = []
    for kind in ("zero", "hf"):
        out, table = str(tmp_path / f"t-{kind}"), tmp_path / f"{kind}.parquet"
        assert main(["ingest", str(tmp_path / kind), "--base", base, "--out", out]) == 0
        assert main(["spectra", out, "--rank", "4", "--out", str(table)]) == 0
        tables.append(pd.read_parquet(table))
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["dtype"]) == {"float32"}
    assert (tables[0].query("step == 2")["frobenius"] > 0).all()
    steps = read_manifest(tmp_path / "t-zero").steps
    assert [(record.step, record.kind, record.dtype) for record in steps] == [
        (1, "zero", "float32"),
        (2, "zero", "float32"),
    ]
    assert sorted(steps[0].sha256) == sorted([MODEL, *(MASTERS.format(rank) for rank in range(3))])
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "t-zero")]) == 0
    assert main(["inspect", str(tmp_path / "zero"), "--base", base]) == 0
    said = capsys.readouterr().out
    assert said.count("step 2: DeepSpeed ZeRO shards, one file for each rank; 12 tensors") == 2
