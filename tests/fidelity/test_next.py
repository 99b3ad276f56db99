"""NExt as its paper (arXiv 2604.11446) states it: differences, networks, training, and the jump."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rlstride.extrapolation.next_predictor as next_module
from planted_run import SmallRun
from rlstride.cli import main
from rlstride.errors import RequestError
from rlstride.extrapolation.method import Target
from rlstride.extrapolation.next_predictor import (
    NEXT,
    NEXT_WITHOUT_G,
    NEXT_WITHOUT_L,
    Differences,
    Network,
    NExt,
    NExtPredictor,
    Sequence,
    differences,
    train_network,
)
from rlstride.extrapolation.predict import write_predictions
from rlstride.extrapolation.registry import METHODS
from rlstride.spectra.svd import TruncatedSVD, svd_of_product
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.store import Trajectory
from rlstride.trajectory.writer import TrajectoryWriter

RANK, STEPS = 3, list(range(10, 151, 10))  # M1 .. M15
STILL = "model.layers.1.mlp.down_proj.weight"  # adapted, and never moved
TARGET = Target(1.0, 400)
QUICK = 30  # updates, where their number does not matter


@pytest.fixture(scope="module")
def adapted(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose LoRA factors walk: every matrix of the layers but one moves in every kept step, at rank 3."""
    folder = tmp_path_factory.mktemp("next") / "trajectory"
    torch.manual_seed(0)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=2, target_modules=rf".*\.({'|'.join(kinds)})")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32), config)
    writer = TrajectoryWriter(folder)
    generator = torch.Generator().manual_seed(1)
    for step in STEPS:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and STILL.removesuffix(".weight") not in name:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator) + 0.02
        writer.keep(step, model)
    writer.finish("small", small_base, algorithm="planted", seed=0, config_hash="0", training=[])
    return folder


def found_in(folder: Path, *, align: bool = True) -> dict[str, Differences]:
    reader = UpdateReader(Trajectory(folder))
    return {weight.name: differences(reader, weight, align=align) for weight in reader.in_scope}


def updates_of(folder: Path) -> dict[str, list[Any]]:
    """D(0) = 0, D(1) .. D(15) of every in-scope matrix, dense, in numpy."""
    reader = UpdateReader(Trajectory(folder))
    return {
        weight.name: [np.zeros(weight.shape), *(reader.update(weight, step).double().numpy() for step in STEPS)]
        for weight in reader.in_scope
    }


def predicted(folder: Path, method: NExt) -> NExtPredictor:
    return method.fit(Trajectory(folder), {})


def forward(network: Network, *vectors: Any) -> Any:
    """Enc = Linear Linear ReLU Linear Linear of each input, Dec the same of their concatenation; plain numpy."""
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}

    def layers(x: Any, prefix: str) -> Any:
        for layer in (0, 1, 3, 4):
            x = x @ state[f"{prefix}.{layer}.weight"].T + state[f"{prefix}.{layer}.bias"]
            x = np.maximum(x, 0) if layer == 1 else x
        return x

    encoded = [layers(np.asarray(vector, dtype=float), f"encoders.{i}") for i, vector in enumerate(vectors)]
    return layers(np.concatenate(encoded, axis=-1), "decoder")


# ---- differences


def test_the_triplets_are_those_of_w_i_less_w_0_less_w_i_minus_1_and_of_w_i_plus_5_less_w_i(adapted: Path) -> None:
    found = found_in(adapted)
    for name, D in updates_of(adapted).items():
        if name == STILL:
            continue
        expected = {
            "G": [D[i] for i in range(1, 16)],
            "L": [D[i] - D[i - 1] for i in range(1, 16)],
            "T": [D[i + 5] - D[i] for i in range(1, 11)],
        }
        for kind, matrices in expected.items():
            sequence: Sequence = getattr(found[name], kind)
            assert len(sequence.s) == len(matrices)
            for i, matrix in enumerate(matrices):
                U, S, Vh = np.linalg.svd(matrix)
                assert float(sequence.s[i]) == pytest.approx(S[0], rel=1e-4)
                if S[1] / S[0] < 0.95:
                    u, v = sequence.u[i].numpy(), sequence.v[i].numpy()
                    assert abs(u @ U[:, 0]) > 0.999
                    assert abs(v @ Vh[0]) > 0.999
                    assert (u @ U[:, 0]) * (v @ Vh[0]) > 0, "a pair is turned as one"


