"""NExt (arXiv 2604.11446): a small network predicts where the leading singular triplet of every matrix's update goes.

Of each in-scope matrix and kept step i = 1 .. n of the window, in the paper's notation:

    G_i = W_i - W_0 (global),  L_i = W_i - W_(i-1) (local),  T_i = W_(i+5) - W_i (target, i <= n - 5)

The leading triplet (u, s, v) of each is kept; adapters' come from their factors, and no product is formed. One network
for each vector shape (u's of a length, v's of a length, s), shared by all matrices of it, learns T_i's from G_i's and
L_i's, then reads those of the window's last step:

    W = W_n + alpha u s v^T  with  |u| = |v| = 1

The jump is added to the window's last model. Only in-scope matrices that the run has moved take one; every other tensor
stays at the last step's value. The prediction is five kept steps ahead, whatever the target.

Where the paper is silent: signs. A pair (u, v) is turned so that u agrees with the previous checkpoint's; G_1 has the
largest entry of u positive, L_1 is G_1, T_1 is turned towards G_1. ``paper_exact`` leaves signs as the SVD gives them.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlstride.extrapolation.linear import scaled_updates
from rlstride.extrapolation.method import Method, Prediction, Target
from rlstride.progress import track
from rlstride.spectra.svd import TruncatedSVD, svd_of_product, truncated_svd
from rlstride.spectra.updates import UpdateReader
from rlstride.trajectory.scope import Weight
from rlstride.trajectory.store import Trajectory

AHEAD = 5  # kept steps from W_i to its target
UPDATES = 1000
FIRST_RATE, LAST_RATE = 2e-5, 2e-6
_WIDTH = 256


@dataclass(frozen=True)
class NExt(Method):
    """Nonlinear extrapolation of low-rank trajectories.

    Seven kept steps are the fewest: they make two pairs of input and target, and from one pair alone a network learns a
    constant, whatever it is shown.

    Attributes:
        use_global: whether the network sees G; False is the paper's ablation.
        use_local: whether it sees L.
        alpha: how far the jump goes; ``next_validated`` chooses it on validation problems.
        paper_exact: leaves the signs of singular pairs as the SVD gives them.
        updates: of each network, over the full batch.
    """

    name: str = "next"
    use_global: bool = True
    use_local: bool = True
    alpha: float = 1.5
    paper_exact: bool = False
    updates: int = UPDATES

    def fit(self, window: Trajectory, accuracies: Mapping[int, float]) -> "NExtPredictor":
        began = time.perf_counter()
        reader = UpdateReader(window)
        found = {
            weight.name: differences(reader, weight, align=not self.paper_exact)
            for weight in track(reader.in_scope, f"{self.name}: modules, {len(window.steps)} steps")
        }
        moved = {name: each for name, each in found.items() if float(each.G.s[-1]) > 0}
        jumps, losses = self._jumps(window, moved)
        info = {
            "kept_steps_ahead": AHEAD,
            "pairs": len(window.steps) - AHEAD,
            "updates": self.updates,
            "losses": losses,
            "s_over_last_s": _quantiles([abs(float(jumps[name].s)) / float(moved[name].G.s[-1]) for name in jumps]),
            "unmoved": [name for name in found if name not in moved],
        }
        return NExtPredictor(window, jumps, self.alpha, info, round(time.perf_counter() - began, 3))

    def _jumps(
        self, window: Trajectory, moved: Mapping[str, "Differences"]
    ) -> tuple[dict[str, "Triplet"], dict[str, list[float]]]:
        """What the networks predict for each matrix, and the first and the last loss of each network."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in moved}
        losses = {}
        for (part, d), names in _by_shape(moved).items():
            sequences = [moved[name].vectors(part) for name in names]
            G, L, T = (torch.stack([each[i] for each in sequences], dim=1) for i in range(3))  # (n or n - 5, M, d)
            inputs = [each for each, used in ((G, self.use_global), (L, self.use_local)) if used]
            trained = train_network(
                [each[: len(T)] for each in inputs], T, seed=window.seed_for(self.name, part, d), updates=self.updates
            )
            losses[f"{part}{d}" if part != "s" else part] = [trained.losses[0], trained.losses[-1]]
            predicted = infer(trained.network, [each[-1] for each in inputs])  # (M, d)
            for name, vector in zip(names, predicted, strict=True):
                parts[name][part] = vector
        return {name: Triplet(_unit(p["u"]), p["s"][0], _unit(p["v"])) for name, p in parts.items()}, losses


