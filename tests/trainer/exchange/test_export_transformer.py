"""What is learned on SD3 and Flux, as files for ComfyUI and diffusers: every adapter and every text encoder's vector arrives, with the trained scale."""

from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.denoiser import Conditioning
from bestiary.concepts.denoiser.lora_names import from_kohya, kohya_name, lora_layers, module_path, to_kohya
from bestiary.concepts.denoiser.low_rank import LoraSpec
from bestiary.concepts.errors import BestiaryError
from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
from bestiary.trainer.exchange.export_parts import LORA_FILE, embedding_for_comfyui, export_dictionary
from bestiary.trainer.exchange.inspect_file import describe_file
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "lora_transformer_"


def adapted(denoiser: object) -> dict[str, Tensor]:
    """Adapters of every attention projection with an alpha other than the rank."""
    torch.manual_seed(1)
    denoiser.network.adapters.add(LoraSpec(rank=2, alpha=3.0))
    for update in denoiser.network.adapters.trained().values():
        nn.init.normal_(update.up, std=0.05)
    tensors = denoiser.network.adapters.tensors()
    denoiser.network.adapters.unload()
    return {name: tensor.half().float() for name, tensor in tensors.items()}


def dictionary(denoiser: object, lora: dict[str, Tensor]) -> PartDictionary:
    vectors = {spec.name: torch.randn(2, spec.width) for spec in denoiser.backbone.text_encoders}
    rows = torch.tensor([[0, 0], [0, 1]])
    return PartDictionary(denoiser.backbone.name, ("head",), ({0: "red", 1: "blue"},), None, rows, vectors, lora)


def predicted(denoiser: object) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    widths = {"sd3": 96, "flux": 32}
    latents, context = torch.randn(1, 16, 8, 8, generator=rng), torch.randn(1, 12, 96, generator=rng)
    text = Conditioning.of(context, pooled=torch.randn(1, widths[denoiser.backbone.name], generator=rng))
    with torch.no_grad():
        return denoiser.network.predict(latents, torch.tensor([0.5]), text).prediction


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_diffusers_own_loader_takes_every_adapter_with_its_scale(
    tiny_denoiser, tiny_folder, name: str, tmp_path: Path
) -> None:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
    from diffusers.loaders import FluxLoraLoaderMixin, SD3LoraLoaderMixin

    denoiser = tiny_denoiser(name)
    plain, lora = predicted(denoiser), adapted(denoiser)
    written = export_dictionary(dictionary(denoiser, lora), tmp_path)
    exported = load_file(tmp_path / LORA_FILE)
    assert all(key.startswith("transformer.") for key in exported) and len(exported) == len(lora)
    assert sum(key.endswith(".alpha") for key in exported) == len(lora) // 3
    denoiser.network.adapters.load(lora)
    ours = predicted(denoiser)
    assert not torch.allclose(ours, plain, atol=1e-3)
    # read back by us, from the names of other programs
    denoiser.network.adapters.unload()
    assert denoiser.network.adapters.load(exported) == len(lora) // 3
    torch.testing.assert_close(predicted(denoiser), ours, atol=1e-4, rtol=1e-4)
    exact = predicted(denoiser)

    kind, loader = (
        (SD3Transformer2DModel, SD3LoraLoaderMixin) if name == "sd3" else (FluxTransformer2DModel, FluxLoraLoaderMixin)
    )
    theirs = kind.from_pretrained(tiny_folder(name) / "transformer").eval()
    state = loader.lora_state_dict(str(tmp_path / LORA_FILE), **({"return_alphas": True} if name == "flux" else {}))
    state, alphas = state if isinstance(state, tuple) else (state, None)
    loader.load_lora_into_transformer(
        state, **({} if name == "sd3" else {"network_alphas": alphas}), transformer=theirs
    )
    reached = [path for path, module in theirs.named_modules() if hasattr(module, "lora_A") and len(module.lora_A)]
    assert len(reached) == len(lora) // 3
    denoiser.network.adapters.unload()
    # their layers with adapters in the place of ours
    for path in reached:
        layer = theirs.get_submodule(path)
        update = layer.scaling["default_0"] * layer.lora_B["default_0"].weight @ layer.lora_A["default_0"].weight
        denoiser.network.transformer.get_submodule(path).weight.data += update.detach()
    torch.testing.assert_close(predicted(denoiser), exact, atol=1e-5, rtol=1e-4)
    # an embedding of every text encoder in one file, as ComfyUI reads them
    embedding = load_file(written[1])
    assert set(embedding) == {spec.name for spec in denoiser.backbone.text_encoders}
    for spec in denoiser.backbone.text_encoders:
        assert embedding_for_comfyui(embedding, spec.name).shape == (1, spec.width)
    guide = (tmp_path / "README.txt").read_text()
    assert "pipe.load_lora_weights" in guide and "AUTOMATIC1111" not in guide
    assert describe_file(tmp_path / LORA_FILE)["layers"] == len(lora) // 3


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_names_go_both_ways_for_every_layer(tiny_denoiser, name: str) -> None:
    paths = [
        path for path, layer in tiny_denoiser(name).network.transformer.named_modules() if isinstance(layer, nn.Linear)
    ]
    assert len(paths) > 40
    for path in paths:
        module = PREFIX + path.replace(".", "_")
        assert module_path(module) == path
        for spelled in (
            f"transformer.{path}.lora_A.weight",
            f"{module}.lora_down.weight",
            f"transformer.{path}.lora_A.default.weight",
        ):
            assert kohya_name(spelled) == f"{module}.lora_down.weight"
    pair = {f"{PREFIX}{paths[-9].replace('.', '_')}.lora_{kind}.weight": torch.ones(2, 2) for kind in ("down", "up")}
    spelled = from_kohya(pair, "transformer")
    assert sorted(spelled) == [f"transformer.{paths[-9]}.lora_{kind}.weight" for kind in "AB"]
    assert to_kohya(spelled, prefix=PREFIX).keys() == pair.keys()


