import torch
from bestiary.concepts.part_map.linear_classifiers import fit_discriminant, fit_logistic


def test_logistic_regression_finds_the_direction_that_labels_follow_and_its_odds() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6000, 3, generator=generator)
    odds = 2 * rows[:, 0] - rows[:, 1] + 0.5
    labels = (torch.rand(6000, generator=generator) < torch.sigmoid(odds)).float()
    weight, bias = fit_logistic(rows, labels)
    assert torch.allclose(weight, torch.tensor([2.0, -1.0, 0.0]), atol=0.2)
    assert abs(float(bias) - 0.5) < 0.15


def test_logistic_regression_stays_finite_where_labels_are_all_alike_or_separable() -> None:
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    for labels in (torch.zeros(200), torch.ones(200), (rows[:, 0] > 0).float()):
        weight, bias = fit_logistic(rows, labels)
        assert bool(torch.isfinite(weight).all()) and bool(torch.isfinite(bias))
    assert float((((rows @ weight + bias) > 0) == (rows[:, 0] > 0)).float().mean()) > 0.97


def test_a_discriminant_weighs_directions_by_the_spread_within_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    # classes differ a little along a quiet channel; a loud channel differs as much by chance as by class
    rows = torch.stack([labels * 0.5, torch.zeros(900)], dim=1) + torch.randn(
        900, 2, generator=generator
    ) * torch.tensor([0.08, 5.0])
    weight, bias = fit_discriminant(rows, labels, 3)
    assert float(((rows @ weight + bias).argmax(dim=1) == labels).float().mean()) > 0.7


def test_a_class_without_rows_is_never_the_answer() -> None:
    rows = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    weight, bias = fit_discriminant(rows, torch.arange(100) % 2, 3)
    assert 2 not in (rows @ weight + bias).argmax(dim=1)
