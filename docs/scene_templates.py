"""What the example workflows of scenes hold."""

from __future__ import annotations

from bestiary.concepts.name_search import plain_name
from bestiary.demo.creatures import HELD_OUT_SPECIES
from template_pieces import SAMPLER, SCENE, SEED, Example, Shipped, demo_model, nothing, sample, show, vae
from workflow_graph import Graph, Node, Socket

SKY, MEADOW = 0x9CC4EA, 0x5C9A3F
TWO = (0, 1)
"""Which of the examples' species stand in a scene."""


def _drawn_subject(graph: Graph, shipped: Shipped, species: int, name: str, words: str, before: Node | None) -> Node:
    """A subject of a drawn picture of a species."""
    kind = plain_name(shipped.kind(shipped.parts[0], species))
    first = next((number for number, one in enumerate(HELD_OUT_SPECIES) if plain_name(one.name) == kind), species)
    drawn = graph.add("BestiaryDemoPictures", title=f"Picture of {name}", count=1, seed=SEED, first=first)
    linked = {} if before is None else {"subjects": before["subjects"]}
    return graph.add(
        "BestiarySubject",
        title=name,
        image=drawn["images"],
        mask=drawn["masks"],
        name=name,
        words=words,
        size="medium",
        **linked,
    )


def _two_subjects(graph: Graph, shipped: Shipped, called: tuple[str, str] | None = None) -> Socket:
    """Two drawn creatures; prompts call them by their parts unless they are called otherwise."""
    graph.group("2  Subjects", "parts")
    graph.note(
        "Each subject is a picture with a mask. For photographs use **Load Image** and **Cut Out Subject**, or any node that gives "
        "masks."
    )
    subject = None
    for number, name in zip(TWO, ("left one", "right one"), strict=True):
        if number:
            graph.column()
        words = called[number] if called else f"{shipped.whole(number)} creature"
        subject = _drawn_subject(graph, shipped, number, name, words, subject)
    return subject["subjects"]


def two_in_one_scene(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Two in one scene\nEach creature has a prompt for its own region of the picture. Below the same noise with one prompt for "
        "both, which mixes them.\n\nThe miniature model draws two creatures at 256x128.",
    )
    subjects = _two_subjects(graph, shipped)
    graph.group("3  Where they stand", "look")
    boxes = "left one: [0, 0, 128, 128]\nright one: [128, 0, 128, 128]"
    layout = graph.add("BestiaryLayoutFromText", text=boxes, subjects=subjects, width=256, height=128)
    boxes = graph.add("BestiaryComposeScene", subjects=subjects, layouts=layout["layouts"], background_mode="plain")
    graph.add("PreviewImage", title="The layout", images=boxes["image"])
    graph.group("4  Prompts", "prompt")
    regions = graph.add(
        "BestiarySceneRegions",
        clip=loaded["CLIP"],
        layouts=layout["layouts"],
        text="a photo of {subject} , {place}",
        feather=8,
        place=SCENE,
    )
    both = " and a ".join(f"{shipped.whole(number)} creature" for number in TWO)
    single = graph.add(
        "BestiaryPartPrompt", title="One prompt for both", clip=loaded["CLIP"], text=f"a photo of a {both} , {SCENE}"
    )
    negative = nothing(graph, loaded["CLIP"])
    latent = graph.add("EmptyLatentImage", title="Size and count", width=256, height=128, batch_size=2)["LATENT"]
    graph.group("5  Pictures", "picture")
    shown = []
    for title, positive in (("By region", regions["CONDITIONING"]), ("One prompt for both", single["conditioning"])):
        if shown:
            graph.column()
        shown.append(show(graph, sample(graph, loaded["MODEL"], positive, negative, latent), vae(graph), title))
    return shown


def scene_repaint(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model", "model")
    graph.note(
        "## Repaint the place\nSubjects on a sketch of a place; the model paints a place around them, and the subjects are put back exact to the "
        "pixel. Any model can stand between **Compose Scene** and **Restore Subjects**."
    )
    model = graph.add("BestiaryDemoModel")
    subjects = _two_subjects(graph, shipped, ("creature", "creature"))
    graph.group("3  The scene", "look")
    layout = graph.add(
        "BestiarySolveLayout",
        subjects=subjects,
        width=256,
        height=128,
        seed=SEED,
        coverage=0.5,
        ground=0.8,
        perspective=0.0,
    )
    graph.column()
    sky = graph.add("EmptyImage", title="Sky", width=256, height=128, color=SKY)
    meadow = graph.add("EmptyImage", title="Meadow", width=256, height=48, color=MEADOW)
    sketch = graph.add(
        "ImageCompositeMasked",
        title="A sketch of the place",
        destination=sky["IMAGE"],
        source=meadow["IMAGE"],
        x=0,
        y=80,
        resize_source=False,
    )
    scene = graph.add(
        "BestiaryComposeScene",
        subjects=subjects,
        layouts=layout["layouts"],
        background_mode="photo",
        background=sketch["IMAGE"],
        inset=2,
    )
    graph.group("4  Paint the place", "prompt")
    # words for the subjects would paint them a second time
    positive = graph.add("CLIPTextEncode", title="The place alone", text=f"a photo {SCENE}", clip=model["CLIP"])
    negative = nothing(graph, model["CLIP"])
    encoded = graph.add("VAEEncode", pixels=scene["image"], vae=model["VAE"])
    masked = graph.add("SetLatentNoiseMask", samples=encoded["LATENT"], mask=scene["repaint"])
    graph.column()
    sampled = graph.add(
        "KSampler",
        model=model["MODEL"],
        positive=positive["CONDITIONING"],
        negative=negative,
        latent_image=masked["LATENT"],
        seed=SEED,
        denoise=0.6,
        **SAMPLER,
    )
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=model["VAE"])
    graph.group("5  Subjects as they were", "picture")
    restored = graph.add(
        "BestiaryRestoreSubjects", decoded=decoded["IMAGE"], canvas=scene["image"], mask=scene["subjects"], feather=3
    )
    graph.add("PreviewImage", title="The canvas", images=scene["image"])
    graph.column()
    pictures = [("Painted", decoded["IMAGE"]), ("Restored", restored["image"])]
    return [graph.add("PreviewImage", title=title, images=images) for title, images in pictures]


SCENE_EXAMPLES: dict[str, Example] = {
    "two_in_one_scene": Example(two_in_one_scene, columns=2),
    "scene_repaint": Example(scene_repaint, columns=1),
}
