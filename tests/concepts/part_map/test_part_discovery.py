from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures, PatchGrid
from bestiary.concepts.files.concept_file import CODEBOOK_KIND, read_concept_file, write_concept_file
from bestiary.concepts.part_map.part_codebook import PartCodebook
from bestiary.concepts.part_map.part_discovery import (
    MOST_STAGES,
    discover_parts,
    fit_kinds,
    fit_parts,
    fit_space,
    propose_names,
)
from bestiary.concepts.part_map.part_map import ABSENT
from bestiary.demo.creatures import held_out_set
from torch import Tensor

DRAWINGS = 48


@pytest.fixture(scope="module", autouse=True)
def short_training() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", 120)
        patch.setattr("bestiary.concepts.part_map.foreground._BATCH_ROWS", 1024)
        yield


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what holds of any foreground, a good one or not."""
    monkeypatch.setattr("bestiary.concepts.part_map.foreground._TRAINING_STEPS", 12)


@pytest.fixture(scope="module")
def drawn() -> tuple[PatchGrid, Tensor]:
    """Descriptor features of drawings, and which patches are drawn on (N, 16, 16)."""
    drawings = list(held_out_set(DRAWINGS, seed=3))
    images = torch.stack([torch.tensor(drawing.image).permute(2, 0, 1) / 255 for drawing in drawings])
    masks = torch.stack([torch.tensor(drawing.labels > 0).float() for drawing in drawings])
    return DescriptorFeatures()(images), torch.nn.functional.avg_pool2d(masks, 8) >= 0.5


@pytest.fixture(scope="module")
def codebook(drawn: tuple[PatchGrid, Tensor]) -> PartCodebook:
    return fit_parts(drawn[0], spec=DescriptorFeatures().spec, num_parts=5, seed=0)


def test_the_foreground_of_drawings_is_found(drawn: tuple[PatchGrid, Tensor], codebook: PartCodebook) -> None:
    ours = codebook.label(drawn[0]) != codebook.background
    both, either = (ours & drawn[1]).flatten(1).sum(1), (ours | drawn[1]).flatten(1).sum(1)
    assert float((both / either).mean()) > 0.7
    assert codebook.statistics["foreground_margin"] > 0.3


def test_the_background_is_the_last_part_and_nothing_is_fitted_to_it(codebook: PartCodebook) -> None:
    assert codebook.background == 5 == codebook.num_parts - 1
    assert codebook.part_names[-1] == "background"
    assert len(set(codebook.part_names)) == 6
    assert codebook.feature_spec["name"] == "descriptor"


def test_pictures_one_by_one_get_the_labels_they_get_together(
    drawn: tuple[PatchGrid, Tensor], codebook: PartCodebook
) -> None:
    together = codebook.label(PatchGrid(drawn[0].features[:6]))
    alone = torch.cat([codebook.label(drawn[0].at(index)) for index in range(6)])
    assert torch.equal(together, alone)


def test_kinds_of_shown_parts_only(drawn: tuple[PatchGrid, Tensor], codebook: PartCodebook) -> None:
    labels = codebook.label(drawn[0])
    means, counts = codebook.part_means(drawn[0], labels)
    counts[:7, 2] = 0
    ours = fit_kinds(codebook, means, counts, num_kinds=[3, 4, 5, 6, 7, 2], seed=0)
    assert ours.num_kinds == (3, 4, 5, 6, 7, 2)
    codes = ours.kind_of(means, counts)
    assert bool((codes[:7, 2] == ABSENT).all())
    assert set(codes[7:, 2].tolist()) - {ABSENT} == set(range(5))


def test_zero_means_of_absent_parts_never_enter_a_clustering(codebook: PartCodebook) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(40, 6, codebook.width, generator=generator) + 3
    counts = torch.ones(40, 6, dtype=torch.long)
    means[30:], counts[30:] = 0, 0
    ours = fit_kinds(codebook, means, counts, num_kinds=2, seed=0)
    theirs = fit_kinds(codebook, means[:30], counts[:30], num_kinds=2, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(ours.fine, theirs.fine, strict=True))


def test_a_part_that_is_never_shown_has_no_kinds(codebook: PartCodebook) -> None:
    means = torch.randn(20, 6, codebook.width, generator=torch.Generator().manual_seed(1))
    counts = torch.ones(20, 6, dtype=torch.long)
    counts[:, 1] = 0
    ours = fit_kinds(codebook, means, counts, seed=0)
    assert ours.num_kinds[1] == 0
    assert bool((ours.kind_of(means, counts)[:, 1] == ABSENT).all())


@pytest.mark.usefixtures("hurried")
def test_a_saved_discovery_gives_the_same_maps(drawn: tuple[PatchGrid, Tensor], tmp_path: Path) -> None:
    book, maps = discover_parts(PatchGrid(drawn[0].features[:16]), num_parts=3, num_kinds=2, seed=0)
    book.save(tmp_path / "a.parts.safetensors")
    again = PartCodebook.load(tmp_path / "a.parts.safetensors").segment(PatchGrid(drawn[0].features[:16]))
    assert torch.equal(again.labels, maps.labels)
    assert torch.equal(again.codes, maps.codes)
    assert (tmp_path / "a.parts.safetensors").stat().st_size < 100_000


def test_more_kinds_than_pictures_are_refused(codebook: PartCodebook) -> None:
    means, counts = torch.randn(4, 6, codebook.width), torch.ones(4, 6, dtype=torch.long)
    with pytest.raises(
        BestiaryError, match=f"5 kinds of part '{codebook.part_names[0]}' were requested, but only 4 pictures show it"
    ):
        fit_kinds(codebook, means, counts, num_kinds=5)
    with pytest.raises(BestiaryError, match="2 numbers of kinds were given for 6 parts, including the background"):
        fit_kinds(codebook, means, counts, num_kinds=[2, 2])


def test_a_marked_foreground_is_learned_instead_of_found(drawn: tuple[PatchGrid, Tensor]) -> None:
    scenery = (~drawn[1]).float()  # the opposite of what would be found
    marked, maps = discover_parts(drawn[0], num_parts=3, num_kinds=2, seed=0, foreground_masks=scenery)
    again = maps.labels != marked.background
    both, either = (again & (scenery > 0.5)).sum(), (again | (scenery > 0.5)).sum()
    assert float(both / either) > 0.85
    assert marked.statistics["foreground_margin"] < 0


@pytest.mark.usefixtures("hurried")
def test_flipping_a_marked_foreground_is_marking_the_rest(drawn: tuple[PatchGrid, Tensor]) -> None:
    few = PatchGrid(drawn[0].features[:12])
    masks = drawn[1][:12].float()
    flipped = fit_parts(few, num_parts=2, seed=1, foreground_masks=masks, flip_foreground=True)
    inverted = fit_parts(few, num_parts=2, seed=1, foreground_masks=1 - masks)
    assert torch.equal(flipped.label(few), inverted.label(few))


@pytest.mark.usefixtures("hurried")
def test_every_piece_of_work_is_told_before_it_begins(drawn: tuple[PatchGrid, Tensor]) -> None:
    stages: list[int] = []
    few = PatchGrid(drawn[0].features[:12])
    ours = discover_parts(few, num_parts=2, num_kinds=2, seed=1, on_stage=lambda: stages.append(1))
    assert len(stages) == MOST_STAGES
    theirs = discover_parts(few, num_parts=2, num_kinds=2, seed=1)
    assert torch.equal(ours[1].labels, theirs[1].labels) and torch.equal(ours[1].codes, theirs[1].codes)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        discover_parts(few, num_parts=2, num_kinds=2, seed=1, on_stage=stop)


@pytest.mark.usefixtures("hurried")
def test_no_foreground_is_one_clear_message() -> None:
    grid = PatchGrid(torch.randn(2, 6, 6, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(BestiaryError, match="no foreground found: .* of 72 patches, too few for 5 parts"):
        fit_parts(grid, num_parts=5)


def test_the_space_centers_orders_and_scales() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(10, 8, 8, 20, generator=generator) * torch.logspace(1, -2, 20) + 5
    ours = fit_space(x, width=6)(x)
    assert ours.shape == (10, 8, 8, 6)
    assert float(ours.square().sum(dim=-1).mean()) == pytest.approx(1.0, abs=0.02)
    deviations = ours.flatten(0, 2).std(dim=0)
    assert bool((deviations[:-1] >= deviations[1:] - 1e-3).all())
    assert float(ours.flatten(0, 2).mean(dim=0).abs().max()) < 0.02


def test_half_whitening_takes_the_root_of_every_deviation() -> None:
    x = torch.randn(4000, 1, 1, 2, generator=torch.Generator().manual_seed(4)) * torch.tensor([100.0, 1.0])
    deviations = fit_space(x)(x).flatten(0, 2).std(dim=0)
    assert float(deviations[0] / deviations[1]) == pytest.approx(10.0, rel=0.05)


def test_names_say_where_a_part_lies() -> None:
    labels = torch.full((2, 9, 4), 4)
    labels[:, 0], labels[:, 1], labels[:, 4], labels[:, 8] = 0, 1, 2, 3
    assert propose_names(labels, 4) == ("top", "top2", "middle", "bottom")


def looks_of_things(count: int, seed: int = 0) -> tuple[PatchGrid, Tensor]:
    """Things of three parts that lie anywhere, before surroundings: a grid with evidence and details, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    meaning, style = (
        torch.randn(4, 12, generator=torch.Generator().manual_seed(7)),
        torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(8)),
    )
    truth = torch.full((count, 12, 12), 3)
    kinds = torch.randint(3, (count,), generator=generator)
    for index in range(count):
        order = torch.randperm(3, generator=generator).tolist()
        row, column = torch.randint(5, (2,), generator=generator).tolist()
        for place, part in enumerate(order):
            truth[index, row + place * 2 : row + place * 2 + 2, column : column + 7] = part
    noise = 0.2 * torch.randn(2, count, 12, 12, 12, generator=generator)
    inside = (truth < 3).unsqueeze(-1)
    look = style[:, kinds].view(2, count, 1, 1, 12)
    features, detail = (meaning[truth] + look[number] * inside + noise[number] for number in (0, 1))
    evidence = (truth < 3).float() * (1 - 0.5 * (truth == 2)) + 0.2 * torch.rand(count, 12, 12, generator=generator)
    return PatchGrid(features, evidence, detail), truth