def test_the_first_local_difference_is_the_first_global_one(adapted: Path) -> None:
    for align in (True, False):
        for each in found_in(adapted, align=align).values():
            for part in ("u", "s", "v"):
                assert torch.equal(getattr(each.L, part)[0], getattr(each.G, part)[0])


def test_there_are_ten_pairs_and_none_reaches_past_the_last_step(adapted: Path) -> None:
    fitted = predicted(adapted, replace(NEXT, updates=QUICK))
    assert fitted.info["pairs"] == 10  # T_10 = W_15 - W_10 is the last
    window = Trajectory(adapted).window(0.7)  # steps 10 .. 100
    reader = UpdateReader(window)
    assert len(differences(reader, reader.in_scope[0], align=True).T.s) == 5
    with pytest.raises(RequestError, match="step 110 lies beyond the window"):
        reader.update(reader.in_scope[0], 110)


def test_an_adapters_triplets_come_from_its_factors_alone(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the product was formed")

    for name in ("update", "panels", "stored"):
        monkeypatch.setattr(UpdateReader, name, never)
    assert len(found_in(adapted)) == 14


def test_a_global_difference_has_at_most_the_adapters_rank(adapted: Path) -> None:
    for D in updates_of(adapted).values():
        assert all(np.linalg.matrix_rank(matrix, tol=1e-6) <= RANK for matrix in D)


def test_signs_agree_with_the_previous_checkpoint_whatever_the_svd_gives(
    adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, exact = found_in(adapted), found_in(adapted, align=False)
    rng = np.random.default_rng(0)

    def flipping(left: torch.Tensor, right: torch.Tensor, k: int) -> TruncatedSVD:
        svd = svd_of_product(left, right, k)
        sign = float(rng.choice([-1, 1]))
        return replace(svd, u=svd.u * sign, v=svd.v * sign)

    monkeypatch.setattr(next_module, "svd_of_product", flipping)
    after, exact_after = found_in(adapted), found_in(adapted, align=False)
    for name, each in before.items():
        for kind in ("G", "L", "T"):
            sequence, other = getattr(each, kind), getattr(after[name], kind)
            assert torch.equal(sequence.u, other.u)
            assert torch.equal(sequence.v, other.v)
            assert bool(((sequence.u[1:] * sequence.u[:-1]).sum(dim=1) >= 0).all())
        assert bool((each.T.u[0] @ each.G.u[0]) >= 0)
    assert any(not torch.equal(exact[name].G.u, exact_after[name].G.u) for name in exact), "paper_exact turned signs"


# ---- networks and their training


def test_a_network_is_an_encoder_for_each_input_and_a_decoder_of_their_concatenation() -> None:
    torch.manual_seed(0)
    network, d = Network(5, 2), 5
    shapes = [tuple(tensor.shape) for name, tensor in network.state_dict().items() if name.endswith("weight")]
    encoder = [(256, d), (d, 256), (256, d), (d, 256)]
    assert shapes == [*encoder, *encoder, (256, 2 * d), (2 * d, 256), (256, 2 * d), (d, 256)]
    G, L = torch.randn(4, d), torch.randn(4, d)
    np.testing.assert_allclose(network(G, L).detach().numpy(), forward(network, G, L), rtol=0, atol=1e-6)


def test_training_is_1000_updates_at_a_rate_from_2e5_to_2e6_along_a_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(10, 2, 4, generator=generator) for _ in range(2)]
    trained = train_network(inputs, torch.randn(10, 2, 4, generator=generator), seed=0)
    assert len(trained.rates) == len(trained.losses) == 1000
    assert (trained.rates[0], trained.rates[-1]) == (2e-5, pytest.approx(2e-6, rel=1e-12))
    assert (trained.rates[499] + trained.rates[500]) / 2 == pytest.approx(1.1e-5)  # the middle of the cosine
    assert trained.losses[-1] < trained.losses[0]


def test_the_loss_is_l1_summed_and_divided_by_the_number_of_checkpoints() -> None:
    generator = torch.Generator().manual_seed(0)
    G, L, T = (torch.randn(10, 3, 4, generator=generator) for _ in range(3))  # ten pairs of three matrices
    torch.manual_seed(7)
    start = Network(4, 2)
    expected = np.abs(forward(start, G, L) - T.numpy()).sum() / 10
    assert train_network([G, L], T, seed=7, updates=1).losses[0] == pytest.approx(expected, rel=1e-5)


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_network([torch.ones(2, 1, 1)], torch.ones(2, 1, 1), seed=0, updates=1)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("method", "inputs"),
    [(NEXT, ("G", "L")), (NEXT_WITHOUT_G, ("L",)), (NEXT_WITHOUT_L, ("G",))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_jump_is_what_the_networks_make_of_the_last_checkpoints_vectors_only(
    adapted: Path, method: NExt, inputs: tuple[str, ...]
) -> None:
    """The formulas once more: one network for u's of a length, trained on ten pairs, read at G_15 and L_15."""
    window, found = Trajectory(adapted), found_in(adapted)
    fitted = predicted(adapted, replace(method, updates=QUICK))
    moved = [name for name in found if name != STILL]
    pick: dict[str, Callable[[Sequence], Any]] = {
        "u": lambda sequence: sequence.u,
        "v": lambda sequence: sequence.v,
        "s": lambda sequence: sequence.s[:, None],
    }
    for part, of in pick.items():
        for d in {of(found[name].G).shape[1] for name in moved}:
            names = [name for name in moved if of(found[name].G).shape[1] == d]
            stacks = {
                kind: torch.stack([of(getattr(found[name], kind)) for name in names], dim=1) for kind in ("G", "L", "T")
            }
            network = train_network(
                [stacks[kind][:10] for kind in inputs],
                stacks["T"],
                seed=window.seed_for(method.name, part, d),
                updates=QUICK,
            ).network
            expected = forward(network, *(stacks[kind][14] for kind in inputs))  # (M, d)
            if part != "s":
                expected /= np.linalg.norm(expected, axis=1, keepdims=True)
            for name, vector in zip(names, expected, strict=True):
                jump = np.atleast_1d(getattr(fitted.jumps[name], part).numpy())
                np.testing.assert_allclose(jump, vector, rtol=0, atol=1e-5)


# ---- the jump


def test_the_jump_is_a_unit_pair_of_rank_1_times_alpha_on_top_of_the_last_model(adapted: Path) -> None:
    fitted = predicted(adapted, replace(NEXT, updates=QUICK, alpha=1.5))
    last = updates_of(adapted)
    for name, delta in fitted.predict(TARGET).deltas:
        if name not in last:
            assert not delta.any(), "a tensor without an adapter moved"
            continue
        jump = delta.numpy() - last[name][15]
        if name == STILL:
            assert not jump.any()
            continue
        S = np.linalg.svd(jump, compute_uv=False)
        triplet = fitted.jumps[name]
        assert S[0] == pytest.approx(1.5 * abs(float(triplet.s)), rel=1e-6)
        assert S[1] < 1e-6 * S[0]
        assert float(triplet.u.norm()) == pytest.approx(1, abs=1e-12)
        assert float(triplet.v.norm()) == pytest.approx(1, abs=1e-12)
    assert fitted.info["unmoved"] == [STILL]
    assert fitted.seconds > 0


def test_an_alpha_of_0_gives_the_last_model_back_to_the_bit(adapted: Path) -> None:
    fitted = predicted(adapted, replace(NEXT, updates=QUICK, alpha=0.0))
    trajectory = Trajectory(adapted)
    base, last = trajectory.source(0), trajectory.source(150)
    for name, delta in fitted.predict(TARGET).deltas:
        assert torch.equal((base.tensor(name).double() + delta).float(), last.tensor(name))


def test_a_run_of_full_weights_keeps_the_last_steps_tensors_out_of_scope(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "next", replace(NEXT, updates=QUICK))
    flags = ["--method", "next", "--window", "0.8", "--out", str(tmp_path / "m")]
    assert main(["extrapolate", str(small_run.path), *flags]) == 0
    model = load_file(tmp_path / "m" / "model.safetensors")
    last = load_file(small_run.trajectory.model_folder(16) / "model.safetensors")
    in_scope = {weight.name for weight in UpdateReader(small_run.trajectory).in_scope}
    for name, tensor in last.items():
        assert torch.equal(model[name], tensor) == (name not in in_scope)
    assert '"pairs": 3' in (tmp_path / "m" / "README.md").read_text()
    ledger = (small_run.folder / "ledger" / "extrapolate.jsonl").read_text().splitlines()
    assert json.loads(ledger[-1])["predictor_seconds"] > 0


def test_fewer_than_seven_kept_steps_are_refused(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"next needs 7 kept steps in its window; the window 0\.4 holds 6"):
        write_predictions(
            Trajectory(adapted), {tmp_path / "m": ("next", 0.4)}, evaluations=None, decoding="t1.0", target_step=400
        )
