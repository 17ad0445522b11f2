"""Figures: their content, and that they do not use the global state of pyplot."""

import math
import re
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("matplotlib")

from advcontrast.evaluation.plots.accuracies import plot_corruptions, plot_curves
from advcontrast.evaluation.plots.images import plot_branches, plot_images
from tests.processes import run

generator = torch.Generator().manual_seed(0)
CLEAN = torch.rand(3, 3, 4, 4, generator=generator) * 0.8 + 0.1
ADV = (CLEAN + 0.05 * torch.randn(CLEAN.shape, generator=generator).sign()).clamp(0, 1)
FEATURES = torch.randn(12, 5, generator=generator)
Y = torch.arange(12) % 3


def curve(parameter="eps", values=(0, 4 / 255, 8 / 255), accuracies=(0.8, 0.6, 0.4)):
    return SimpleNamespace(parameter=parameter, values=values, accuracies=accuracies)


def every_figure():
    return {
        "curves": plot_curves({"DS": curve(), "S2S": curve()}),
        "corruptions": plot_corruptions({"DS": {"a_corruption_with_a_very_long_name": 0.5, "snow": 0.25}}),
        "images": plot_images(CLEAN, ADV, y=torch.arange(3), adv_predictions=torch.tensor([0, 2, 2])),
        "branches": plot_branches(FEATURES, FEATURES + 1, Y),
    }


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


# All of them


@pytest.mark.parametrize("name", ["curves", "corruptions", "images", "branches"])
def test_figure_is_800_pixels_wide_and_can_be_saved(tmp_path, name):
    figure = every_figure()[name]
    figure.savefig(tmp_path / "f.png")
    header = (tmp_path / "f.png").read_bytes()[:24]
    assert int.from_bytes(header[16:20], "big") == 800


@pytest.mark.parametrize("name", ["curves", "corruptions", "images", "branches"])
def test_nothing_is_drawn_outside_the_figure(name):
    figure = every_figure()[name]
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= figure.get_figwidth() + 0.02
    assert box.y1 <= figure.get_figheight() + 0.02


def test_pyplot_is_not_needed():
    code = (
        "import sys; from types import SimpleNamespace as N; from advcontrast.evaluation.plots import plot_curves;"
        "plot_curves({'a': N(parameter='eps', values=[0], accuracies=[1])}); print('matplotlib.pyplot' in sys.modules)"
    )
    done = run("-c", code)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_curves({"a": curve()}),
        lambda: plot_corruptions({"a": {"fog": 1}}),
        lambda: plot_images(CLEAN, ADV),
        lambda: plot_branches(FEATURES, FEATURES, Y),
    ],
    ids=["plot_curves", "plot_corruptions", "plot_images", "plot_branches"],
)
def test_missing_matplotlib_is_named(draw, monkeypatch, request):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = "expected matplotlib"
    with pytest.raises(ImportError, match=re.escape(f"{request.node.callspec.id}: {message}")):
        draw()


# Curves


def test_curves_are_drawn_in_percent_and_255ths():
    axes = plot_curves({"DS": curve()}).axes[0]
    (line,) = axes.lines
    assert line.get_xdata() == pytest.approx([0, 4, 8])
    assert line.get_ydata() == pytest.approx([80, 60, 40])
    assert axes.get_ylabel() == "accuracy (%)"
    assert axes.get_xlabel() == "radius of the attack, in 1/255"
    assert ticks(axes.xaxis) == ["0", "4", "8"]


def test_other_radii_are_drawn_as_they_are():
    axes = plot_curves({"DS": curve(values=(0, 0.25, 1))}).axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 0.25, 1])
    assert axes.get_xlabel() == "radius of the attack"


def test_radii_too_close_to_be_labelled_are_not():
    axes = plot_curves({"DS": curve(values=(0, 1 / 255, 1))}).axes[0]
    assert "1" not in ticks(axes.xaxis)


@pytest.mark.parametrize("parameter", ["steps", "restarts"])
def test_steps_and_restarts_stand_on_a_logarithmic_axis(parameter):
    axes = plot_curves({"DS": curve(parameter, (0, 1, 100))}).axes[0]
    assert axes.get_xscale() == "symlog"
    assert ticks(axes.xaxis) == ["0", "1", "100"]
    assert axes.get_xlabel() == f"{parameter} of the attack"