def test_loras_of_other_families_are_refused_by_name(tiny_denoiser) -> None:
    layer = "attn.to_q.lora_{}.weight"
    unet = {
        f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_{kind}.weight": torch.ones(2, 2)
        for kind in "AB"
    }
    with pytest.raises(BestiaryError, match=r"the LoRA is for Stable Diffusion, this model is a diffusion transformer"):
        tiny_denoiser("sd3").network.adapters.load(unet)
    original = {
        f"lora_unet_double_blocks_0_img_attn_qkv.lora_{kind}.weight": torch.ones(2, 2) for kind in ("down", "up")
    }
    with pytest.raises(
        BestiaryError, match="names layers as the original checkpoint does .*: convert it to diffusers' names"
    ):
        tiny_denoiser("flux").network.adapters.load(original)
    other = {f"transformer.transformer_blocks.0.{layer.format(kind)}": torch.ones(2, 2) for kind in "AB"}
    with pytest.raises(BestiaryError, match="is for a transformer model such as Flux or SD3"):
        lora_layers(other)
    # our own prefix of UNets reaches nothing of a transformer
    wrong = {
        f"lora_unet_transformer_blocks_0_attn_to_q.lora_{kind}.weight": torch.ones(2, 2) for kind in ("down", "up")
    }
    with pytest.raises(BestiaryError, match="none of the 1 LoRA layers belongs to this model"):
        tiny_denoiser("sd3").network.adapters.load(wrong)


def test_a_dictionary_keeps_a_transformers_lora(tiny_denoiser, tmp_path: Path) -> None:
    denoiser = tiny_denoiser("sd3")
    made = dictionary(denoiser, adapted(denoiser))
    made.save(tmp_path / "a.parts.safetensors", dtype=torch.float32)
    again = PartDictionary.load(tmp_path / "a.parts.safetensors")
    assert again.lora.keys() == made.lora.keys() and set(again.embeddings) == {"clip_l", "clip_g", "t5xxl"}
    stored = load_file(tmp_path / "a.parts.safetensors")
    stored.pop("t5xxl")
    save_file(stored, tmp_path / "b.parts.safetensors", metadata_of(tmp_path / "a.parts.safetensors"))
    with pytest.raises(BestiaryError, match="t5xxl"):
        PartDictionary.load(tmp_path / "b.parts.safetensors")


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()