NEXT = NExt()
NEXT_WITHOUT_G = NExt("next_without_g", use_global=False)
NEXT_WITHOUT_L = NExt("next_without_l", use_local=False)


@dataclass(frozen=True)
class Triplet:
    """A rank-1 matrix u s v^T: unit vectors u (m,) and v (n,), and a number, which a network may make negative."""

    u: Tensor
    s: Tensor
    v: Tensor

    def matrix(self) -> Tensor:
        """u s v^T, float64 (m, n)."""
        return float(self.s) * torch.outer(self.u.double(), self.v.double())


@dataclass(frozen=True)
class NExtPredictor:
    """The jump of every matrix that moved, by tensor name; ``seconds`` is what finding it took."""

    window: Trajectory
    jumps: dict[str, Triplet]
    alpha: float
    info: dict[str, Any]
    seconds: float

    def predict(self, target: Target) -> Prediction:
        return Prediction(self._deltas(), {"alpha": self.alpha, **self.info}, {"predictor_seconds": self.seconds})

    def _deltas(self) -> Iterator[tuple[str, Tensor]]:
        for name, update in scaled_updates(self.window, self.window.steps[-1], factor=1.0):
            yield name, update + self.alpha * self.jumps[name].matrix() if name in self.jumps else update


@dataclass(frozen=True)
class Sequence:
    """Leading triplets of one matrix's differences over checkpoints; zero vectors where a difference is zero.

    Attributes:
        u: (n, m).
        s: (n,).
        v: (n, columns).
    """

    u: Tensor
    s: Tensor
    v: Tensor


@dataclass(frozen=True)
class Differences:
    """The leading triplets of G (n), L (n) and T (n - 5) of one matrix."""

    G: Sequence
    L: Sequence
    T: Sequence

    def vectors(self, part: str) -> list[Tensor]:
        """``u``, ``v`` or ``s`` of G, L and T, as rows: (n, d), (n, d), (n - 5, d)."""
        found = [getattr(each, part) for each in (self.G, self.L, self.T)]
        return [each[:, None] if part == "s" else each for each in found]


def differences(reader: UpdateReader, weight: Weight, *, align: bool) -> Differences:
    """The leading triplets of a matrix's global, local and target differences over a window, in float32.

    Errors are those of :meth:`UpdateReader.stored`.
    """
    steps = [0, *reader.trajectory.steps]
    n = len(steps) - 1
    G = _sequence([_leading(reader, weight, steps[i], 0) for i in range(1, n + 1)])
    # L_1 is G_1.
    later = [_leading(reader, weight, steps[i], steps[i - 1]) for i in range(2, n + 1)]
    T = _sequence([_leading(reader, weight, steps[i + AHEAD], steps[i]) for i in range(1, n + 1 - AHEAD)])
    if align:
        G = aligned(G, None)
    rest = _sequence(later)
    L = Sequence(*(torch.cat([getattr(G, part)[:1], getattr(rest, part)]) for part in ("u", "s", "v")))
    return Differences(G, aligned(L, L.u[0]), aligned(T, G.u[0])) if align else Differences(G, L, T)


def aligned(found: Sequence, reference: Tensor | None) -> Sequence:
    """Turns each pair (u, v) so that u does not point away from the one before it.

    Args:
        found: triplets, checkpoint after checkpoint.
        reference: what the first u is turned towards (m,); None makes its largest entry positive.
    """
    u, v = found.u.clone(), found.v.clone()
    for i in range(len(u)):
        if found.s[i] == 0:
            continue
        agreement = u[i, u[i].abs().argmax()] if reference is None else u[i] @ reference
        if agreement < 0:
            u[i], v[i] = -u[i], -v[i]
        reference = u[i]
    return Sequence(u, found.s, v)