def test_accuracy_axis_shows_all_that_is_possible():
    assert plot_curves({"DS": curve()}).axes[0].get_ylim() == (0, 100)
    assert plot_corruptions({"DS": {"fog": 0.5}}).axes[0].get_ylim() == (0, 100)


def test_each_curve_has_a_colour_and_a_mark_of_its_own():
    figure = plot_curves({f"model {index}": curve() for index in range(10)})
    lines = figure.axes[0].lines
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 10
    assert legend_of(figure) == [f"model {index}" for index in range(10)]


@pytest.mark.parametrize(
    ("curves", "error", "message"),
    [
        ([curve()], TypeError, "expected curves"),
        ({3: curve()}, TypeError, "expected curves"),
        (
            {},
            ValueError,
            "expected curves",
        ),
        (
            {str(index): curve() for index in range(11)},
            ValueError,
            "expected curves",
        ),
        (
            {"a": curve(), "b": curve("steps")},
            ValueError,
            "expected curves along one parameter",
        ),
        ({"a": curve("lr")}, ValueError, "expected parameter"),
        (
            {"a": curve(accuracies=(80, 60, 40))},
            ValueError,
            "expected each of curves['a'].accuracies",
        ),
        ({"a": curve(accuracies=(0.5, math.nan, 0))}, ValueError, "expected each of curves['a'].accuracies"),
        (
            {"a": curve(accuracies=(0.5,))},
            ValueError,
            "expected curves['a']",
        ),
        (
            {"a": curve(values=(), accuracies=())},
            ValueError,
            "expected curves['a']",
        ),
        (
            {"a": [0.8, 0.6]},
            TypeError,
            "expected curves['a']",
        ),
    ],
)
def test_wrong_curves(curves, error, message):
    with pytest.raises(error, match=re.escape(f"plot_curves: {message}")):
        plot_curves(curves)


# Corruptions

FOUND = {"DS": {"gaussian_noise": 0.2, "fog": 0.5, "snow": 0.5}, "S2S": {"gaussian_noise": 0.4, "fog": 0.9}}


def test_corruptions_are_sorted_from_the_easiest_to_the_hardest():
    assert ticks(plot_corruptions(FOUND).axes[0].xaxis) == ["fog", "snow", "gaussian noise"]


def test_bars_have_the_height_of_their_accuracy_and_stand_over_their_name():
    axes = plot_corruptions(FOUND).axes[0]
    bars = [
        [(round(bar.get_x() + bar.get_width() / 2), round(bar.get_height(), 6)) for bar in group]
        for group in axes.containers
    ]
    assert bars == [[(0, 50), (1, 50), (2, 20)], [(0, 90), (2, 40)]]


def test_bars_of_a_group_do_not_overlap():
    axes = plot_corruptions({str(index): {"fog": 0.5, "snow": 0.4} for index in range(10)}).axes[0]
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for group in axes.containers for bar in group)
    assert all(left[1] < right[0] for left, right in pairwise(bars))


def test_legend_shows_the_mean_over_corruptions():
    assert legend_of(plot_corruptions(FOUND)) == ["DS (mean 40.0)", "S2S (mean 65.0)"]


@pytest.mark.parametrize(
    ("accuracies", "error", "message"),
    [
        ({"fog": 0.5}, TypeError, "expected accuracies['fog']"),
        ({}, ValueError, "expected accuracies"),
        ({"a": {}}, ValueError, "expected accuracies['a']"),
        ({"a": {"fog": 50}}, ValueError, "expected each of accuracies['a']"),
    ],
)
def test_wrong_corruptions(accuracies, error, message):
    with pytest.raises(error, match=re.escape(f"plot_corruptions: {message}")):
        plot_corruptions(accuracies)


# Images


def shown(figure):
    """Return the pixels of each picture, and what stands above it, row by row."""
    pictures = [torch.tensor(axes.images[0].get_array().data) for axes in figure.axes]
    return pictures, [axes.get_title() for axes in figure.axes]


