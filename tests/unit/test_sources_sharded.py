"""FSDP checkpoints of two gloo ranks are read without a process group, in their own dtype, and run nothing."""

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from foreign_runs import Sharding, moved, save_sharded, stored_tensors, tiny_model
from rlstride.errors import RequestError
from rlstride.trajectory.layout import InLayout, Layout
from rlstride.trajectory.model_folder import ModelFolder
from rlstride.trajectory.names import ModelTensors
from rlstride.trajectory.sources.dcp import DCPFolder
from rlstride.trajectory.sources.fsdp import FSDPShards, _ranks_of
from rlstride.trajectory.sources.recognise import find_checkpoint

pytestmark = pytest.mark.slow  # two processes start before the first test

CASES = {
    "verl": ("qwen3", {}),
    "verl-bf16": ("qwen3-bf16", {}),
    "verl-columns": ("qwen3", {"columns": True}),
    "verl-fsdp1": ("qwen3", {"first": True}),
    "verl-copies": ("qwen3", {"copies": True}),
    "verl-experts": ("qwen3_moe", {}),
    "dcp": ("qwen3", {}),
    "dcp-bf16": ("qwen3-bf16", {}),
    "dcp-columns": ("qwen3", {"columns": True}),
    "dcp-nested": ("glm4", {}),
}
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as Hugging Face folders in ``models``, and each case's checkpoint of one of them under its own name."""
    root = tmp_path_factory.mktemp("sharded")
    for name in {model for model, _ in CASES.values()}:
        family, _, dtype = name.partition("-")
        model = moved(tiny_model(family), 1)
        (model.bfloat16() if dtype else model).save_pretrained(root / "models" / name)
    shardings = []
    for case, (model, how) in CASES.items():
        style = "verl" if case.startswith("verl") else "dcp-nested" if case == "dcp-nested" else "dcp"
        shardings.append(Sharding(root / "models" / model, root / case, style, **how))
    save_sharded(shardings, root / "rendezvous")
    return root


def opened(root: Path, case: str) -> tuple[InLayout, InLayout]:
    """The checkpoint and the model that was sharded."""
    folder = root / "models" / CASES[case][0]
    found, model = find_checkpoint(root / case), ModelFolder(folder)
    assert found is not None
    return model.step(found), model.source


def copied(root: Path, case: str, tmp_path: Path) -> Path:
    shutil.copytree(root / case, tmp_path / case)
    return tmp_path / case


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_the_models_to_the_bit_and_in_its_dtype(root: Path, case: str) -> None:
    source, model = opened(root, case)
    assert source.names() == model.names()
    for name in model.names():
        expected = model.tensor(name)
        found = source.tensor(name)
        assert (found.dtype, source.dtype(name)) == (expected.dtype, expected.dtype)
        assert source.shape(name) == tuple(expected.shape)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_whole_tensor_wherever_the_ranks_were_cut(root: Path, case: str) -> None:
    source, model = opened(root, case)
    for name in ("model.embed_tokens.weight", WEIGHT, "model.norm.weight"):
        if not source.holds(name):
            continue
        whole = model.tensor(name)
        for start, stop in ((0, 5), (7, 20), (16, 18), (len(whole) - 3, len(whole)), (4, 4)):
            assert torch.equal(source.rows(name, start, stop), whole[start:stop])


@pytest.mark.parametrize("case", ["dcp", "dcp-bf16"])
def test_rows_are_read_without_the_rest_of_their_piece(root: Path, tmp_path: Path, case: str) -> None:
    folder, name = copied(root, case, tmp_path), "model.embed_tokens.weight"
    before = DCPFolder(folder).tensor(name)  # (33, 16): 17 rows on the first rank, 16 on the second
    row = before[16].view(torch.uint8).numpy().tobytes()
    file = folder / "__0_0.distcp"
    assert file.read_bytes().count(row) == 1
    file.write_bytes(file.read_bytes().replace(row, bytes(len(row))))
    assert torch.equal(DCPFolder(folder).rows(name, 3, 16), before[3:16])
    assert not DCPFolder(folder).rows(name, 16, 17).any()


