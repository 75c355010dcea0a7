import pytest
import torch
import torch.nn.functional as F
from bestiary.concepts.part_map.kind_count import choose_kind_count, mean_silhouette, most_kinds, stable_kind_count
from sklearn.metrics import silhouette_score
from torch import Tensor


def looks(kinds: int, per_kind: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(kinds, 24, generator=generator).repeat_interleave(per_kind, dim=0)
    return centers + spread * torch.randn(kinds * per_kind, 24, generator=generator)


def test_silhouette_equals_scikit_learn() -> None:
    x = F.normalize(looks(4, 15, 0.8), dim=1)
    labels = torch.randint(5, (60,), generator=torch.Generator().manual_seed(1))
    ours = mean_silhouette(x, labels, 5)
    assert ours == pytest.approx(silhouette_score(x.numpy(), labels.numpy(), metric="cosine"), abs=1e-5)


def test_a_lone_row_and_an_empty_cluster_count_nothing() -> None:
    x = F.normalize(looks(2, 5, 0.1), dim=1)
    labels = torch.tensor([0] * 5 + [1] * 4 + [3])
    assert mean_silhouette(x, labels, 4) == pytest.approx(
        silhouette_score(x.numpy(), labels.numpy(), metric="cosine"), abs=1e-5
    )


@pytest.mark.parametrize("kinds", [3, 6, 12])
def test_clear_kinds_are_counted(kinds: int) -> None:
    ours = choose_kind_count(looks(kinds, 30, 0.15))
    assert kinds <= ours <= kinds * 1.2


def test_looks_without_steps_get_as_many_kinds_as_pictures_allow() -> None:
    assert choose_kind_count(torch.randn(120, 64, generator=torch.Generator().manual_seed(2))) == 30


@pytest.mark.parametrize(("images", "most"), [(1, 1), (3, 2), (8, 2), (40, 10), (5994, 256)])
def test_most_kinds(images: int, most: int) -> None:
    assert most_kinds(images) == most


def test_few_pictures_get_two_kinds() -> None:
    assert choose_kind_count(looks(4, 2, 0.1)) == 2


def test_kinds_in_two_groups_are_counted_and_not_the_groups() -> None:
    generator = torch.Generator().manual_seed(3)
    centers = 0.45 * torch.randn(5, 24, generator=generator)
    centers[:, 0] += torch.tensor([2.5, 2.5, 2.5, -2.5, -2.5])
    rows = centers.repeat_interleave(60, dim=0) + 0.25 * torch.randn(300, 24, generator=generator)
    assert choose_kind_count(rows) == 2
    assert stable_kind_count(rows) == 5


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_few_rows_have_no_more_kinds_than_a_quarter_of_them_at_least_two(count: int) -> None:
    assert stable_kind_count(torch.randn(count, 6, generator=torch.Generator().manual_seed(1))) == min(2, count)


def test_halves_of_few_rows_do_not_make_up_kinds() -> None:
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    assert stable_kind_count(rows) <= 8