def test_rows_are_clean_perturbed_and_difference():
    figure = plot_images(CLEAN, ADV, amplification=4)
    pictures, _ = shown(figure)
    expected = torch.cat([CLEAN, ADV, 0.5 + 4 * (ADV - CLEAN)]).permute(0, 2, 3, 1)
    assert torch.equal(torch.stack(pictures), expected)
    assert [figure.axes[row * 3].get_ylabel() for row in range(3)] == ["clean", "perturbed", "difference\n4-fold"]


def test_difference_uses_the_whole_range_by_default():
    clean, adv = torch.full((1, 1, 1, 3), 0.5), torch.tensor([0.4, 0.55, 0.5]).view(1, 1, 1, 3)
    pictures, _ = shown(plot_images(clean, adv))
    assert pictures[2].flatten().tolist() == pytest.approx([0, 0.75, 0.5], abs=1e-6)


def test_no_difference_is_gray():
    pictures, _ = shown(plot_images(CLEAN[:1], CLEAN[:1]))
    assert torch.equal(pictures[2], torch.full((4, 4, 3), 0.5))


def test_gray_images_have_a_fixed_range():
    image = plot_images(CLEAN[:1, :1] / 2, CLEAN[:1, :1] / 2).axes[0].images[0]
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "gray"


def test_predictions_stand_above_the_images():
    y, clean, adv = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]), torch.tensor([1, 1, 1])
    _, titles = shown(
        plot_images(CLEAN, ADV, y=y, clean_predictions=clean, adv_predictions=adv, classes=["cat", "dog"])
    )
    assert titles == ["cat", "dog", "dog", "dog", "dog", "dog", "", "", ""]


def test_classes_stand_above_clean_images_without_predictions():
    _, titles = shown(plot_images(CLEAN, ADV, y=torch.tensor([7, 8, 9])))
    assert titles[:3] == ["7", "8", "9"]


def test_wrong_predictions_are_marked():
    figure = plot_images(CLEAN, ADV, y=torch.tensor([0, 1, 2]), adv_predictions=torch.tensor([0, 2, 2]))
    assert [axes.title.get_weight() for axes in figure.axes] == ["normal"] * 4 + ["bold"] + ["normal"] * 4


def test_predictions_without_classes_are_not_marked():
    figure = plot_images(CLEAN, ADV, adv_predictions=torch.tensor([0, 2, 2]))
    assert {axes.title.get_weight() for axes in figure.axes} == {"normal"}


def test_images_that_require_a_gradient_can_be_drawn():
    plot_images(CLEAN.clone().requires_grad_(), ADV.clone().requires_grad_())


@pytest.mark.parametrize(
    ("clean", "adv", "settings", "error", "message"),
    [
        ((255 * CLEAN).byte(), ADV, {}, TypeError, "expected clean"),
        (
            CLEAN[0],
            ADV,
            {},
            ValueError,
            "expected clean",
        ),
        (CLEAN[:, :2], ADV, {}, ValueError, "expected clean"),
        (CLEAN, ADV[:0], {}, ValueError, "expected adv"),
        (CLEAN.repeat(4, 1, 1, 1), ADV, {}, ValueError, "expected clean"),
        (
            CLEAN,
            ADV[:2],
            {},
            ValueError,
            "expected adv of shape",
        ),
        (CLEAN + 1, ADV, {}, ValueError, "expected clean"),
        (CLEAN, ADV * math.nan, {}, ValueError, "expected adv"),
        (CLEAN, ADV, {"amplification": 0}, ValueError, "expected amplification"),
        (CLEAN, ADV, {"y": [0, 1, 2]}, TypeError, "expected y"),
        (
            CLEAN,
            ADV,
            {"adv_predictions": torch.zeros(3, 10, dtype=torch.int64)},
            ValueError,
            "expected adv_predictions",
        ),
        (
            CLEAN,
            ADV,
            {"y": torch.arange(3), "classes": ["cat", "dog"]},
            ValueError,
            "expected y",
        ),
    ],
)
def test_wrong_images(clean, adv, settings, error, message):
    with pytest.raises(error, match=re.escape(f"plot_images: {message}")):
        plot_images(clean, adv, **settings)


# Branches


def points(figure):
    """Return the points of both panels, class by class."""
    return [[torch.tensor(dots.get_offsets().data) for dots in axes.collections] for axes in figure.axes]


