"""Labels spread over a graph of images: features -> nearest neighbors -> how much of each class reaches each image.

Pure functions, the pieces of label propagation (Zhou et al. 2004; Iscen et al. 2019, arXiv:1904.04717).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses import sinkhorn

if TYPE_CHECKING:  # half a second of imports, which a run without a graph can do without
    from scipy.sparse import csr_array

__all__ = [
    "balanced",
    "certainty",
    "class_weights",
    "estimated_shares",
    "induced",
    "joined",
    "nearest",
    "neighbor_graph",
    "resample",
    "spread_labels",
    "wanted_shares",
    "whitened",
]

TOLERANCE = 1e-6
"""Of the conjugate gradients, relative to the right-hand side. Iscen et al. too, but they stop after 20 iterations."""
BALANCING = 20
"""Times that rows and columns are scaled in turns."""
EXPECTATIONS = 100
"""Iterations of expectation-maximization."""
ITERATIONS = 1000
"""Most conjugate gradient steps for a class. The number needed grows as (1 - alpha)^-1/2: about 100 at alpha = 0.99."""


def whitened(features: Tensor, components: int, fit: int | None = None) -> Tensor:
    """Return principal components of features, each with variance 1.

    What most images have in common counts then no more than what tells a few of them apart.

    H. Jégou and O. Chum, ECCV 2012, for retrieval by cosine.

    Args:
        features: (N, D), on any device.
        components: how many, >= 1. There are fewer where the features vary in fewer directions: N - 1 of N images, and
            none for a feature that is constant or repeats another.
        fit: the first so many rows alone decide what the components are; None: all do.

    Returns:
        (N, K) float32, K <= components, on the same device.
    """
    from sklearn.decomposition import PCA

    x = features.cpu().double().numpy()
    rows, columns = x[:fit].shape
    # The same components: 600 x 2,048 take 0.5 s of a core by their rows, 2.7 s by their covariance.
    solver = "covariance_eigh" if rows >= columns else "full"
    pca = PCA(min(components, rows, columns), whiten=True, svd_solver=solver)
    found = pca.fit_transform(x) if fit is None else pca.fit(x[:fit]).transform(x)
    # What has no variance but rounding's would be scaled to 1 like the rest, and rows that did not fit it to 1e15.
    varies = pca.explained_variance_ > max(rows, columns) * np.finfo(x.dtype).eps * pca.explained_variance_[0]
    return torch.from_numpy(found[:, varies]).to(features)


def nearest(
    features: Tensor, neighbors: int, queries: Tensor | None = None, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return the nearest images by cosine: cosines (M, k) and rows of `features` (M, k), on the CPU.

    An exact search: about half a minute for 60,000 images of 64 features on one thread, and chunk * N floats of memory.

    Args:
        features: (N, D), on any device.
        neighbors: how many, >= 1; k is N at most, or N - 1 without queries.
        queries: (M, D), on the same device, whose neighbors are wanted; None: each image's, none of which is its own.
        chunk: queries per matrix product.
    """
    unit = F.normalize(features.float(), dim=1)
    asked = unit if queries is None else F.normalize(queries.float(), dim=1)
    k = min(neighbors, len(unit) - (queries is None))
    cosines, rows = torch.empty(len(asked), k), torch.empty(len(asked), k, dtype=torch.int64)
    # One block for all products. A new one for each, with what is kept of it between them, took 15 GB for 60,000 images
    # where the allocator gives nothing back, as in a suite's workers.
    block = unit.new_empty(min(chunk, len(asked)), len(unit))
    for start in range(0, len(asked), chunk):
        part = slice(start, min(start + chunk, len(asked)))
        products = torch.mm(asked[part], unit.T, out=block[: part.stop - start])
        if queries is None:
            products.diagonal(start).fill_(-torch.inf)
        cosines[part], rows[part] = products.topk(k, dim=1)
    return cosines, rows


def neighbor_graph(features: Tensor, neighbors: int, power: float = 3.0, chunk: int = 1024) -> csr_array:
    """Join each image to its nearest ones by cosine; see `nearest` and `joined`, whose arguments these are."""
    return joined(*nearest(features, neighbors, chunk=chunk), power)


