"""Overlays in the graph: one batch of one size, legends that say what is seen."""

import torch
from bestiary.concepts.part_map.part_map import ABSENT, PartMaps
from bestiary.concepts.pictures.part_overlay import add_legend, draw_parts, enlarged, part_color
from bestiary.nodes.part_map.discovery_job import FoundParts
from bestiary.nodes.part_map.part_drawing import draw_overlays, found_overlays, kind_name, kind_text, legend
from bestiary.nodes.part_map.part_pictures import as_images, as_pictures
from bestiary.nodes.part_map.seen_parts import SeenParts


def seen(codes: list[list[int]], size: tuple[int, int] = (128, 128)) -> SeenParts:
    labels = torch.full((len(codes), 8, 8), 2, dtype=torch.uint8)
    labels[:, 2:6, :4], labels[:, 2:6, 4:] = 0, 1
    return SeenParts(("head", "body", "background"), 2, PartMaps(labels, torch.tensor(codes)), size, "centre square")


def test_a_batch_has_overlays_of_one_size(drawn_images, small_codebook):
    record = seen([[0, 1, 0], [1, ABSENT, 0]])
    ours = draw_overlays(drawn_images[:2], record, kind_text(small_codebook, record))
    assert ours.shape[0] == 2 and ours.shape[2:] == (512, 3) and ours.shape[1] > 512
    assert ours.min() >= 0 and ours.max() <= 1


def test_overlays_are_drawn_by_the_shared_code(drawn_images, small_codebook):
    record = seen([[0, 1, 0]])
    ours = draw_overlays(drawn_images[:1], record, kind_text(small_codebook, record))
    large = enlarged(as_pictures(drawn_images[:1])[0])
    drawn = draw_parts(large, record.areas(0, (512, 512)), 2)
    theirs = add_legend([drawn], [legend(record, 0, kind_text(small_codebook, record))])
    assert torch.equal(ours, as_images(theirs))


def test_pictures_that_are_not_square_keep_their_shape(small_codebook):
    record = seen([[0, 1, 0]], size=(300, 600))
    overlay = draw_overlays(torch.rand(1, 300, 600, 3), record, kind_text(small_codebook, record))
    assert overlay.shape[2] == 600 and overlay.shape[1] > 300


def test_the_legend_names_kinds_and_marks_what_is_absent(small_codebook):
    record = seen([[0, ABSENT, 0], [1, 1, 0]])
    text = kind_text(small_codebook, record)
    first, second = legend(record, 0, text), legend(record, 1, text)
    assert [(entry.text, entry.faint) for entry in first] == [("head: cardinal", False), ("body", True)]
    assert [entry.text for entry in second] == ["head: blue jay", "body: 1"]
    assert [entry.color for entry in first] == [part_color(0), part_color(1)]


def test_kinds_without_names_are_numbers(small_codebook):
    assert kind_name(small_codebook, 0, 1) == "blue jay" and kind_name(small_codebook, 1, 1) == "1"
    bare = small_codebook.with_names(small_codebook.part_names, ())
    assert kind_name(bare, 0, 1) == "1"


def test_a_discovery_gives_one_batch_per_entry(drawn_images, small_codebook):
    wide = torch.nn.functional.pad(drawn_images[:1], (0, 0, 36, 36))
    found = FoundParts(small_codebook, [drawn_images[:2], wide], [seen([[0, 0, 0]] * 2), seen([[1, 1, 0]], (128, 200))])
    first, second = found_overlays(found)
    assert first.shape[0] == 2 and first.shape[2] == 512
    assert second.shape[0] == 1 and second.shape[2] == 600