def test_plane_is_that_of_the_largest_variance_of_both_branches_together():
    # The clean features vary along the first axis, the others lie at a distance along the second.
    clean = torch.zeros(4, 3)
    clean[:, 0] = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    adv = torch.zeros(4, 3)
    adv[:, 1] = 2
    left, right = (torch.cat(panel) for panel in points(plot_branches(clean, adv, torch.zeros(4, dtype=torch.int64))))
    assert torch.allclose(left, torch.stack([clean[:, 0].double(), torch.full((4,), -1.0).double()], 1))
    assert torch.allclose(right, torch.tensor([[0.0, 1.0]]).double().expand(4, 2))


def test_axes_tell_the_share_of_variance():
    # Variances 5/2 along the first axis and 1 along the second, as above.
    clean = torch.tensor([[-3.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    adv = torch.tensor([[0.0, 2.0]]).repeat(4, 1)
    left, right = plot_branches(clean, adv, torch.zeros(4, dtype=torch.int64)).axes
    assert left.get_xlabel() == right.get_xlabel() == "component 1 (71% of variance)"
    assert left.get_ylabel() == "component 2 (29% of variance)"


def test_sign_of_the_components_does_not_depend_on_the_order_of_images():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    once = torch.cat(points(plot_branches(FEATURES, -FEATURES, Y))[0])
    again = torch.cat(points(plot_branches(FEATURES[order], -FEATURES[order], Y[order]))[0])
    assert torch.allclose(once.sort(0).values, again.sort(0).values, atol=1e-12)


def test_sign_of_a_component_is_that_of_its_largest_entry():
    clean = torch.tensor([[3.0, -4.0], [-3.0, 4.0]])
    left = torch.cat(points(plot_branches(clean, clean, torch.tensor([0, 1])))[0])
    assert left[:, 0].tolist() == pytest.approx([-5, 5])


def test_panels_share_their_axes():
    left, right = plot_branches(FEATURES, 10 * FEATURES, Y).axes
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    assert (left.get_title(), right.get_title()) == ("branch clean", "branch adv")


def test_points_are_coloured_by_class():
    figure = plot_branches(FEATURES, FEATURES, Y.flip(0), classes=["cat", "dog", "frog", "unused"])
    assert legend_of(figure) == ["cat", "dog", "frog"]
    assert [len(dots) for dots in points(figure)[0]] == [4, 4, 4]
    colours = [[tuple(dots.get_facecolor()[0]) for dots in axes.collections] for axes in figure.axes]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 3


def test_twenty_classes_can_be_told_apart():
    figure = plot_branches(torch.randn(20, 3), torch.randn(20, 3), torch.arange(20))
    looks = {(tuple(dots.get_facecolor()[0]), len(dots.get_paths()[0].vertices)) for dots in figure.axes[0].collections}
    assert len(looks) == 20


def test_equal_features_can_be_drawn():
    figure = plot_branches(torch.ones(3, 4), torch.ones(3, 4), torch.arange(3))
    assert figure.axes[0].get_xlabel() == "component 1 (0% of variance)"


@pytest.mark.parametrize(
    ("clean", "adv", "y", "error", "message"),
    [
        (
            FEATURES,
            FEATURES[:4],
            Y,
            ValueError,
            "expected adv_features",
        ),
        (FEATURES[:, :1], FEATURES, Y, ValueError, "expected clean_features"),
        (FEATURES[:0], FEATURES[:0], Y, ValueError, "expected clean_features"),
        (FEATURES.view(12, 5, 1, 1), FEATURES, Y, ValueError, "expected clean_features"),
        (FEATURES.tolist(), FEATURES, Y, TypeError, "expected clean_features"),
        (FEATURES, FEATURES / 0, Y, ValueError, "expected adv_features"),
        (FEATURES, FEATURES, Y[:3], ValueError, "expected y"),
        (FEATURES, FEATURES, None, TypeError, "expected y"),
        (
            torch.zeros(21, 2),
            torch.zeros(21, 2),
            torch.arange(21),
            ValueError,
            "expected y",
        ),
    ],
)
def test_wrong_features(clean, adv, y, error, message):
    with pytest.raises(error, match=re.escape(f"plot_branches: {message}")):
        plot_branches(clean, adv, y)