def _leading(reader: UpdateReader, weight: Weight, later: int, earlier: int) -> TruncatedSVD:
    """The first triplet of W_later - W_earlier; an adapter's from the factors, side by side."""
    after = reader.factors(weight, later)
    before = None if earlier == 0 else reader.factors(weight, earlier)
    if after is not None and (before is not None or earlier == 0):
        if before is None:
            return svd_of_product(*after, 1)
        return svd_of_product(torch.cat([after[0], -before[0]], dim=1), torch.cat([after[1], before[1]]), 1)
    D = reader.update(weight, later)
    return truncated_svd(D if earlier == 0 else D - reader.update(weight, earlier), 1)


def _sequence(found: list[TruncatedSVD]) -> Sequence:
    s = torch.stack([each.s[0] for each in found]).float()
    moved = (s > 0)[:, None]
    u, v = (torch.stack([getattr(each, part)[:, 0] for each in found]).float() for part in ("u", "v"))
    return Sequence(u * moved, s, v * moved)


def _by_shape(moved: Mapping[str, Differences]) -> dict[tuple[str, int], list[str]]:
    """The matrices that share a network, by part of the triplet and length."""
    groups: dict[tuple[str, int], list[str]] = {}
    for part in ("u", "s", "v"):
        for name, each in moved.items():
            groups.setdefault((part, each.vectors(part)[0].shape[1]), []).append(name)
    return groups


class Network(nn.Module):
    """An encoder for each input, and a decoder of their concatenation; d in, d out.

    Args:
        d: length of the vectors.
        inputs: how many vectors go in: G's and L's, or one of them.
    """

    def __init__(self, d: int, inputs: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(_layers(d, d) for _ in range(inputs))
        self.decoder = _layers(inputs * d, d)

    def forward(self, *vectors: Tensor) -> Tensor:
        """The predicted vectors (..., d), from as many as there are encoders, each (..., d)."""
        encoded = [encoder(vector) for encoder, vector in zip(self.encoders, vectors, strict=True)]
        decoded: Tensor = self.decoder(torch.cat(encoded, dim=-1))
        return decoded


def _layers(d: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d, _WIDTH), nn.Linear(_WIDTH, d), nn.ReLU(), nn.Linear(d, _WIDTH), nn.Linear(_WIDTH, out)
    )


@dataclass(frozen=True)
class Trained:
    """A network, and the loss and the learning rate of each of its updates."""

    network: Network
    losses: list[float]
    rates: list[float]


def train_network(inputs: list[Tensor], targets: Tensor, *, seed: int, updates: int = UPDATES) -> Trained:
    """Fits a network to all pairs at once: L1 summed over matrices and entries, divided by the number of checkpoints.

    AdamW with a rate from 2e-5 to 2e-6 along a cosine, the last update at 2e-6.

    Args:
        inputs: vectors of the pairs' checkpoints and of M matrices, (P, M, d) each.
        targets: (P, M, d).
        seed: of the network's first weights.
        updates: over the full batch.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = Network(targets.shape[-1], len(inputs))
        optimizer = torch.optim.AdamW(network.parameters(), lr=FIRST_RATE)
        losses, rates = [], []
        for update in range(updates):
            [group] = optimizer.param_groups
            group["lr"] = cosine_rate(update, updates)
            loss = (network(*inputs) - targets).abs().sum() / len(targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            rates.append(group["lr"])
    return Trained(network, losses, rates)


def cosine_rate(update: int, updates: int) -> float:
    """The learning rate of an update, counted from 0: half a cosine from the first rate to the last."""
    way = update / max(1, updates - 1)
    return LAST_RATE + (FIRST_RATE - LAST_RATE) * (1 + math.cos(math.pi * way)) / 2


@torch.no_grad()
def infer(network: Network, last: list[Tensor]) -> Tensor:
    """The vectors (M, d) that a network predicts from those of the window's last checkpoint, (M, d) each."""
    predicted: Tensor = network(*last)
    return predicted


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector.double() / torch.linalg.vector_norm(vector.double())
    return unit


def _quantiles(ratios: list[float]) -> dict[str, float]:
    if not ratios:
        return {}
    found = torch.quantile(torch.tensor(ratios, dtype=torch.float64), torch.tensor([0, 0.5, 1], dtype=torch.float64))
    return dict(zip(("min", "median", "max"), found.tolist(), strict=True))