def test_a_source_with_details_is_told_by_looks_and_saved_whole(tmp_path: Path) -> None:
    grid, truth = looks_of_things(40)
    codebook, maps = discover_parts(grid, num_parts=3, num_kinds=[3, 3, 3, 1], seed=0)
    assert codebook.parts.settings()["form"] == codebook.foreground.settings()["form"] == "looks"
    # every part of the truth has a label of its own, whatever its place
    ours = maps.labels.long()
    assert float(((ours < 3) == (truth < 3)).float().mean()) > 0.85
    assert sorted(int(ours[truth == part].mode().values) for part in range(3)) == [0, 1, 2]
    assert all(
        float((ours[truth == part] == ours[truth == part].mode().values).float().mean()) > 0.85 for part in range(3)
    )
    # the file holds all of it
    codebook.save(tmp_path / "codebook.safetensors")
    again = PartCodebook.load(tmp_path / "codebook.safetensors")
    assert torch.equal(again.label(grid), maps.labels)
    assert torch.equal(again.segment(grid.at(5)).codes[0], maps.codes[5])
    sure = again.confidence(grid, maps.labels)
    assert float(sure.min()) >= 0 and float(sure.max()) <= 1
    assert float(sure[ours == truth.clamp_max(3)].mean()) > 0.5


