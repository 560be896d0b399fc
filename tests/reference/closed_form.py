"""Fits canonical correlation and ridge regression in NumPy, and checks both against scikit-learn.

    pip install numpy==2.4.6 scikit-learn==1.9.1
    python3 tests/reference/closed_form.py

Writes tests/reference/closed_form.json: images with one to three caption vectors and a weight, their weighted means and
covariances, and for each pair of shrinkages the correlations, the scores of image/caption pairs, the ridge map and both classifiers.
"""

import json
import pathlib

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

IMAGES, INPUT, OUTPUT, CLASSES = 90, 7, 5, 6
SHRINKAGES, CAPTION_SHRINKAGES = [0.02, 0.4], [0.3, 0.4]


def shrink(covariance, shrinkage):
    mean = np.trace(covariance) / len(covariance)
    return (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def main():
    rng = np.random.default_rng(11)
    latent = rng.standard_normal((IMAGES, 3))
    # A large mean and different spreads, as features have.
    features = latent @ rng.standard_normal((3, INPUT)) + 0.4 * rng.standard_normal((IMAGES, INPUT))
    features = (features * rng.uniform(0.2, 3, INPUT) + rng.uniform(-40, 40, INPUT)).astype(np.float32)
    counts = rng.integers(1, 4, IMAGES)
    own = np.repeat(np.arange(IMAGES), counts)
    captions = latent[own] @ rng.standard_normal((3, OUTPUT)) + 0.5 * rng.standard_normal((len(own), OUTPUT))
    captions = captions.astype(np.float32)
    weights = rng.integers(1, 4, IMAGES) / 2
    labels = rng.integers(0, CLASSES - 1, IMAGES)  # The last class has no image.

    x, y, w = features.astype(np.float64), captions.astype(np.float64), weights[own] / counts[own]
    x_mean, y_mean = np.average(x, 0, weights), np.average(y, 0, w)
    std = np.sqrt(np.average((x - x_mean) ** 2, 0, weights))
    z, t = (x - x_mean) / std, y - y_mean
    xx = (z * weights[:, None]).T @ z / weights.sum()
    xy = (z[own] * w[:, None]).T @ t / w.sum()
    yy = (t * w[:, None]).T @ t / w.sum()
    out = {
        "features": features.tolist(), "captions": captions.tolist(), "counts": counts.tolist(),
        "weights": weights.tolist(), "labels": labels.tolist(), "classes": CLASSES, "shrinkages": SHRINKAGES,
        "caption_shrinkages": CAPTION_SHRINKAGES,
        "feature_mean": x_mean.tolist(), "caption_mean": y_mean.tolist(), "std": std.tolist(),
        "xx": xx.tolist(), "xy": xy.tolist(), "yy": yy.tolist(), "fits": [],
    }
    for shrinkage, of_captions in zip(SHRINKAGES, CAPTION_SHRINKAGES):
        cxx, cyy = shrink(xx, shrinkage), shrink(yy, of_captions)
        left, values, right = np.linalg.svd(root(cxx) @ xy @ root(cyy), full_matrices=False)
        a, b = root(cxx) @ left, root(cyy) @ right.T
        rank, power = 3, 0.5
        images, texts = (z @ a * values**power)[:, :rank], (t @ b * values**power)[:, :rank]

        ridge = np.linalg.solve(cxx, xy)
        # The same ridge by scikit-learn: the penalty of a mean over weights that add up to one, times their sum.
        penalty = shrinkage / (1 - shrinkage) * np.trace(xx) / INPUT * w.sum()
        other = Ridge(alpha=penalty).fit(z[own], t, sample_weight=w)
        assert np.allclose(other.coef_.T / (1 - shrinkage), ridge, atol=1e-9), "scikit-learn's ridge differs"

        total = np.array([weights[labels == c].sum() for c in range(CLASSES)])
        means = np.array([np.average(z[labels == c], 0, weights[labels == c]) if total[c] else np.zeros(INPUT) for c in range(CLASSES)])
        share = (total / weights.sum())[:, None]
        solved = np.linalg.solve(cxx, means.T).T
        one_hot = z @ (share * solved).T + share[:, 0]
        target = np.eye(CLASSES)[labels]
        other = Ridge(alpha=shrinkage / (1 - shrinkage) * np.trace(xx) / INPUT * weights.sum())
        other.fit(z, target, sample_weight=weights)
        assert np.allclose((other.predict(z) - share[:, 0]) / (1 - shrinkage) + share[:, 0], one_hot, atol=1e-9)
        discriminant = z @ solved.T - 0.5 * np.sum(solved * means, 1)
        fit = {"correlations": values, "scores": images[:10] @ texts[:40].T, "ridge": ridge.T, "one_hot": one_hot[:20], "means": discriminant[:20, :-1]}
        out["fits"].append({key: value.tolist() for key, value in fit.items()})
    # The discriminant with scikit-learn's own covariance gives scikit-learn's differences between classes.
    lda = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(CLASSES - 1, 1 / (CLASSES - 1))).fit(z, labels)
    within = sum(np.cov(z[labels == c].T, bias=True) for c in range(CLASSES - 1)) / (CLASSES - 1)
    plain = np.array([z[labels == c].mean(0) for c in range(CLASSES - 1)])
    solved = np.linalg.solve(within, plain.T).T
    assert np.allclose(np.diff(lda.decision_function(z), axis=1), np.diff(z @ solved.T - 0.5 * np.sum(solved * plain, 1), axis=1), atol=1e-8)
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
