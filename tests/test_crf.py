"""The dense CRF: the exact mean field against loops, pydensecrf2 against the exact mean field.

pydensecrf2's own kernel, an approximation by the permutohedral lattice, is measured by one iteration on
one-hot beliefs. With it our mean field must give pydensecrf2's result; that kernel is held
against the Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import refused, run_in
from PIL import Image
from scipy.ndimage import gaussian_filter

from caffe_weights.errors import InputError
from reproduce import crf
from reproduce.crf import (
    SETTINGS,
    dense_crf,
    find_settings,
    unary_of_probabilities,
    unary_of_scores,
)
from reproduce.mean_field import NORMALIZATIONS, colour_features, gaussian_kernel, mean_field, place_features

SIDE, CLASSES = 32, 3
RULES = list(NORMALIZATIONS)


def smooth_scores(side: int = SIDE, classes: int = CLASSES) -> np.ndarray:
    random = np.random.default_rng(0)
    scores = np.stack([gaussian_filter(random.standard_normal((side, side)), 2) for _ in range(classes)])
    return (scores / scores.std()).astype(np.float32)


def smooth_picture(side: int = SIDE) -> np.ndarray:
    random = np.random.default_rng(1)
    planes = np.stack([gaussian_filter(random.random((side, side)), 4) for _ in range(3)], -1)
    return ((planes - planes.min()) / (planes.max() - planes.min()) * 255).astype(np.uint8)


def by_loops(unary: np.ndarray, image: np.ndarray, s: crf.CrfSettings, steps: int) -> np.ndarray:
    """The paper's algorithm without normalisation, one pair of pixels at a time."""
    classes, height, width = unary.shape
    pixels = [(r, c) for r in range(height) for c in range(width)]
    q = {p: [math.exp(-unary[k][p]) for k in range(classes)] for p in pixels}
    for step in range(steps + 1):
        q = {p: [v / sum(q[p]) for v in q[p]] for p in pixels}
        if step == steps:
            break
        new = {}
        for p in pixels:
            energy = [-float(unary[k][p]) for k in range(classes)]
            for o in pixels:
                far = ((p[0] - o[0]) ** 2 + (p[1] - o[1]) ** 2) / 2
                apart = sum((float(a) - float(b)) ** 2 for a, b in zip(image[p], image[o], strict=True)) / 2
                pair = s.gaussian_weight * math.exp(-far / s.gaussian_sxy**2)
                near = far / s.bilateral_sxy**2 + apart / s.bilateral_srgb**2
                pair += s.bilateral_weight * math.exp(-near)
                energy = [e + pair * v for e, v in zip(energy, q[o], strict=True)]
            new[p] = [math.exp(e) for e in energy]
        q = new
    return np.array([[[q[r, c][k] for c in range(width)] for r in range(height)] for k in range(classes)])


