"""What must hold of the controls beside a rank-k model: equal norm, the directions that they name, the matrices too."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import rlstride.evaluation.lm as lm_module
from planted_run import STEPS, SmallRun
from rlstride.cli import main
from rlstride.config.variants import parse_ablation, read_variants
from rlstride.edits.step_edits import StepEdits
from rlstride.errors import RequestError
from rlstride.evaluation.lm import Bench
from rlstride.evaluation.models import parse_models
from rlstride.trajectory.scope import Weight

LAST = STEPS[-1]


def updates(run: SmallRun, variant: str) -> Iterator[tuple[Weight, Tensor, Tensor]]:
    """Each matrix inside the layers, with the run's whole update and the variant's, float64."""
    edits = StepEdits(run.trajectory, LAST, [parse_ablation(variant)])
    model, reader = edits.model(variant), edits.reader
    for weight in reader.in_scope:
        base = reader.stored(weight, 0).double()
        yield weight, reader.stored(weight, LAST).double() - base, model.tensor(weight.name).double() - base


def triplets(D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    return U, S, Vh


@pytest.mark.parametrize(
    ("variant", "scale"),
    [
        ("rank_1_random", 1),
        ("rank_2_random_u", 1),
        ("rank_2_random_v", 1),
        ("rank_3_bottom", 1),
        ("single_2", 1),
        ("rank_10pct", 1),
        ("rank_1_x0.7", 0.7),
        ("rank_1_random_x1.5", 1.5),
        ("in_scope_full_x0.5", 0.5),
    ],
)
def test_every_rescaled_edit_has_the_updates_norm_times_its_factor(
    small_run: SmallRun, variant: str, scale: float
) -> None:
    for _, D, edit in updates(small_run, variant):
        assert float(edit.norm()) == pytest.approx(scale * float(D.norm()), rel=1e-5)


def test_a_single_subspace_is_the_one_of_its_number(small_run: SmallRun) -> None:
    for _, D, edit in updates(small_run, "single_3"):
        U, _, Vh = triplets(D)
        torch.testing.assert_close(edit, D.norm() * torch.outer(U[:, 2], Vh[2]), rtol=0, atol=1e-5)


def test_a_single_subspace_beyond_the_last_leaves_the_base(small_run: SmallRun) -> None:
    """The attention's key matrix, 8 x 16, has no ninth one."""
    moved = {weight.kind: float(edit.norm()) for weight, _, edit in updates(small_run, "single_9")}
    assert moved["k_proj"] == 0
    assert moved["gate_proj"] > 0


