"""Load, Spectrum Prompt, Mix Attributes and Save Spectrum: schemas, and graphs through the queue of a real ComfyUI."""

import re
from pathlib import Path

import pytest
import torch
from bestiary.concepts.denoiser.backbone import get_backbone
from bestiary.concepts.spectrum.prompt_spectrum import PromptSpectrum
from bestiary.concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from bestiary.concepts.spectrum.stage_bounds import StageBounds

ROOT = Path(__file__).parents[3]


def spectrum(seed: int, backbone: str = "bestiary-demo", layers: int = 0) -> PromptSpectrum:
    """Random vectors as long as those of words."""
    widths = {encoder.name: encoder.width for encoder in get_backbone(backbone).text_encoders}
    generator = torch.Generator().manual_seed(seed)
    shape = (10, layers, 1) if layers else (10, 1)
    embeddings = {name: torch.randn(*shape, width, generator=generator) * 0.4 for name, width in widths.items()}
    neutral = {name: torch.zeros(1, width) for name, width in widths.items()}
    return PromptSpectrum(backbone, embeddings, StageBounds.equal(10), neutral=neutral, initial_words="bird")


@pytest.fixture(scope="module")
def folder(server: object) -> Path:
    """The server's models/bestiary with some spectra."""
    place = server.folder / "models" / "bestiary"
    for name, one in {"alpha": spectrum(1), "beta": spectrum(2), "wide": spectrum(3, "sd15")}.items():
        save_spectrum(one, place / f"{name}.safetensors")
    save_spectrum(spectrum(4, layers=7), place / "layered.safetensors")
    return place


def load(file: str, **more: object) -> dict:
    return {"class_type": "BestiaryLoadSpectrum", "inputs": {"file": file, **more}}


def graph(**nodes: dict) -> dict:
    return {"demo": {"class_type": "BestiaryDemoModel", "inputs": {}}, "a": load("alpha.safetensors"), **nodes}


def prompt(text: str, negative: str = "", **inputs: object) -> dict:
    links = {"clip": ["demo", 1], "text": text, "negative_text": negative, "spectrum_1": ["a", 0]}
    return {"class_type": "BestiarySpectrumPrompt", "inputs": {**links, **inputs}}


def shown(link: list) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": link}}


def sampling(prefix: str, positive: list, negative: list) -> dict:
    numbers = {"seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["demo", 0], "positive": positive, "negative": negative, "latent_image": ["size", 0]}
    return {
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 2}},
        "sample": {"class_type": "KSampler", "inputs": {**numbers, **links}},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": prefix}},
    }


def test_only_spectra_are_offered(server, folder):
    options = server.get("/object_info/BestiaryLoadSpectrum").json()["BestiaryLoadSpectrum"]["input"]["required"][
        "file"
    ]
    listed = options[0] if isinstance(options[0], list) else options[1]["options"]
    assert {"alpha.safetensors", "beta.safetensors", "layered.safetensors", "wide.safetensors"} <= set(listed)
    assert "creatures.safetensors" not in listed


def test_a_spectrum_is_loaded_prompted_and_sampled(server, folder):
    outputs = server.run(
        graph(
            prompt=prompt("a <alpha> bird, meadow", "dark", stage_texts="10: a red bird"),
            info=shown(["a", 1]),
            report=shown(["prompt", 2]),
            **sampling("staged", ["prompt", 0], ["prompt", 1]),
        )
    )
    assert outputs["info"]["text"][0].startswith("<alpha> for bestiary-demo: 10 stages, 1 vector each")
    report = outputs["report"]["text"][0].splitlines()
    assert report[0] == "0-10 %: a <alpha> bird, meadow"
    assert report[9] == "90-100 %: a red bird"
    result = server.latent("staged")
    assert result.shape == (2, 8, 16, 16) and result.isfinite().all()