def test_an_optimisers_state_is_no_part_of_the_model(root: Path) -> None:
    names = DCPFolder(root / "dcp-nested").names()
    assert names == [f"model.{name}" for name in sorted(stored_tensors(root / "models" / "glm4"))]


def test_a_mesh_of_an_older_torch_is_understood() -> None:
    mesh = DeviceMesh.__new__(DeviceMesh)
    mesh.__setstate__(
        {"device_type": "cuda", "mesh": torch.tensor([[0, 1], [2, 3]]), "mesh_dim_names": ("ddp", "fsdp")}
    )
    assert _ranks_of(mesh).tolist() == [[0, 1], [2, 3]]


def test_classes_are_known_by_the_names_that_torch_2_4_wrote(root: Path, tmp_path: Path) -> None:
    moved_since = {
        "tensor\nDTensor": "_tensor.api\nDTensor",
        "tensor._dtensor_spec\nDTensorSpec": "_tensor.placement_types\nDTensorSpec",
        "tensor._dtensor_spec\nTensorMeta": "_tensor.placement_types\nTensorMeta",
        "tensor.placement_types\nShard": "_tensor.placement_types\nShard",
    }
    for file in (root / "verl").iterdir():
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(tmp_path / file.name, "w") as target:
            for member in archive.infolist():
                data = archive.read(member)
                if member.filename.endswith("/data.pkl"):
                    for name, earlier in moved_since.items():
                        assert f"ctorch.distributed.{name}\n".encode() in data
                        data = data.replace(f".{name}\n".encode(), f".{earlier}\n".encode())
                target.writestr(member.filename, data)
    now, then = FSDPShards(root / "verl"), FSDPShards(tmp_path)
    assert now.names() == then.names()
    for name in now.names():
        assert torch.equal(now.tensor(name), then.tensor(name))