def test_the_bottom_is_the_other_end_of_the_spectrum(small_run: SmallRun) -> None:
    for _, D, edit in updates(small_run, "rank_2_bottom"):
        U, S, Vh = triplets(D)
        bottom = (U[:, -2:] * S[-2:]) @ Vh[-2:]
        expected = bottom * (D.norm() / bottom.norm())
        torch.testing.assert_close(edit / D.norm(), expected / D.norm(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("variant", "true_side"), [("rank_1_random_u", "v"), ("rank_1_random_v", "u")])
def test_one_random_side_keeps_the_other(small_run: SmallRun, variant: str, true_side: str) -> None:
    cosines: dict[str, list[float]] = {"u": [], "v": []}
    for _, D, edit in updates(small_run, variant):
        (U, _, Vh), (U2, _, Vh2) = triplets(D), triplets(edit)
        cosines["u"].append(abs(float(U[:, 0] @ U2[:, 0])))
        cosines["v"].append(abs(float(Vh[0] @ Vh2[0])))
    random_side = "u" if true_side == "v" else "v"
    assert min(cosines[true_side]) > 1 - 1e-6
    assert np.mean(cosines[random_side]) < 0.5


def test_a_share_of_the_rank_is_that_of_each_matrix(small_run: SmallRun) -> None:
    for weight, _, edit in updates(small_run, "rank_30pct"):
        assert int(torch.linalg.matrix_rank(edit, rtol=1e-5)) == max(1, int(min(weight.shape) * 0.3))
    for _, D, edit in updates(small_run, "rank_100pct"):
        torch.testing.assert_close(edit, D, rtol=0, atol=1e-6)


def test_scopes_divide_the_matrices_among_them(small_run: SmallRun) -> None:
    def moved(variant: str) -> set[str]:
        return {weight.name for weight, _, edit in updates(small_run, variant) if float(edit.norm()) > 0}

    attention, mlp = moved("full_in_attention"), moved("full_in_mlp")
    assert {name.split(".")[3] for name in attention} == {"self_attn"}
    assert {name.split(".")[3] for name in mlp} == {"mlp"}
    assert attention | mlp == moved("in_scope_full")
    thirds = [moved(f"rank_1_in_third_{third}") for third in (1, 2)]
    assert set().union(*thirds) == moved("rank_1")
    assert sum(map(len, thirds)) == len(moved("rank_1"))
    with pytest.raises(RequestError, match=r"full_in_third_3: no matrix of .* is in its scope"):
        moved("full_in_third_3")  # of two layers


@pytest.mark.parametrize("variant", ["rank_1", "rank_2_random", "in_scope_full_x0.5"])
def test_an_edit_of_bfloat16_files_is_not_rounded_to_their_grid(
    small_run: SmallRun, tmp_path: Path, variant: str
) -> None:
    """The step moves some weights to their neighbours: no rank-k part of that lies on the grid."""
    run = small_run.copy_to(tmp_path / "copy")
    base = run.trajectory.base_folder / "model.safetensors"
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base).items()}
    step = {name: tensor.float() * (1 + 4e-3 * torch.rand(tensor.shape)) for name, tensor in weights.items()}
    for file, tensors in ((base, weights), (run.trajectory.model_folder(LAST) / "model.safetensors", step)):
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    run.restate()
    scale = 0.5 if variant.endswith("x0.5") else 1
    moved = [(float(D.norm()), float(edit.norm())) for _, D, edit in updates(run, variant)]
    assert sum(norm > 0 for norm, _ in moved) > 5
    for norm, edited in moved:
        assert edited == pytest.approx(scale * norm, rel=1e-4)