def joined(cosines: Tensor, rows: Tensor, power: float = 3.0) -> csr_array:
    """Join images to their nearest ones: weights `max(0, cos)^power`, made symmetric as A + A^T.

    Iscen et al. 2019, arXiv:1904.04717, sec. 3. No image is its own neighbor, so that the diagonal is 0.

    Args:
        cosines: (N, k) of each image's neighbors.
        rows: (N, k) of these.
        power: > 0. Paper: 3.

    Returns:
        (N, N) float64, sparse, symmetric, on the CPU.
    """
    from scipy.sparse import csr_array

    n, k = rows.shape
    values = cosines.clamp(min=0).double().pow(power).flatten().numpy()
    places = (np.repeat(np.arange(n), k), rows.flatten().numpy())
    edges = csr_array((values, places), shape=(n, n))
    edges.eliminate_zeros()
    return csr_array(edges + edges.T)


def induced(cosines: Tensor, rows: Tensor, probs: Tensor, power: float = 3.0, chunk: int = 1024) -> Tensor:
    """Return what the nearest images say of new ones (M, C): the mean of their `probs`, weighted by cosine.

    Weights are `max(0, cos)^power`, as in the graph. The extension of its labels to what is not in it, Delalleau,
    Bengio and Le Roux 2005 (AISTATS), eq. 8. Rows of sum 1; where no cosine is above 0, all classes the same.

    Args:
        cosines: (M, k) of each new image's neighbors.
        rows: (M, k) of these in the graph.
        probs: (N, C) of the graph's images, rows of sum 1, on the CPU.
        power: > 0.
        chunk: new images at a time, which take chunk * k * C doubles of memory.
    """
    found = []
    for near, asked in zip(cosines.split(chunk), rows.split(chunk), strict=True):
        weights = near.clamp(min=0).double().pow(power)
        votes = (weights[:, :, None] * probs.double()[asked]).sum(1)
        total = weights.sum(1, keepdim=True)
        found.append(torch.where(total > 0, votes / total.clamp(min=1e-300), 1 / probs.shape[1]))
    return torch.cat(found)


def spread_labels(
    graph: csr_array, index: np.ndarray, labels: np.ndarray, num_classes: int, alpha: float
) -> np.ndarray:
    """Return F = (I - alpha S)^-1 Y, S = D^-1/2 W D^-1/2: how much of each class reaches each image.

    Zhou et al. 2004 (NIPS 16), sec. 2; Y is one-hot in the labeled rows and 0 elsewhere. (The code of Iscen et al.
    divides each class by its number of labels; we follow the papers.) Solved class by class by conjugate gradients: S
    has no eigenvalue above 1, so that the matrix is positive definite for alpha < 1.

    Args:
        graph: W (N, N), sparse, symmetric, not negative, with a diagonal of 0.
        index: (L,) labeled rows.
        labels: (L,) their classes.
        num_classes: C.
        alpha: in [0, 1). 0 leaves Y; the papers: 0.99.

    Returns:
        (N, C) float64, not negative. A row of 0: no labeled image can be reached from there.

    Raises:
        SemisupError: no convergence in `ITERATIONS` steps: `alpha` is too near to 1.
    """
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import cg

    n = graph.shape[0]
    degrees = np.asarray(graph.sum(axis=1))
    scale = diags_array(np.divide(1.0, np.sqrt(degrees), out=np.zeros(n), where=degrees > 0))
    system = (eye_array(n) - alpha * (scale @ graph @ scale)).tocsr()
    spread = np.zeros((n, num_classes))
    for c in range(num_classes):
        y = np.zeros(n)
        y[index[labels == c]] = 1
        spread[:, c], stopped = cg(system, y, rtol=TOLERANCE, atol=0.0, maxiter=ITERATIONS)
        if stopped:
            raise SemisupError(f"alpha: the labels of class {c} do not settle at {alpha}; use a smaller one")
    return np.maximum(spread, 0)


