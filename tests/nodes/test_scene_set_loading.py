"""ComfyUI's own loaders of training pictures on a set of scenes and on its view."""

import folder_paths
import numpy as np
import pytest
from bestiary.scenes.collage import compose
from bestiary.scenes.scene_layout import Placement, SceneLayout
from bestiary.scenes.scene_set import SceneEntry, SceneSet
from bestiary.scenes.set_views import export_view
from bestiary.scenes.subject import Subject

pytestmark = pytest.mark.comfyui


class _WordClip:
    """Keeps the texts that a loader encodes; one conditioning for each."""

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return [tokens]


def _loaded(folder):
    """Pictures and captions as the loader of this ComfyUI gives them: it has one of two."""
    try:
        from comfy_extras.nodes_train import LoadImageTextSetFromFolderNode
    except ImportError:
        from comfy_extras.nodes_dataset import LoadImageTextDataSetFromFolderNode

        pictures, texts = LoadImageTextDataSetFromFolderNode.execute(folder).args
        return list(pictures), list(texts)
    pictures, texts = LoadImageTextSetFromFolderNode().load_images(folder, _WordClip(), "None", 64, 48)
    return list(pictures), list(texts)


def test_the_loader_takes_the_pictures_with_their_captions_and_no_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    subject = Subject("cat", np.full((20, 20, 4), 255, np.uint8))
    scene_set = SceneSet(tmp_path / "pets")
    for number in range(3):
        layout = SceneLayout(64, 48, (Placement("cat", 10 + number, 20, 20, 20),))
        scene = compose([subject], layout, np.full((48, 64, 3), 90, np.uint8))
        scene_set.write(f"00000{number}", SceneEntry(scene, f"a photo of a cat, {number}"), f"key {number}")
    scene_set.finish()
    export_view(tmp_path / "pets", "comfyui", tmp_path / "view")
    for folder in ("pets/images", "view", "view/images"):
        pictures, texts = _loaded(folder)
        assert sorted(texts) == [f"a photo of a cat, {number}" for number in range(3)], folder
        assert [tuple(picture.shape[-3:]) for picture in pictures] == [(48, 64, 3)] * 3
