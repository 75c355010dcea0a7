"""Example workflow about one subject learned from a few pictures; see workflow_templates.py."""

from __future__ import annotations

from template_pieces import Example, Shipped, empty_latent, nothing, sample, show, vae
from workflow_graph import Graph, Node

DEMO_DREAMBOOTH = {"instance_prompt": "a {} creature", "class_prompt": "a creature", "vectors": 1}
DEMO_DREAMBOOTH |= {"steps": 300, "batch_size": 4, "lora_lr": 0.001, "preview_every": 100, "initial_words": "striped"}
DEMO_DREAMBOOTH |= {"more_settings": "optimizer.vector_lr = 0.3"}
"""Settings of Train DreamBooth that suit the miniature model: those of the recipe dreambooth_demo."""
NAME = "my_creature"
SUBJECT_SEEDS = (1, 2, 3)
"""Drawings of the same species in other poses and places."""


def dreambooth_demo(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model and the subject", "model")
    graph.note(
        "## Learn one subject\nThree drawings of one creature. What the model knew of other creatures is kept by its own predictions "
        "(prior: auto, without class images). Takes some minutes on a CPU; **Cancel** keeps what was learned.\n\nFor pictures of your own put Load Image in the place of "
        "Demo Pictures, and a checkpoint in the place of Demo Model; the defaults of Train DreamBooth suit Stable Diffusion."
    )
    model = graph.add("BestiaryDemoModel")
    graph.column()
    first, *rest = (
        graph.add("BestiaryDemoPictures", title=f"The subject, {number}", count=1, seed=seed)
        for number, seed in enumerate(SUBJECT_SEEDS, 1)
    )
    subject = first["images"]
    for more in rest:
        subject = graph.add("ImageBatch", image1=subject, image2=more["images"])["IMAGE"]
    graph.group("2  Learn", "prompt")
    trained = graph.add(
        "BestiaryTrainDreamBooth",
        **{name.lower(): model[name] for name in ("MODEL", "CLIP", "VAE")},
        images=subject,
        name=NAME,
        **DEMO_DREAMBOOTH,
    )
    graph.group("3  Look", "look")
    graph.add("LossGraphNode", loss=trained["loss map"], filename_prefix=f"{NAME}_loss")
    graph.group("4  The same noise: the subject, another place, the class", "picture")
    graph.note(
        f"`embedding:{NAME}_identifier` is the learned identifier; the CLIP that Train DreamBooth gives knows it. With vectors 0 the "
        "identifier is a plain word."
    )
    latent, empty = empty_latent(graph, 4), nothing(graph, model["CLIP"])
    identifier = f"a embedding:{NAME}_identifier creature"
    lanes = {
        "The subject": identifier,
        "In the snow": f"{identifier} , in the snow",
        "The class": "a creature",
    }
    shown = []
    for title, text in lanes.items():
        graph.column()
        prompt = graph.add("CLIPTextEncode", title=title, text=text, clip=trained["CLIP"])
        sampled = sample(graph, trained["MODEL"], prompt["CONDITIONING"], empty, latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return shown


DREAMBOOTH_EXAMPLES: dict[str, Example] = {"dreambooth_demo": Example(dreambooth_demo)}
"""Every example here by the name of its file."""