def test_the_exact_mean_field_is_the_papers_algorithm() -> None:
    random = np.random.default_rng(3)
    unary = random.random((3, 4, 5))
    image = random.integers(0, 30, (4, 5, 3), dtype=np.uint8)
    settings = crf.CrfSettings(0.3, 2, 0.5, 4, 9, 3)
    want = by_loops(unary, image, settings, 3)
    np.testing.assert_allclose(dense_crf(unary, image, settings, exact=True), want, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_normalisation_of_a_kernel(rule: str) -> None:
    kernel = gaussian_kernel(place_features(4, 5, 2.0))
    got, sums = NORMALIZATIONS[rule](kernel), kernel.sum(1)
    for i, j in ((0, 0), (3, 17), (19, 2)):
        by = {"none": 1.0, "before": sums[j], "after": sums[i], "symmetric": math.sqrt(sums[i] * sums[j])}
        assert got[i, j] == pytest.approx(kernel[i, j] / by[rule], rel=1e-12)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_zero_weights_give_the_softmax_and_beliefs_sum_to_one(rule: str, exact: bool) -> None:
    scores = smooth_scores()
    zero = find_settings("deconvnet", gaussian_weight=0, bilateral_weight=0, normalization=rule)
    raised = np.exp(scores.astype(np.float64))
    np.testing.assert_allclose(dense_crf(unary_of_scores(scores), smooth_picture(), zero, exact),
                               raised / raised.sum(0), rtol=1e-5)  # fmt: skip
    if not exact:
        pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    full = find_settings("deconvnet", normalization=rule)
    beliefs = dense_crf(unary_of_scores(scores), smooth_picture(), full, exact)
    np.testing.assert_allclose(beliefs.sum(0), 1, atol=2e-6)


def lattice_kernel(rule: str, gaussian: bool) -> np.ndarray:
    """The library's kernel N x N: each pixel has a label of its own, one label nobody has; after one
    iteration the message from pixel j to i is the logarithm's difference between j's label and nobody's."""
    count = SIDE * SIDE
    unary = np.full((count + 1, count), 20.0)
    unary[np.arange(count), np.arange(count)] = 0
    weights = {"gaussian_weight": float(gaussian), "bilateral_weight": float(not gaussian)}
    settings = find_settings("deconvnet", iterations=1, normalization=rule, **weights)
    beliefs = dense_crf(unary.reshape(-1, SIDE, SIDE), smooth_picture(), settings)
    logs = np.log(beliefs.astype(np.float64)).reshape(count + 1, count) + unary
    return (logs[:-1] - logs[-1]).T


@pytest.fixture(scope="module")
def lattice() -> dict[tuple[str, bool], np.ndarray]:
    pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    return {(rule, kind): lattice_kernel(rule, kind) for rule in RULES for kind in (True, False)}


Kernels = dict[tuple[str, bool], np.ndarray]


@pytest.mark.parametrize("rule", RULES)
def test_pydensecrf_is_the_exact_mean_field_on_its_own_kernel(rule: str, lattice: Kernels) -> None:
    """Shows the algorithm, the weights, the term of a pixel on itself, colours' order and the defaults."""
    settings = find_settings("deconvnet", iterations=5, normalization=rule)
    unary = unary_of_scores(smooth_scores())
    kernels = [(3.0, lattice[rule, True]), (5.0, lattice[rule, False])]
    want = mean_field(unary.reshape(CLASSES, -1), kernels, 5).reshape(unary.shape)
    got = dense_crf(unary, smooth_picture(), settings)
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("kind", [True, False])
def test_the_rules_mean_the_same_in_the_library(kind: bool, lattice: Kernels) -> None:
    for rule, normalize in NORMALIZATIONS.items():
        want = normalize(lattice["none", kind])
        np.testing.assert_allclose(lattice[rule, kind], want, atol=5e-4 * want.max())


def exact_kernel(rule: str, gaussian: bool) -> np.ndarray:
    features = place_features(SIDE, SIDE, 3) if gaussian else colour_features(smooth_picture(), 20, 3)
    return NORMALIZATIONS[rule](gaussian_kernel(features))


@pytest.mark.parametrize("rule", ["before", "after", "symmetric"])
@pytest.mark.parametrize(("kind", "bound"), [(True, 0.06), (False, 0.12)])
def test_messages_of_the_lattice_are_near_the_gaussians(
    rule: str, kind: bool, bound: float, lattice: Kernels
) -> None:
    beliefs = np.exp(-unary_of_scores(smooth_scores())).reshape(CLASSES, -1)
    want, got = beliefs @ exact_kernel(rule, kind).T, beliefs @ lattice[rule, kind].T
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < bound


def test_without_normalisation_the_lattice_is_too_small_by_its_mass(lattice: Kernels) -> None:
    """A blur of [1 2 1] / 2 along d + 1 axes of a lattice with cells of volume (3 / 2)^(d / 2) / sqrt(d + 1),
    over 1 + 2^-d, against (2 pi)^(d / 2): 0.882 in two dimensions."""
    mass = 1.5 / math.sqrt(3) * 2**3 / (1 + 2**-2) / (2 * math.pi)
    ratios = lattice["none", True].sum(1) / exact_kernel("none", True).sum(1)
    middle = ratios.reshape(SIDE, SIDE)[10:-10, 10:-10].mean()
    assert middle == pytest.approx(mass, rel=0.03)
    colours = lattice["none", False].sum() / exact_kernel("none", False).sum()
    assert 0.3 < colours < 0.9


@pytest.mark.parametrize("rule", RULES)
def test_pydensecrf_labels_are_near_those_of_the_exact_gaussian(rule: str) -> None:
    pytest.importorskip("pydensecrf", reason="needs the extra [crf]")
    unary, settings = unary_of_scores(smooth_scores()), find_settings("deconvnet", normalization=rule)
    got, want = (dense_crf(unary, smooth_picture(), settings, exact) for exact in (False, True))
    assert (got.argmax(0) == want.argmax(0)).mean() > (0.85 if rule == "none" else 0.95)


def test_the_released_settings_are_the_default() -> None:
    published = SETTINGS["deconvnet"]
    assert (published.gaussian_weight, published.gaussian_sxy) == (3, 3)
    assert (published.bilateral_weight, published.bilateral_sxy, published.bilateral_srgb) == (5, 20, 3)
    assert (published.iterations, published.normalization) == (10, "none")


@pytest.mark.parametrize(("name", "numbers"), [  # POS_W, POS_X_STD, Bi_W, Bi_X_STD, Bi_R_STD, MAX_ITER
    ("deeplab-v1", (3, 3, 4, 49, 5, 10)),  # MODEL_NAME of run_densecrf.sh: LargeFOV
    ("deeplab-msc-largefov", (3, 3, 5, 50, 3, 10)),
    ("deeplab-vgg128", (3, 3, 10, 60, 20, 10)),  # the folder is vgg128_noup
    ("deeplab-v2", (3, 1, 4, 67, 3, 10)),  # recalled
    ("deeplab-v2-fork", (2, 2, 4, 65, 3, 10)),
])  # fmt: skip
def test_settings_are_those_of_deeplabs_scripts(name: str, numbers: tuple[int, ...]) -> None:
    found = find_settings(name)
    assert (found.gaussian_weight, found.gaussian_sxy, found.bilateral_weight, found.bilateral_sxy,
            found.bilateral_srgb, found.iterations) == numbers  # fmt: skip
    assert found.normalization == "after"


def test_energies_of_scores_and_of_probabilities() -> None:
    scores = np.array([[[0.0, 1000.0]], [[0.0, 0.0]]], np.float32)
    np.testing.assert_allclose(unary_of_scores(scores), [[[math.log(2), 0]], [[math.log(2), 1000]]])
    energies = unary_of_probabilities(np.array([[[0.25]], [[0.0]]]))
    np.testing.assert_allclose(energies, [[[math.log(4)]], [[30 * math.log(10)]]])


@pytest.mark.parametrize(
    ("change", "word"),
    [({"gaussian_sxy": 0.0}, "gaussian_sxy"), ({"bilateral_weight": -1.0}, "bilateral_weight"),
     ({"normalization": "all"}, "symmetric"), ({"iterations": -1}, "iterations")],
)  # fmt: skip
def test_bad_settings(change: dict[str, Any], word: str) -> None:
    settings = replace(SETTINGS["deconvnet"], **change)
    with pytest.raises(InputError, match=word):
        dense_crf(np.zeros((2, 3, 3)), np.zeros((3, 3, 3), np.uint8), settings)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    image, settings = np.zeros((65, 65, 3), np.uint8), SETTINGS["deconvnet"]
    with pytest.raises(InputError, match="at most 4096"):
        dense_crf(np.zeros((2, 65, 65)), image, settings, exact=True)
    with pytest.raises(InputError, match="as the picture"):
        dense_crf(np.zeros((2, 65, 64)), image, settings)
    with pytest.raises(InputError, match="finite"):
        dense_crf(np.full((2, 65, 65), np.nan), image, settings)
    with pytest.raises(InputError, match="deeplab-v1"):
        find_settings("deeplab")
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf", None)
    with pytest.raises(InputError, match="pip install pydensecrf2"):
        dense_crf(np.zeros((2, 65, 65)), image, settings)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "scores.npy", smooth_scores())
    np.savez(tmp_path / "two.npz", score=smooth_scores()[np.newaxis], other=np.zeros((2, 3)))
    Image.fromarray(smooth_picture()).save(tmp_path / "x.png")
    return tmp_path


