"""Flat pictures of a movement: where each kept step lies, the base at the origin."""

import numpy as np
from sklearn.manifold import TSNE

from rlstride.arrays import Floats
from rlstride.dynamics.gram import with_base

_LARGEST_PERPLEXITY = 10.0


def pca_path(G: Floats) -> Floats:
    """The first two principal components of the base and the T positions, from their inner products.

    Two smooth components are no finding: a random walk has them too (Antognini and Sohl-Dickstein, 2018).

    Args:
        G: (T, T).

    Returns:
        (T, 2) relative to the base; its mean lies on the positive side of both axes. Zero where nothing moved.
    """
    centred = with_base(G)
    centred = centred - centred.mean(axis=0)
    centred = centred - centred.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(centred)
    path: Floats = vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 0))
    path = path[1:] - path[0]
    path *= np.where(path.sum(axis=0) < 0, -1.0, 1.0)
    return path


def tsne_path(G: Floats, seed: int) -> Floats:
    """t-SNE of the base and the T positions by their distances: (T, 2) relative to the base.

    Distances between far groups and the spread of a group mean nothing in it.
    """
    whole = with_base(G)
    norms = np.diag(whole)
    distances = np.sqrt(np.maximum(norms[:, None] + norms[None, :] - 2 * whole, 0))
    if not distances.any():
        return np.zeros((len(G), 2))
    perplexity = min(_LARGEST_PERPLEXITY, len(G) / 3)
    method = TSNE(perplexity=perplexity, metric="precomputed", init="random", random_state=seed % 2**32)
    path = np.asarray(method.fit_transform(distances / distances.max()), dtype=np.float64)
    relative: Floats = path[1:] - path[0]
    return relative