def test_the_scope_of_all_has_the_steps_embeddings_and_norms(small_run: SmallRun) -> None:
    edits = StepEdits(small_run.trajectory, LAST, [parse_ablation("rank_1_in_all")])
    model, reader = edits.model("rank_1_in_all"), edits.reader
    outside = [weight for weight in reader.weights if not weight.in_scope]
    assert {"model.embed_tokens", "model.norm"} < {weight.module for weight in outside}
    for weight in outside:
        assert torch.equal(model.tensor(weight.name), reader.stored(weight, LAST))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rank_0", "'rank_0' is not a variant"),
        ("full", "full needs a scope"),
        ("in_scope_full_in_mlp", "takes none"),
        ("single_2_random", "random is a control of rank_K"),
        ("rank_120pct", "no more than 100 per cent"),
        ("rank_1_in_head", "no scope is called 'head'"),
        ("rank_1_random_unscaled", "is not a variant"),
        ("base", "base_bf16 is the base rounded"),
        ("rounding_noise_in_all", "a scope other than all"),
        ("rounding_noise_bf16", "takes _unscaled, a factor"),
        ("rank_1_as_rank_2", "a norm of the whole update"),
        ("rank_1,rank_1", "rank_1 is named twice"),
    ],
)
def test_a_name_that_stands_for_no_edit_is_refused(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_variants(name)


def test_names_may_stand_in_a_file(tmp_path: Path) -> None:
    for content in ("[rank_1, rank_2_bottom]", "variants: [rank_1, rank_2_bottom]"):
        (tmp_path / "v.yaml").write_text(content)
        assert [found.name for found in read_variants(str(tmp_path / "v.yaml"))] == ["rank_1", "rank_2_bottom"]
    with pytest.raises(RequestError, match=r"missing\.yaml"):
        read_variants(str(tmp_path / "missing.yaml"))


@torch.no_grad()
def test_an_edit_made_in_memory_computes_what_its_folder_computes(small_run: SmallRun, tmp_path: Path) -> None:
    names = "rank_1,rank_2_random_u,full_in_mlp,rank_1_in_all"
    assert main(["ablate", str(small_run.path), "--variants", names, "--out", str(tmp_path / "models")]) == 0
    bench, ids = Bench("cpu"), torch.arange(10)[None]
    in_memory = parse_models([str(small_run.path)], variants=read_variants(names))
    assert [(each.variant, each.step) for each in in_memory] == [(name, LAST) for name in names.split(",")]
    for candidate in in_memory:
        logits = bench.load(candidate).model(input_ids=ids).logits.clone()
        (written,) = parse_models([str(tmp_path / "models" / candidate.variant)])
        assert torch.equal(bench.load(written).model(input_ids=ids).logits, logits)


def test_a_factor_or_a_scope_leaves_a_control_its_directions(small_run: SmallRun) -> None:
    whole = {weight.name: edit for weight, _, edit in updates(small_run, "rank_1_random")}
    for variant, factor in (("rank_1_random_x0.5", 0.5), ("rank_1_random_in_mlp", 1)):
        for weight, _, edit in updates(small_run, variant):
            if float(edit.norm()) > 0:
                torch.testing.assert_close(edit, factor * whole[weight.name], rtol=0, atol=1e-6)


def test_the_decompositions_of_a_step_are_freed_with_its_last_model(small_run: SmallRun) -> None:
    bench, first = Bench("cpu"), parse_models([str(small_run.path)], steps=[4, 8], variants=read_variants("rank_1"))
    for candidate in first:
        bench.load(candidate)
    held = [each.edits is not None and "decompositions" in vars(each.edits) for each in first]
    assert held == [False, True]


def test_edits_of_a_step_on_the_way_are_that_steps(small_run: SmallRun) -> None:
    found = parse_models([str(small_run.path)], steps=[4, 8], variants=read_variants("rank_1"))
    assert [(each.variant, each.step) for each in found] == [("rank_1", 4), ("rank_1", 8)]
    assert len({each.weights_digest() for each in found}) == 2
    with pytest.raises(RequestError, match="step 0 is the base"):
        parse_models([str(small_run.path)], steps=[0], variants=read_variants("rank_1"))


def test_steps_on_the_way_may_have_fewer_edits_than_the_last(small_run: SmallRun) -> None:
    names = {"variants": read_variants("rank_1,rank_2"), "on_the_way": read_variants("rank_1")}
    found = parse_models([str(small_run.path)], steps=[4, 8], **names)
    assert [(each.variant, each.step) for each in found] == [("rank_1", 4), ("rank_1", 8), ("rank_2", 8)]
    assert [each.variant for each in parse_models([str(small_run.path)], **names)] == ["rank_1", "rank_2"]


def test_a_model_is_made_once_for_all_its_decodings(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    fill = lm_module.fill
    monkeypatch.setattr(lm_module, "fill", lambda *arguments: (made.append("once"), fill(*arguments)))
    bench, (candidate,) = Bench("cpu"), parse_models([str(small_run.path)], variants=read_variants("rank_1"))
    assert bench.load(candidate) is bench.load(candidate)
    assert made == ["once"]


# ---- both sides rounded to bfloat16, what rounding adds, factors of the whole update


def rounded(tensor: Tensor) -> Tensor:
    """To the nearest number with 8 significant bits, by arithmetic alone: frexp's mantissa in [1/2, 1) times 2^8."""
    mantissa, exponent = np.frexp(tensor.double().numpy())
    return torch.from_numpy(np.ldexp(np.round(mantissa * 256), exponent - 8))


def sides(run: SmallRun, variant: str) -> Iterator[tuple[Weight, Tensor, Tensor, Tensor]]:
    """Every tensor with the base's, the step's and the variant's, float64."""
    edits = StepEdits(run.trajectory, LAST, [parse_ablation(variant)])
    model, reader = edits.model(variant), edits.reader
    for weight in reader.weights:
        assert model.tensor(weight.name).dtype == model.dtype(weight.name) == torch.float32
        yield (
            weight,
            *(
                tensor.double()
                for tensor in (reader.stored(weight, 0), reader.stored(weight, LAST), model.tensor(weight.name))
            ),
        )


def test_a_bf16_model_is_the_one_that_its_bfloat16_file_would_be(small_run: SmallRun) -> None:
    for weight, base, step, model in sides(small_run, "in_scope_full_bf16"):
        assert torch.equal(model, rounded(step if weight.in_scope else base))
    for _, _, step, model in sides(small_run, "full_bf16_in_all"):
        assert torch.equal(model, rounded(step))
    for _, base, _, model in sides(small_run, "base_bf16"):
        assert torch.equal(model, rounded(base))


def test_a_rank_k_bf16_model_is_that_of_the_rounded_difference_on_the_rounded_base(small_run: SmallRun) -> None:
    for weight, base, step, model in sides(small_run, "rank_2_bf16"):
        if not weight.in_scope:
            assert torch.equal(model, rounded(base))
            continue
        D = rounded(step) - rounded(base)
        U, S, Vh = triplets(D)
        part = (U[:, :2] * S[:2]) @ Vh[:2]
        expected = rounded(base) + part * (D.norm() / part.norm())
        torch.testing.assert_close(model, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["rounding_noise", "rounding_noise_unscaled", "rounding_noise_x0.5"])
def test_rounding_noise_is_what_the_rounded_difference_has_beside_the_update(small_run: SmallRun, variant: str) -> None:
    for weight, base, step, model in sides(small_run, variant):
        D = step - base
        if not weight.in_scope:
            assert torch.equal(model, base)
            continue
        of_files = rounded(step) - rounded(base)
        noise = of_files - (of_files * D).sum() / D.square().sum() * D
        norm = {"rounding_noise_unscaled": noise.norm(), "rounding_noise": D.norm()}.get(variant, 0.5 * D.norm())
        torch.testing.assert_close((model - base) / norm, noise / noise.norm(), rtol=0, atol=1e-5)
        assert abs(float(((model - base) * D).sum())) < 1e-4 * float(D.norm() * norm)


def test_rounding_noise_needs_masters(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy_to(tmp_path / "copy")
    file = run.trajectory.model_folder(LAST) / "model.safetensors"
    step = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(step, file, metadata={"format": "pt"})
    run.restate()
    with pytest.raises(RequestError, match="in bfloat16: what rounding took from it is not in the files"):
        list(updates(run, "rounding_noise"))
    for weight, _, edit in updates(run, "rank_1_bf16"):  # the files are rounded already, and the base is now too
        base = StepEdits(run.trajectory, LAST, []).reader.stored(weight, 0).double()
        assert torch.linalg.matrix_rank(edit + base - rounded(base), rtol=1e-5) == 1


@pytest.mark.parametrize("scale", [1, 0.5])
def test_the_whole_update_as_rank_k_has_the_norm_of_the_unscaled_rank_k_model(
    small_run: SmallRun, scale: float
) -> None:
    variant = "in_scope_full_as_rank_2" + ("" if scale == 1 else f"_x{scale:g}")
    unscaled = {weight.name: edit for weight, _, edit in updates(small_run, "rank_2_unscaled")}
    for weight, D, edit in updates(small_run, variant):
        assert float(edit.norm()) == pytest.approx(scale * float(unscaled[weight.name].norm()), rel=1e-5)
        assert float((edit * D).sum() / edit.norm() / D.norm()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("factor", [0.25, 1.5])
def test_a_factor_in_all_scales_every_tensor_of_the_update(small_run: SmallRun, factor: float) -> None:
    for _, base, step, model in sides(small_run, f"full_x{factor:g}_in_all"):
        torch.testing.assert_close(model, base + factor * (step - base), rtol=0, atol=1e-6)
    for weight, base, step, model in sides(small_run, f"rank_1_x{factor:g}_in_all"):
        if not weight.in_scope:
            torch.testing.assert_close(model, base + factor * (step - base), rtol=0, atol=1e-6)
    for _, _, step, model in sides(small_run, "full_in_all"):
        assert torch.equal(model, step)
