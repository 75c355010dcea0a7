"""A tiny DeepFloyd IF cascade with random weights, as diffusers and transformers save one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

TEXT_WIDTH = 32


class Cascade(NamedTuple):
    """Folders of the two stages."""

    first: Path
    second: Path


def _unet(stage: int) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    second = {
        "sample_size": 64,
        "layers_per_block": [1, 2],
        "in_channels": 6,
        "class_embed_type": "timestep",
        "mid_block_scale_factor": 1.414,
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 32,
    }
    config = {
        "sample_size": 32,
        "layers_per_block": 1,
        "block_out_channels": [32, 64],
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "cross_attention_dim": 32,
        "encoder_hid_dim": TEXT_WIDTH,
        "attention_head_dim": 8,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
    }
    return UNet2DConditionModel(**{**config, **(second if stage == 2 else {})})


@pytest.fixture(scope="session")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    """Stage I with its T5 encoder, stage II without one."""
    from diffusers import DDPMScheduler
    from transformers import T5Config, T5EncoderModel

    root = tmp_path_factory.mktemp("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for stage, name in ((1, "IF-I-tiny"), (2, "IF-II-tiny")):
            _unet(stage).save_pretrained(root / name / "unet")
            scheduler = DDPMScheduler(
                num_train_timesteps=1000,
                beta_schedule="squaredcos_cap_v2",
                variance_type="learned_range",
                thresholding=True,
                dynamic_thresholding_ratio=0.95,
                sample_max_value=1.0,
            )
            scheduler.save_pretrained(root / name / "scheduler")
            if stage == 2:
                DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(
                    root / name / "image_noising_scheduler"
                )
        config = T5Config(
            vocab_size=32_128,
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
        T5EncoderModel(config).save_pretrained(root / "IF-I-tiny" / "text_encoder")
    return Cascade(root / "IF-I-tiny", root / "IF-II-tiny")
