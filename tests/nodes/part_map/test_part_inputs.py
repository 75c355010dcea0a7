"""Looking at pictures with a codebook, as two nodes do."""

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.features.patch_features import DescriptorFeatures
from bestiary.nodes.host.graph_progress import GraphProgress
from bestiary.nodes.host.socket_types import NamedCodebook
from bestiary.nodes.part_map.part_inputs import features_input, fit_input, segment
from bestiary.nodes.part_map.part_pictures import as_pictures, as_squares


def look(images, codebook, fit="centre square", features=None):
    return segment(images, NamedCodebook("birds", codebook), features, fit, GraphProgress(None))


@pytest.mark.parametrize("fit", ["centre square", "whole picture"])
def test_it_is_the_codebook_called_directly(fit, drawn_images, small_codebook):
    wide = torch.nn.functional.pad(drawn_images, (0, 0, 30, 42))
    pictures, seen = look(wide, small_codebook, fit)
    source = DescriptorFeatures(image_size=64, grid=8)
    grid = source(as_squares(wide, 64, fit))
    theirs = small_codebook.segment(type(grid)(grid.features.half().float()))
    assert torch.equal(seen.maps.labels, theirs.labels) and torch.equal(seen.maps.codes, theirs.codes)
    assert seen.size == (128, 200) and seen.fit == fit and torch.equal(pictures, wide)


def test_the_centre_of_a_wide_picture_has_its_masks_in_the_centre(drawn_images, small_codebook):
    _, square = look(drawn_images, small_codebook)
    wide = torch.nn.functional.pad(drawn_images.permute(0, 3, 1, 2), (36, 36, 0, 0), mode="replicate").permute(
        0, 2, 3, 1
    )
    _, seen = look(wide, small_codebook)
    # what lies beyond the square reaches into its edge by the resampling filter alone
    assert float((square.maps.labels == seen.maps.labels).float().mean()) > 0.95
    near = (seen.areas(1)[:, :, 36:164] - square.areas(1)).abs().amax(0) < 1e-4
    assert float(near.float().mean()) > 0.9
    assert bool((seen.areas(1)[2, :, :36] == 1).all())


def test_faults_are_told(drawn_images, small_codebook):
    with pytest.raises(BestiaryError, match="unknown fit 'crop'"):
        look(drawn_images, small_codebook, "crop")
    with pytest.raises(BestiaryError, match="pixels are too small"):
        look(drawn_images[:, :8], small_codebook)


def test_shared_inputs_are_optional():
    assert fit_input().optional and features_input().optional
    assert fit_input().options == ["centre square", "whole picture"]


def test_a_codebook_of_the_command_line_sees_in_the_graph_what_it_saw_there(drawn_images, tmp_path):
    """Also in pictures that are not square; and pictures read from files as the loader of images reads them."""
    from bestiary.trainer.discovery.discover import DiscoverSettings, discover
    from bestiary.trainer.learning.discovery.discovery_folder import Discovery

    wide = torch.nn.functional.pad(drawn_images[4:], (0, 0, 31, 42))
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate([*as_pictures(drawn_images[:4]), *as_pictures(wide)]):
        picture.save(tmp_path / "pictures" / f"{number}.png")
    options = {"source": "descriptor", "num_parts": 2, "kinds": 2, "device": "cpu"}
    discover(DiscoverSettings(images=tmp_path / "pictures", out=tmp_path / "found", **options))
    found = Discovery.load(tmp_path / "found")
    seen = [look(images, found.codebook)[1].maps for images in (drawn_images[:4], wide)]
    assert torch.equal(torch.cat([maps.labels for maps in seen]), torch.as_tensor(found.maps.labels))
    assert torch.equal(torch.cat([maps.codes for maps in seen]), torch.as_tensor(found.maps.codes).long())