def test_a_prompt_without_stages_gives_what_the_core_node_gives(server, folder):
    core = {
        name: {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": text}}
        for name, text in (("plus", "a (red:1.2) bird"), ("minus", "dark"))
    }
    server.run(graph(prompt=prompt("a (red:1.2) bird", "dark"), **sampling("ours", ["prompt", 0], ["prompt", 1])))
    server.run(graph(**core, **sampling("theirs", ["plus", 0], ["minus", 0])))
    assert torch.equal(server.latent("ours"), server.latent("theirs"))


def test_a_mixture_is_prompted_saved_and_never_overwrites(server, folder):
    mix = {
        "class_type": "BestiaryMixAttributes",
        "inputs": {
            "name": "both",
            "reference_1": ["a", 0],
            "takes_1": "layout",
            "reference_2": ["b", 0],
            "takes_2": "content",
            "strength_2": 1.0,
        },
    }
    save = {"class_type": "BestiarySaveSpectrum", "inputs": {"spectrum": ["mix", 0], "filename": "mixed/both"}}
    nodes = graph(b=load("beta.safetensors"), mix=mix, store=save, table=shown(["mix", 1]), file=shown(["store", 0]))
    nodes["prompt"] = prompt("a <both>", spectrum_2=["mix", 0])
    outputs = server.run({**nodes, **sampling("mixed", ["prompt", 0], ["prompt", 1])})
    assert outputs["table"]["text"][0].splitlines()[:2] == [
        "reference_1 'alpha': stages 1",
        "reference_2 'beta': stages 3-10",
    ]
    assert outputs["file"]["text"][0] == "mixed/both.safetensors"
    saved = load_spectrum(folder / "mixed" / "both.safetensors").matrix()
    assert torch.equal(saved[0], spectrum(1).matrix()[0])
    assert torch.equal(saved[2:], spectrum(2).matrix()[2:])
    save["inputs"]["filename"] = "mixed/both.safetensors"
    again = server.run({**nodes, "store": save})
    assert again["file"]["text"][0] == "mixed/both_2.safetensors"


def test_steps_are_counted_with_a_model_and_sigmas(server, folder):
    scheduler = {
        "class_type": "BasicScheduler",
        "inputs": {"model": ["demo", 0], "scheduler": "karras", "steps": 4, "denoise": 1.0},
    }
    staged = prompt("a <alpha>", clock="steps", model=["demo", 0], sigmas=["walk", 0])
    outputs = server.run(graph(walk=scheduler, prompt=staged, report=shown(["prompt", 2])))
    assert outputs["report"]["text"][0].count("(no step falls into it)") == 6


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(server, folder):
    save_spectrum(spectrum(7), folder / "changing.safetensors")
    nodes = graph(c=load("changing.safetensors"), info=shown(["c", 1]))
    cached = [server.wait(server.submit(nodes)) for _ in range(2)][1]["status"]["messages"]
    assert "c" in next(facts["nodes"] for name, facts in cached if name == "execution_cached")
    two = spectrum(8)
    save_spectrum(
        PromptSpectrum("bestiary-demo", two.embeddings, two.bounds, initial_words="horse"),
        folder / "changing.safetensors",
    )
    assert "initialised from the words: horse" in server.run(nodes)["info"]["text"][0]


def test_files_that_are_none_of_ours_are_refused_before_anything_runs(server, folder):
    for file in ("../../evil", "creatures.safetensors", "alfa.safetensors"):
        with pytest.raises(RuntimeError, match="no prompt spectrum"):
            server.submit(graph(a=load(file), info=shown(["a", 1])))


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        ("a <gamma>", {}, "Spectrum Prompt: prompt, column 3: unknown spectrum 'gamma': choose 'alpha'"),
        ("a <alpha@0-3>", {}, "Spectrum Prompt: prompt, column 3: stage '0-3' does not exist"),
        ("a bird", {"stage_texts": "1: a\n1-2: b"}, "Spectrum Prompt: stages 1 are claimed by line 1 and by line 2"),
        (
            "a bird",
            {"clock": "steps"},
            "Spectrum Prompt: the clock counts steps, but model and sigmas is not connected",
        ),
        (
            "a bird",
            {"spectrum_2": ["wide", 0]},
            "Spectrum Prompt: spectrum 'wide' was trained for sd15 and contains vectors",
        ),
        ("a bird", {"presets": "mood 1-2"}, "line 1 of the presets, 'mood 1-2': write one attribute per line"),
    ],
)
def test_faults_say_cause_and_remedy(server, folder, text, inputs, message):
    nodes = graph(wide=load("wide.safetensors"), prompt=prompt(text, **inputs), report=shown(["prompt", 2]))
    assert message in server.fail(nodes)