def balanced(spread: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Return (N, C), rows of sum 1 or 0: `spread` with classes of given shares.

    Columns and rows are scaled in turns until every class has nearly its share of the M rows where something arrived
    (Sinkhorn and Knopp 1967; M. Cuturi, arXiv:1306.0895).

    A class whose labeled images lie in a crowd reaches too many of the others' images. Where nothing arrived there is
    nothing to scale: rows of 0 stay 0, as of an image that belongs to no class.

    Args:
        spread: (N, C), not negative.
        shares: (C,) of sum 1; None: 1 / C each.
    """
    reached = spread.sum(1) > 0
    probs, _ = certainty(spread[reached])
    if shares is not None:
        scaled = np.zeros_like(spread)
        scaled[reached] = _scaled(probs, shares)
        return scaled
    logs = torch.from_numpy(np.log(np.maximum(probs, np.finfo(np.float32).tiny)))
    scaled = np.zeros_like(spread)
    scaled[reached] = sinkhorn(logs, epsilon=1.0, iterations=BALANCING).numpy()
    return scaled


def _scaled(probs: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(M, C), rows of sum 1 whose mean is nearly `shares` (C,): columns and rows of (M, C) scaled in turns."""
    for _ in range(BALANCING):
        probs, _ = certainty(probs * (shares / np.maximum(probs.mean(0), np.finfo(np.float32).tiny)))
    return probs


def estimated_shares(probs: np.ndarray, of_labels: np.ndarray) -> np.ndarray:
    """Return the shares (C,) of the classes among images, by expectation-maximization over predictions on them.

    M. Saerens, P. Latinne, C. Decaestecker, Neural Computation 14(1), 2002, eq. 9: beginning with the labels' shares, a
    prediction p becomes p_c pi_c / labels_c, renormalized, and pi the mean of these.

    Args:
        probs: (N, C), rows of sum 1.
        of_labels: (C,) > 0, shares of the classes among the labels that the predictions are made by.
    """
    shares = of_labels
    for _ in range(EXPECTATIONS):
        shares = certainty(probs * (shares / of_labels))[0].mean(0)
    return shares


def wanted_shares(balance: str | list[float] | bool, spread: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Return the shares (C,) that `propagate.balance` asks for; None: the same for all.

    Args:
        balance: uniform, labels, estimated, a list of shares, or true, which is uniform.
        spread: (N, C), not negative, what of each class has reached the images.
        labels: (L,) the classes of the labeled images; one more image of each class is counted.
    """
    if isinstance(balance, list):
        given: np.ndarray = np.asarray(balance)
        return given
    counts = np.bincount(labels, minlength=spread.shape[1]) + 1.0
    if balance == "labels":
        of_labels: np.ndarray = counts / counts.sum()
        return of_labels
    if balance == "estimated":
        return estimated_shares(certainty(spread[spread.sum(1) > 0])[0], counts / counts.sum())
    return None


def certainty(spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return class probabilities (N, C), rows of `spread` to sum 1, and omega = 1 - entropy / log C (N,) in [0, 1].

    Iscen et al. 2019, sec. 3. Where nothing arrived, the probabilities are uniform and omega is 0.
    """
    totals = spread.sum(1, keepdims=True)
    classes = spread.shape[1]
    probs = np.divide(spread, totals, out=np.full_like(spread, 1 / classes), where=totals > 0)
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    return probs, np.clip(1 + (probs * logs).sum(1) / math.log(max(classes, 2)), 0, 1)


def class_weights(guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (N / C) / n_c for each class c (C,), n_c of the N guesses (N,) being c; 0 for a class without any.

    Iscen et al. 2019, sec. 3, up to a factor: where every class was guessed, the mean over the images is 1.
    """
    counts = np.bincount(guesses, minlength=num_classes)
    return np.divide(len(guesses) / num_classes, counts, out=np.zeros(num_classes), where=counts > 0)


def resample(weights: np.ndarray, generator: torch.Generator) -> Tensor:
    """Return N rows, each as often as its share of the weights says, N * w_i / sum(w), rounded up or down at random.

    Drawing from these evenly gives, on average, the weighted mean of the losses.

    Args:
        weights: (N,), not negative, not all 0.
        generator: decides the rounding, by one number (systematic sampling).
    """
    n = len(weights)
    ends = np.cumsum(weights) / np.sum(weights) * n
    ticks = np.arange(n) + float(torch.rand((), generator=generator, dtype=torch.float64))
    return torch.from_numpy(np.minimum(np.searchsorted(ends, ticks, side="right"), n - 1))
