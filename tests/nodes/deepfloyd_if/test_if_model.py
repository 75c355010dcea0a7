"""Tests of a stage of DeepFloyd IF as ComfyUI's MODEL: against diffusers, with every sampler of ComfyUI around it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bestiary.concepts.errors import BestiaryError
from bestiary.trainer.learning.denoiser.if_folder import read_if_folder


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours - theirs).abs().max().item()


def reference(folder):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()


def loaded(folder, thresholding=False):
    from bestiary.nodes.deepfloyd_if.if_model import load_model

    return load_model(read_if_folder(folder), thresholding)


def text(seed=0, batch=1):
    return torch.randn(batch, 77, 32, generator=torch.Generator().manual_seed(seed))


def sampled(model, positive, negative, latent, *, steps=10, cfg=7.0, sampler="ddim", scheduler="ddim_uniform", seed=3):
    import comfy.sample

    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, latent, seed=seed, disable_pbar=True
    )


@torch.no_grad()
def test_the_noise_is_what_diffusers_predicts_without_the_variance(cascade):
    model, theirs = loaded(cascade.first).model.diffusion_model, reference(cascade.first)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([7.0, 900.0])
    found = theirs(x, times.long(), encoder_hidden_states=text(batch=2)).sample
    assert found.shape[1] == 6
    assert gap(model(x, times, context=text(batch=2)), found[:, :3]) <= 1e-6


def test_the_noise_levels_are_those_of_the_folders_scheduler(cascade):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(cascade.first / "scheduler")
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    assert gap(loaded(cascade.first).model.model_sampling.sigmas, sigmas) <= 1e-4 * float(sigmas.max())


@torch.no_grad()
def test_ksampler_draws_what_an_explicit_ddim_loop_draws(cascade):
    import comfy.sample

    model, unet = loaded(cascade.first), reference(cascade.first)
    positive, negative = text(1), text(2)
    latent = torch.zeros(1, 3, 32, 32)
    found = sampled(model, [[positive, {}]], [[negative, {}]], latent)
    # the loop of the DDIM paper, over the times that ComfyUI's scheduler chose
    sampling = model.model.model_sampling
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", 10)
    alphas = 1 / (sigmas**2 + 1)
    # ComfyUI starts from noise times sigma; on the model's scale that is noise times sqrt(1 - alpha)
    x = comfy.sample.prepare_noise(latent, 3) * (1 - alphas[0]).sqrt()
    for number in range(10):
        time = sampling.timestep(sigmas[number]).float().expand(1)
        noise = [unet(x, time, encoder_hidden_states=one).sample[:, :3] for one in (negative, positive)]
        guided = noise[0] + 7.0 * (noise[1] - noise[0])
        clean = (x - (1 - alphas[number]).sqrt() * guided) / alphas[number].sqrt()
        x = alphas[number + 1].sqrt() * clean + (1 - alphas[number + 1]).sqrt() * guided
    assert gap(found, x) <= 1e-5 * float(x.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "lcm", "uni_pc"])
def test_every_kind_of_sampler_gives_finite_pictures_within_range(cascade, sampler):
    model = loaded(cascade.first, thresholding=True)
    for scheduler in ("normal", "karras"):
        found = sampled(
            model,
            [[text(1), {}]],
            [[text(2), {}]],
            torch.zeros(2, 3, 32, 32),
            steps=4,
            sampler=sampler,
            scheduler=scheduler,
        )
        assert found.isfinite().all()
        # solvers of higher order extrapolate a little beyond the predictions
        assert found.abs().max() <= 1.01


def test_dynamic_thresholding_is_that_of_diffusers():
    from bestiary.nodes.deepfloyd_if.if_model import thresholded
    from diffusers import DDPMScheduler

    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    for most in (1.0, 1.5):
        scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=most)
        assert gap(thresholded(x, 0.95, most), scheduler._threshold_sample(x.clone())) <= 1e-6


@torch.no_grad()
def test_stage_two_sees_its_low_picture_at_the_level_it_is_told(cascade):
    from bestiary.nodes.deepfloyd_if.if_model import LOW_PICTURE, NOISE_LEVEL, enlarge

    model = loaded(cascade.second).model
    low = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    options = {"noise": torch.zeros(2, 3, 256, 256), "device": torch.device("cpu"), "cross_attn": text(), "seed": 11}
    given = model.extra_conds(**options, **{LOW_PICTURE: low, NOISE_LEVEL: 250})
    seen = given["c_concat"].cond
    assert given["y"].cond.tolist() == [250, 250]
    assert seen.shape == (2, 3, 256, 256)
    # what is not the picture is noise of unit deviation
    alpha = model.level_alphas[250]
    noise = (seen - alpha.sqrt() * enlarge(low, (256, 256))) / (1 - alpha).sqrt()
    assert abs(float(noise.std()) - 1) <= 0.01
    assert abs(float(noise.mean())) <= 0.01
    # the same for a seed, another for another, and never the noise that sampling starts from
    again = model.extra_conds(**options, **{LOW_PICTURE: low, NOISE_LEVEL: 250})["c_concat"].cond
    other = model.extra_conds(**{**options, "seed": 12}, **{LOW_PICTURE: low, NOISE_LEVEL: 250})["c_concat"].cond
    assert torch.equal(seen, again)
    assert gap(seen, other) > 0.1
    started = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(11))
    assert abs(float((noise * started).mean())) <= 0.01


@torch.no_grad()
def test_stage_two_predicts_what_diffusers_does(cascade):
    from bestiary.nodes.deepfloyd_if.if_model import LOW_PICTURE, NOISE_LEVEL

    patcher, theirs = loaded(cascade.second), reference(cascade.second)
    low = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    noise = torch.zeros(1, 3, 64, 64)
    options = {"noise": noise, "device": torch.device("cpu"), "cross_attn": text(), "seed": 11}
    given = patcher.model.extra_conds(**options, **{LOW_PICTURE: low, NOISE_LEVEL: 700})
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    sigma = patcher.model.model_sampling.sigmas[400].expand(1)
    seen = given["c_concat"].cond
    clean = patcher.model.apply_model(x, sigma, c_concat=seen, c_crossattn=text(), y=given["y"].cond)
    scaled = torch.cat([x / (sigma**2 + 1).sqrt(), seen], 1)
    found = theirs(scaled, torch.tensor([400]), encoder_hidden_states=text(), class_labels=torch.tensor([700]))
    assert gap(clean, x - sigma * found.sample[:, :3]) <= 1e-5 * float(sigma)


def test_a_stage_told_the_work_of_the_other_says_so(cascade):
    from bestiary.nodes.deepfloyd_if.if_model import LOW_PICTURE, NOISE_LEVEL

    options = {"noise": torch.zeros(1, 3, 64, 64), "device": torch.device("cpu"), "cross_attn": text(), "seed": 1}
    with pytest.raises(BestiaryError, match="stage II.*IF Upscale Conditioning"):
        loaded(cascade.second).model.extra_conds(**options)
    with pytest.raises(BestiaryError, match="stage I .*stage II"):
        low = {LOW_PICTURE: torch.zeros(1, 3, 16, 16), NOISE_LEVEL: 250}
        loaded(cascade.first).model.extra_conds(**options, **low)


def test_the_model_is_counted_loaded_and_evicted_like_any_other(cascade):
    import comfy.model_management as manager

    model = loaded(cascade.first)
    manager.load_models_gpu([model])
    assert any(one.model is model for one in manager.current_loaded_models)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.model.diffusion_model.parameters())
    assert model.model_size() >= size > 3_000_000
    manager.unload_all_models()
    assert not any(one.model is model for one in manager.current_loaded_models)


@torch.no_grad()
def test_an_adapter_under_kohya_names_reaches_the_unet_and_leaves_it(cascade):
    import comfy.model_management as manager
    import comfy.sd

    model = loaded(cascade.first)
    weights = model.model.diffusion_model.state_dict()
    path = "down_blocks.1.attentions.0.add_k_proj"
    before = weights[f"{path}.weight"].clone()
    down, up = torch.randn(8, before.shape[1]), torch.randn(before.shape[0], 8)
    name = "lora_unet_" + path.replace(".", "_")
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(16.0)}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert len(patched.patches) == 1
    manager.load_models_gpu([patched])
    # alpha 16 at rank 8 doubles the update
    after = patched.model.diffusion_model.state_dict()[f"{path}.weight"]
    assert gap(after, before + 2 * up @ down) <= 1e-4
    manager.unload_all_models()
    assert torch.equal(model.model.diffusion_model.state_dict()[f"{path}.weight"], before)


def broken(cascade, tmp_path, change):
    folder = tmp_path / "IF"
    shutil.copytree(cascade.first, folder)
    change(folder)
    return folder


def test_damaged_weights_are_one_clear_error(cascade, tmp_path):
    def cut(folder):
        (file,) = (folder / "unet").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:5000])

    folder = broken(cascade, tmp_path, cut)
    with pytest.raises(BestiaryError, match="could not be read.*download"):
        loaded(folder)


def test_weights_of_another_config_are_one_clear_error(cascade, tmp_path):
    from safetensors.torch import load_file, save_file

    def lose(folder):
        (file,) = (folder / "unet").glob("*.safetensors")
        tensors = load_file(file)
        tensors.pop("conv_in.weight")
        save_file(tensors, file)

    folder = broken(cascade, tmp_path, lose)
    with pytest.raises(BestiaryError, match="not those of its config.*missing"):
        loaded(folder)


def test_half_precision_files_alone_are_read(cascade, tmp_path):
    def rename(folder):
        (file,) = (folder / "unet").glob("*.safetensors")
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))

    loaded(broken(cascade, tmp_path, rename))


def test_without_diffusers_the_error_says_what_to_install(cascade, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BestiaryError, match="pip install diffusers"):
        loaded(cascade.first)


def test_stage_one_writes_no_low_picture(cascade):
    config = json.loads((cascade.first / "unet" / "config.json").read_text())
    assert config["in_channels"] == 3
    assert read_if_folder(cascade.first).stage == "I"
    assert read_if_folder(cascade.second).stage == "II"