@pytest.mark.parametrize("entry", ["foreground.weight", "space.projection", "parts.bias", "detail.projection"])
def test_a_damaged_file_of_parts_told_by_looks_is_refused_by_its_entry(entry: str, tmp_path: Path) -> None:
    codebook = fit_parts(looks_of_things(30)[0], num_parts=3, seed=0)
    codebook.save(tmp_path / "codebook.safetensors")
    file = read_concept_file(tmp_path / "codebook.safetensors", CODEBOOK_KIND)
    header = {name: value for name, value in file.metadata.items() if name not in ("format", "version")}
    write_concept_file(tmp_path / "cut.safetensors", file.tensors | {entry: file.tensors[entry][:-1].clone()}, header)
    with pytest.raises(BestiaryError, match=rf"complete part codebook: the tensor '{entry}'"):
        PartCodebook.load(tmp_path / "cut.safetensors")


@pytest.mark.usefixtures("hurried")
def test_the_number_of_parts_is_measured_where_they_are_told_by_looks() -> None:
    codebook = fit_parts(looks_of_things(50)[0], seed=0)
    assert codebook.background in (3, 4)
    assert codebook.statistics["stability_3"] > codebook.statistics["stability_9"]


def test_marks_take_the_place_of_evidence() -> None:
    grid, truth = looks_of_things(40)
    codebook = fit_parts(PatchGrid(grid.features, None, grid.detail), num_parts=3, foreground_masks=(truth < 3).float())
    assert float(((codebook.label(grid) < 3) == (truth < 3)).float().mean()) > 0.95


def test_labels_follow_the_marks_of_things_told_by_looks() -> None:
    grid, truth = looks_of_things(40)
    marked = (truth < 3).float()
    marked[:, :2] = 1  # two rows of surroundings that no look tells from the rest
    _, maps = discover_parts(grid, num_parts=3, num_kinds=2, seed=0, foreground_masks=marked)
    assert torch.equal(maps.labels < 3, marked > 0.5)
    _, flipped = discover_parts(
        grid, num_parts=3, num_kinds=2, seed=0, foreground_masks=1 - marked, flip_foreground=True
    )
    assert torch.equal(flipped.labels, maps.labels)


def test_a_codebook_of_details_refuses_a_grid_without_them() -> None:
    grid, _ = looks_of_things(40)
    codebook = fit_parts(grid, num_parts=3, seed=0)
    with pytest.raises(BestiaryError, match="the patch details have 0 channels, but this codebook was fitted on 12"):
        codebook.label(PatchGrid(grid.features, grid.saliency))