def test_the_command_writes_labels_and_beliefs(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(files, monkeypatch)
    done = fcn("crf", "scores.npy", "x.png", "--out", "labels.png", "--exact", "--beliefs", "q.npy")
    assert done.exit_code == 0, done.output
    beliefs = np.load(files / "q.npy")
    want = dense_crf(unary_of_scores(smooth_scores()), smooth_picture(), SETTINGS["deconvnet"], True)
    np.testing.assert_array_equal(beliefs, want)
    with Image.open(files / "labels.png") as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), want.argmax(0))
    again = fcn("crf", "two.npz", "x.png", "--out", "two.png", "--exact", "--blob", "score", "--json")
    assert again.exit_code == 0, again.output
    assert (files / "two.png").read_bytes() == (files / "labels.png").read_bytes()
    assert '"normalization": "none"' in again.stdout


def test_the_command_takes_other_settings(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(files, monkeypatch)
    done = fcn("crf", "scores.npy", "x.png", "--out", "a.png", "--exact", "--settings", "deeplab-v1",
               "--set", "iterations=1", "--set", "normalization=symmetric", "--beliefs", "q.npy")  # fmt: skip
    assert done.exit_code == 0, done.output
    settings = find_settings("deeplab-v1", iterations=1, normalization="symmetric")
    want = dense_crf(unary_of_scores(smooth_scores()), smooth_picture(), settings, True)
    np.testing.assert_array_equal(np.load(files / "q.npy"), want)


def test_the_command_refuses_bad_input(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcn = run_in(files, monkeypatch)
    np.savez(files / "unclear.npz", a=np.zeros(3), b=np.zeros(3))
    refused(fcn("crf", "unclear.npz", "x.png", "--out", "a.png"), "a, b", "--blob")
    refused(fcn("crf", "two.npz", "x.png", "--out", "a.png", "--blob", "other"), "2 x 3")
    refused(fcn("crf", "scores.npy", "x.png", "--out", "x.png", "--exact"), "exists")
    refused(fcn("crf", "scores.npy", "x.png", "--out", "a.png", "--set", "sxy=3"), "gaussian_sxy")
    refused(fcn("crf", "scores.npy", "x.png", "--out", "a.png", "--set", "iterations=x"), "iterations")
    refused(fcn("crf", "none.npy", "x.png", "--out", "a.png"), "no such file")
    refused(fcn("crf", "scores.npy", "x.png", "--out", "a.png", "--probabilities"), "sum")
    before = set(files.iterdir())  # each output is looked at before the work, and before the other one
    refused(fcn("crf", "scores.npy", "x.png", "--out", "no/a.png", "--beliefs", "q.npy", "--exact"), "folder")
    refused(fcn("crf", "scores.npy", "x.png", "--out", "a.png", "--beliefs", "no/q.npy", "--exact"), "folder")
    refused(fcn("crf", "x.png", "x.png", "--out", "a.png"), "x.png", "wrong first bytes")
    assert set(files.iterdir()) == before and not (files / "a.png").exists()
