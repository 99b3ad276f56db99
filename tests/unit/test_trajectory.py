import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlstride.atomic_files import atomic_file, atomic_folder, sha256
from rlstride.errors import RequestError
from rlstride.trajectory.manifest import TrainingRecord, read_manifest
from rlstride.trajectory.sources import HFFolder
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=4
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def folder(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    """A finished trajectory whose step t adds t / 100 to every weight."""
    base = tmp_path / "base"
    model.save_pretrained(base)
    writer = TrajectoryWriter(tmp_path / "run")
    for step in range(1, 11):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
        if step % 2 == 0:
            writer.keep(step, model)
    training = [TrainingRecord(step=step, reward=step / 10, tokens=100, seconds=0.5) for step in range(1, 11)]
    writer.finish("tiny", base, algorithm="grpo", seed=0, config_hash="abc", training=training)
    return tmp_path / "run"


def test_a_kept_step_has_its_reward_and_the_costs_up_to_it(folder: Path) -> None:
    record = Trajectory(folder).record(4)
    assert (record.reward, record.tokens, record.seconds) == (0.4, 400, 2.0)
    assert record.dtype == "float32"


def test_the_weights_of_a_step_come_back_exactly(folder: Path, model: LlamaForCausalLM) -> None:
    source = Trajectory(folder).source(10)
    for name, tensor in model.state_dict().items():
        assert torch.equal(source.tensor(name), tensor)
        assert source.shape(name) == tuple(tensor.shape)


def test_the_digest_of_every_kept_file_is_in_the_manifest(folder: Path) -> None:
    for record in read_manifest(folder).steps:
        for name, digest in record.sha256.items():
            assert sha256(folder / record.folder / name) == digest


def test_a_window_holds_the_steps_up_to_its_share_and_refuses_the_rest(folder: Path) -> None:
    window = Trajectory(folder).window(0.4)
    assert window.steps == [2, 4]
    assert window.full_last_step == 10
    with pytest.raises(RequestError, match="step 6 lies beyond the window, which ends at step 4"):
        window.source(6)
    assert window.source(0).names() == HFFolder(window.base_folder).names()


def test_a_window_at_an_exact_share_keeps_its_last_step(folder: Path) -> None:
    # 0.6 * 10 is 6 on paper and 6.000000000000001 or 5.999... in floating point, depending on the product
    assert [Trajectory(folder).window(share).steps[-1] for share in (0.2, 0.4, 0.6, 0.8, 1.0)] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_window_outside_zero_to_one_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(RequestError, match="share of the steps"):
        Trajectory(folder).window(share)


def test_a_trajectory_moves_with_its_base(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(str(tmp_path / "base"), moved / "base")
    shutil.move(str(folder), moved / "run")
    assert Trajectory(moved / "run").source(0).names()


def test_a_folder_without_a_manifest_is_no_trajectory(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no manifest\.json here"):
        Trajectory(tmp_path)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"base": 3}')
    with pytest.raises(RequestError, match="damaged manifest"):
        Trajectory(folder)


def test_a_manifest_of_a_later_format_is_named_whatever_is_in_it(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format_version": 99, "origin_model": 3}')
    with pytest.raises(RequestError, match="format 99 is a newer rlstride's"):
        Trajectory(folder)


def test_a_damaged_weight_file_is_named(folder: Path) -> None:
    file = folder / "step_000004" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RequestError, match=r"step_000004/model\.safetensors: changed since the manifest was written"):
        Trajectory(folder).source(4)


def test_sharded_folders_read_like_single_files(model: LlamaForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="1KB")
    single, sharded = HFFolder(tmp_path / "single"), HFFolder(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert single.names() == sharded.names()
    for name in single.names():
        assert torch.equal(single.tensor(name), sharded.tensor(name))


def test_a_folder_that_fails_while_being_written_never_appears(tmp_path: Path) -> None:
    target = tmp_path / "step"
    with pytest.raises(RuntimeError), atomic_folder(target) as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_moved_aside_before_it_is_removed_so_that_a_kill_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, remove, removed = tmp_path / "step", shutil.rmtree, list[Path]()
    for text in ("old", "new"):
        monkeypatch.setattr(shutil, "rmtree", lambda path, **options: [removed.append(path), remove(path, **options)])
        with atomic_folder(target) as partial:
            (partial / "whole").write_text(text)
    assert target not in removed
    assert (target / "whole").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_fails_while_being_written_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as partial:
        partial.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