def test_a_missing_rank_is_named(root: Path, tmp_path: Path) -> None:
    folder = copied(root, "verl", tmp_path)
    (folder / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(RequestError, match=r"model_world_size_2_rank_1\.pt: missing; 1 of 2 ranks' files are here"):
        FSDPShards(folder)


def test_shards_of_two_runs_are_not_mixed(root: Path, tmp_path: Path) -> None:
    folder = copied(root, "verl", tmp_path)
    (folder / "model_world_size_4_rank_0.pt").write_bytes(b"")
    with pytest.raises(RequestError, match="files of 2 and of 4 ranks side by side"):
        FSDPShards(folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_half_written_rank_is_named(root: Path, tmp_path: Path, share: float) -> None:
    folder = copied(root, "verl", tmp_path)
    file = folder / "model_world_size_2_rank_1.pt"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(RequestError, match=r"rank_1\.pt: not a whole file of torch\.save"):
        FSDPShards(folder)


def test_a_half_written_piece_is_named_before_and_when_it_is_read(root: Path, tmp_path: Path) -> None:
    folder = copied(root, "dcp", tmp_path)
    file = folder / "__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-100])
    source = DCPFolder(folder)
    assert [problem.split(": ")[:2] for problem in source.problems()] == [[str(file), "half-written"]]
    with pytest.raises(RequestError, match=r"__1_0\.distcp: half-written: .* bytes are there"):
        for name in source.names():
            source.tensor(name)
    file.unlink()
    assert source.problems() == [f"{file}: the metadata names this file, but it is missing"]


def test_half_written_metadata_is_named(root: Path, tmp_path: Path) -> None:
    folder = copied(root, "dcp", tmp_path)
    file = folder / ".metadata"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RequestError, match=r"\.metadata: not whole metadata of torch\.distributed\.checkpoint"):
        DCPFolder(folder)


class Malicious:
    """Its pickle makes a folder where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_what_a_rank_hides_is_refused_and_does_not_run(root: Path, tmp_path: Path) -> None:
    folder, trace = copied(root, "verl", tmp_path), tmp_path / "trace"
    torch.save({"model.norm.weight": torch.ones(2), "x": Malicious(trace)}, folder / "model_world_size_2_rank_1.pt")
    with pytest.raises(RequestError, match=r"rank_1\.pt: refused, and nothing in it was run: it asks for posix\.mkdir"):
        FSDPShards(folder)
    assert not trace.exists()


def test_what_metadata_hides_is_refused_and_does_not_run(root: Path, tmp_path: Path) -> None:
    folder, trace = copied(root, "dcp", tmp_path), tmp_path / "trace"
    (folder / ".metadata").write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(RequestError, match=r"\.metadata: refused, and nothing in it was run: it asks for posix\.mkdir"):
        DCPFolder(folder)
    assert not trace.exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert trace.exists()  # what plain pickle would have done


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_not_even_builtins_are_reached_from_metadata(root: Path, tmp_path: Path, name: str) -> None:
    folder = copied(root, "dcp", tmp_path)
    (folder / ".metadata").write_bytes(f"cbuiltins\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(RequestError, match=f"it asks for builtins.{name}"):
        DCPFolder(folder)


def test_what_a_piece_hides_is_refused_and_does_not_run(root: Path, tmp_path: Path) -> None:
    folder, trace = copied(root, "dcp", tmp_path), tmp_path / "trace"
    source = DCPFolder(folder)
    torch.save(Malicious(trace), folder / "evil")
    data = (folder / "evil").read_bytes()
    for info in source._storage.values():
        info.offset, info.length = 0, len(data)
    for file in folder.glob("*.distcp"):
        file.write_bytes(data)
    with pytest.raises(RequestError, match=r"distcp: refused, and nothing in it was run: it asks for posix\.mkdir"):
        source.tensor(WEIGHT)
    assert not trace.exists()


def test_metadata_may_not_name_files_elsewhere(root: Path, tmp_path: Path) -> None:
    source = DCPFolder(copied(root, "dcp", tmp_path))
    for info in source._storage.values():
        info.relative_path = f"../dcp/{info.relative_path}"
    with pytest.raises(RequestError, match=f"{WEIGHT}: the metadata names no file of this folder"):
        source.tensor(WEIGHT)


def test_an_adapter_inside_the_shards_points_to_its_own_folder(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": torch.ones(2, 2)}
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    with pytest.raises(RequestError, match="give the adapter's own folder"):
        ModelTensors(FSDPShards(tmp_path), Layout({}))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", ""])
def test_names_lose_what_compiling_and_wrapping_put_into_them(tmp_path: Path, wrapper: str) -> None:
    state = {f"{wrapper}model.layers.0.{wrapper}mlp.up_proj.weight": torch.ones(2, 3)}
    torch.save(state, tmp_path / "model_world_size_1_rank_0.pt")
    assert ModelTensors(FSDPShards(tmp_path), Layout({})).names() == ["model.layers.0.mlp.up_proj.weight"]


def test_a_torch_without_the_newest_class_of_a_mesh_reads_checkpoints(root: Path) -> None:
    """As torch 2.10 is, which has no _FlatLayout."""
    name = "model.norm.weight"
    code = f"""
import torch.distributed.checkpoint, torch.distributed.tensor
import torch.distributed._mesh_layout as layout
vars(layout).pop("_FlatLayout", None)
from rlstride.trajectory.sources.dcp import DCPFolder
from rlstride.trajectory.sources.fsdp import FSDPShards
print([DCPFolder({str(root / "dcp")!r}).tensor({name!r}).tolist(), FSDPShards({str(root / "verl")!r}).shape({name!r})])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = stored_tensors(root / "models" / "qwen3")[name]
    assert done.stdout.strip() == str([expected.tolist(), tuple(expected.shape)])
