"""A detector with random weights."""

import shutil
from pathlib import Path

import pytest
import torch

EDGE = 32


@pytest.fixture(scope="session")
def tiny_owl(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an OWLv2 model with random weights that looks at squares of 32 pixels."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    folder = tmp_path_factory.mktemp("models") / "owl"
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**shared, "vocab_size": 700, "max_position_embeddings": 16}
    vision = {**shared, "image_size": EDGE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(tiny_clip / name, folder / name)
    return folder