def test_a_spectrum_for_other_layers_stops_the_sampling(server, folder):
    nodes = graph(
        l=load("layered.safetensors"),
        prompt=prompt("a <layered>", spectrum_2=["l", 0]),
        **sampling("layers", ["prompt", 0], ["prompt", 1]),
    )
    message = server.fail(nodes)
    assert "the prompt contains vectors for 7 cross-attention layers, but this MODEL has" in message
    # and the next sampling is as if nothing had been
    server.run(graph(prompt=prompt("a bird"), **sampling("after", ["prompt", 0], ["prompt", 1])))


def test_unlinking_the_model_output_alone_encodes_again(server, folder):
    def nodes(prefix: str, *, through: bool, seed: int = 3) -> dict:
        made = sampling(prefix, ["prompt", 0], ["prompt", 1])
        made["sample"]["inputs"] |= {"model": ["prompt", 3] if through else ["demo", 0], "seed": seed}
        own = prompt("a <told>", spectrum_2=["l", 0], model=["demo", 0])
        return graph(l=load("told.safetensors"), prompt=own, **made)

    save_spectrum(spectrum(4, layers=7), folder / "told.safetensors")
    layers = int(re.search(r"this MODEL has (\d+)", server.fail(nodes("told", through=False)))[1])
    save_spectrum(spectrum(4, layers=layers), folder / "told.safetensors")
    for number, through in enumerate((True, False, True)):
        server.run(nodes(f"told{number}", through=through))
    first, second, third = (server.latent(f"told{number}") for number in range(3))
    assert torch.equal(first, second) and torch.equal(first, third) and first.std() > 0.1
    # what stays linked as it was is not encoded again
    assert "prompt" in cached_nodes(server, nodes("told3", through=True, seed=4))
    # as a graph in which it was never linked
    server.post("/free", json={"free_memory": True, "unload_models": False})
    server.run(nodes("told4", through=False))
    assert torch.equal(first, server.latent("told4"))


def cached_nodes(server: object, nodes: dict) -> list[str]:
    """The nodes of a graph that a run takes from the results of earlier ones."""
    entry = server.wait(server.submit(nodes))
    return next(facts["nodes"] for kind, facts in entry["status"]["messages"] if kind == "execution_cached")


def test_strength_and_soft_boundaries_of_a_loaded_spectrum(monkeypatch):
    from bestiary.nodes.host.socket_types import NamedSpectrum
    from bestiary.nodes.spectrum import prompt_spectrum_nodes

    one = spectrum(1)
    monkeypatch.setattr(prompt_spectrum_nodes, "read_spectrum", lambda file, name: NamedSpectrum("alpha", one))
    execute = prompt_spectrum_nodes.BestiaryLoadSpectrum.execute
    assert torch.equal(execute("alpha").args[0].spectrum.matrix(), one.matrix())
    assert not execute("alpha", strength=0.0).args[0].spectrum.matrix().any()
    soft = execute("alpha", soft_boundaries=1.0).args[0].spectrum.matrix()
    assert torch.allclose(soft[0], torch.lerp(one.matrix()[0], one.matrix()[1], 0.5))
