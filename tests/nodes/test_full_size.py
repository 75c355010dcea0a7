"""Full-size checks, run by hand: `pytest -m "comfyui and slow" tests/nodes/test_full_size.py` (about 12 GiB of memory).

A checkpoint of SD1.5's real shape with random weights goes through core's loader, a dictionary of real width, core's text
encode and sampler; of SDXL the two text encoders alone. Pictures mean nothing here, widths and names do.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.lora_names import DOWN, UP
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from PIL import Image

pytestmark = pytest.mark.slow

CONTEXT = {"sd15": 768}
RANK = 4


def shapes_of(module: torch.nn.Module, prefix: str) -> dict[str, torch.Size]:
    return {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}


def random_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Half-precision weights that keep activations in bounds: norms are neutral, matrices scale by their width."""
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = math.prod(shape)
        if len(shape) < 2:
            tensor = torch.full(shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            noise = pool.roll(number).repeat(-(-count // len(pool)))[:count].view(shape)
            tensor = noise / math.sqrt(math.prod(shape[1:]))
        weights[name] = tensor.half()
    return weights


def sd15_shapes() -> dict[str, torch.Size]:
    """Names and shapes of a Stable Diffusion 1.5 checkpoint file."""
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.sd1_clip import SD1ClipModel

    depth = {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1}
    depth["transformer_depth_output"] = [1] * 9 + [0] * 3
    settings = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "context_dim": 768}
    settings |= {
        "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4],
        "num_heads": 8,
        "use_spatial_transformer": True,
    }
    with torch.device("meta"):
        unet = UNetModel(**settings, **depth, legacy=False, device="meta", operations=comfy.ops.disable_weight_init)
        text = SD1ClipModel(device="meta", dtype=torch.float16).clip_l.transformer.text_model
        stages = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
        stages |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
        vae = AutoencoderKL(ddconfig=stages, embed_dim=4)
    return {
        **shapes_of(unet, "model.diffusion_model."),
        **shapes_of(text, "cond_stage_model.transformer.text_model."),
        **shapes_of(vae, "first_stage_model."),
    }


@pytest.fixture(scope="module")
def checkpoint(server) -> Iterator[str]:
    """A random-weight SD1.5 file of real shape in the server's checkpoints; removed afterwards."""
    from safetensors.torch import save_file

    path = server.folder / "models" / "checkpoints" / "random_sd15.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(sd15_shapes()), path)
    yield path.name
    path.unlink()


def write_dictionary(path: Path, shapes: dict[str, torch.Size]) -> None:
    """Two parts, 768 wide, with a LoRA on every attention layer of the UNet."""
    import comfy.utils

    depth = {"transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1}
    depth["transformer_depth_output"] = [1] * 9 + [0] * 3
    names = comfy.utils.unet_to_diffusers({"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], **depth})
    lora = {}
    for diffusers, ours in names.items():
        shape = shapes.get(f"model.diffusion_model.{ours}")
        if shape and diffusers.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            module = "lora_unet_" + diffusers.removesuffix(".weight").replace(".", "_")
            lora |= {module + DOWN: torch.randn(RANK, shape[1]) / 100, module + UP: torch.randn(shape[0], RANK) / 100}
    assert len(lora) == 2 * 128
    rows, vectors = torch.tensor([[0, 0], [1, 0]]), {"clip_l": torch.randn(2, CONTEXT["sd15"]) / 50}
    PartDictionary("sd15", ("head", "wing"), ({0: "cardinal"}, {}), None, rows, vectors, lora).save(path)


def test_sd15_of_real_shape_samples_with_parts(server, checkpoint):
    write_dictionary(server.folder / "models" / "bestiary" / "real.safetensors", sd15_shapes())
    settings = {"seed": 1, "steps": 1, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    text = "a bird with (embedding:real/head.cardinal:1.2) and embedding:real/wing.0, photo " + "in a tree " * 30
    graph = {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "load": {
            "class_type": "BestiaryLoadDictionary",
            "inputs": {
                **{"model": ["checkpoint", 0], "clip": ["checkpoint", 1]},
                **{"file": "real.safetensors", "lora_strength": 1.0},
            },
        },
        "attention": {
            "class_type": "BestiaryAttentionMaps",
            "inputs": {"model": ["load", 0]},
        },
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": text}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": ["attention", 0], "positive": ["positive", 0], "negative": ["negative", 0]},
                **{"latent_image": ["latent", 0], **settings},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["checkpoint", 2]}},
        "heat": {
            "class_type": "BestiaryShowAttention",
            "inputs": {"record": ["attention", 1], "latent": ["sample", 0], "image": ["decode", 0]},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "full"}},
    }
    outputs = server.run(graph, seconds=900)
    with Image.open(server.folder / "output" / outputs["save"]["images"][0]["filename"]) as picture:
        assert picture.size == (256, 256)
    # both parts were looked at
    assert {"head", "wing"} <= set(" ".join(outputs["heat"]["text"]).replace(":", " ").split())


def test_sdxls_two_encoders_of_real_shape_take_part_vectors():
    import comfy.sd
    from bestiary.nodes.host.socket_types import SPANS_KEY, NamedDictionary
    from bestiary.nodes.part_prompt.clip_tokens import part_spans
    from bestiary.nodes.part_prompt.taught_clip import with_dictionary
    from comfy.sdxl_clip import SDXLClipModel

    import nodes

    with torch.device("meta"):
        empty = SDXLClipModel(device="meta", dtype=torch.float16)
    files = [random_weights(shapes_of(encoder.transformer, "")) for encoder in (empty.clip_l, empty.clip_g)]
    clip = comfy.sd.load_text_encoder_state_dicts(
        files, embedding_directory=[], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION
    )
    del files
    # 3329 is "bird": a word replaced by its own row says the same
    rows = {
        name: encoder.transformer.get_input_embeddings().weight[[3329]].detach().float()
        for name, encoder in clip.cond_stage_model.named_children()
    }
    assert {name: tensor.shape[1] for name, tensor in rows.items()} == {"clip_l": 768, "clip_g": 1280}
    one = PartDictionary("sdxl", ("head",), ({},), None, torch.tensor([[0, 0]]), rows)
    taught = with_dictionary(clip, NamedDictionary("birds", one))
    text = "a big ({}:1.3) in a tree, " + "photo " * 80
    theirs = nodes.CLIPTextEncode().encode(clip, text.format("bird"))[0][0]
    ours = nodes.CLIPTextEncode().encode(taught, text.format("embedding:birds/head.0"))[0][0]
    assert ours[0].shape == (1, 154, 2048)
    assert ours[0].isfinite().all()
    assert (ours[0] - theirs[0]).abs().max() == 0
    assert (ours[1]["pooled_output"] - theirs[1]["pooled_output"]).abs().max() == 0
    assert ours[1][SPANS_KEY] == part_spans(taught.tokenize(text.format("embedding:birds/head.0")))
