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


def _sketch(graph: Graph, width: int, height: int) -> Socket:
    """A picture of a place in two colours."""
    ground = height * 3 // 8
    sky = graph.add("EmptyImage", title="Sky", width=width, height=height, color=SKY)
    meadow = graph.add("EmptyImage", title="Meadow", width=width, height=ground, color=MEADOW)
    return graph.add(
        "ImageCompositeMasked",
        title="A sketch of the place",
        destination=sky["IMAGE"],
        source=meadow["IMAGE"],
        x=0,
        y=height - ground,
        resize_source=False,
    )["IMAGE"]


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
    sketch = _sketch(graph, 256, 128)
    scene = graph.add(
        "BestiaryComposeScene",
        subjects=subjects,
        layouts=layout["layouts"],
        background_mode="photo",
        background=sketch,
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


def scene_training_set(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  What this is", "model")
    graph.note(
        "## A training set of scenes\nNo model runs: subjects, layouts, collages, captions, and a folder that kohya, ai-toolkit, "
        "OneTrainer, diffusers and others read. Choose the trainer under **view**.\n\nReplace the drawn creatures by **Scene Subjects "
        "from Folder** with your own pictures."
    )
    subjects = _two_subjects(graph, shipped)
    graph.group("3  Scenes", "look")
    layout = graph.add(
        "BestiarySolveLayout", subjects=subjects, width=384, height=384, count=6, seed=SEED, coverage=0.35, ground=0.6
    )
    sketch = _sketch(graph, 384, 384)
    graph.column()
    linked = {"subjects": subjects, "layouts": layout["layouts"], "background": sketch}
    scene = graph.add("BestiaryComposeScene", background_mode="photo", **linked)
    shown = graph.add("PreviewImage", title="The scenes", images=scene["image"])
    graph.group("4  Captions and files", "prompt")
    caption = graph.add(
        "BestiarySceneCaption", subjects=subjects, layouts=layout["layouts"], place=SCENE, triggers="left one = sks"
    )
    graph.add("PreviewAny", title="Captions", source=caption["captions"])
    graph.add(
        "BestiarySaveSceneSet",
        scenes=scene["scenes"],
        captions=caption["captions"],
        prompts=caption["prompts"],
        name="two creatures",
        view="kohya",
        place=SCENE,
    )
    return [shown]


def _photographs(graph: Graph, size: int) -> tuple[Socket, Node]:
    """Subjects of a folder on a canvas; returns subjects and layout."""
    graph.group("2  Subjects", "parts")
    graph.note(
        "Pictures in `input/subjects`: transparent, with `NAME_mask.png` beside them, or photographs (with IS-Net weights in "
        "`models/bestiary/segmentation`)."
    )
    folder = graph.add("BestiarySubjectFolder", folder="subjects", limit=2)
    layout = graph.add("BestiarySolveLayout", subjects=folder["subjects"], width=size, height=size, seed=SEED)
    return folder["subjects"], layout


def scene_sdxl_inpaint(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model", "model")
    graph.note(
        "## A scene with SDXL Inpainting\nPut the UNet of `stable-diffusion-xl-1.0-inpainting-0.1`, both text encoders and the VAE of "
        "SDXL into their folders in `models`."
    )
    unet = graph.add("UNETLoader", unet_name="sd_xl_inpainting_0.1.safetensors", weight_dtype="default")
    clip = graph.add("DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="clip_g.safetensors", type="sdxl")
    decoder = graph.add("VAELoader", vae_name="sdxl_vae.safetensors")
    subjects, layout = _photographs(graph, 1024)
    graph.group("3  The scene", "look")
    place = graph.add("LoadImage", title="A place", image="garden.jpg")
    graph.column()
    scene = graph.add(
        "BestiaryComposeScene",
        subjects=subjects,
        layouts=layout["layouts"],
        background_mode="blur",
        background=place["IMAGE"],
        feather=8,
    )
    graph.group("4  Paint the place", "prompt")
    positive = graph.add(
        "CLIPTextEncode", title="The place alone", text="a photo in a garden, evening light", clip=clip["CLIP"]
    )
    negative = graph.add("CLIPTextEncode", title="Negative", text="animal, person, drawing", clip=clip["CLIP"])
    inpaint = graph.add(
        "InpaintModelConditioning",
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        vae=decoder["VAE"],
        pixels=scene["image"],
        mask=scene["repaint"],
        noise_mask=True,
    )
    graph.column()
    soft = graph.add("DifferentialDiffusion", model=unet["MODEL"])
    settings = {
        "seed": SEED,
        "steps": 30,
        "cfg": 6.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 0.9,
    }
    sampled = graph.add(
        "KSampler",
        model=soft["MODEL"],
        positive=inpaint["positive"],
        negative=inpaint["negative"],
        latent_image=inpaint["latent"],
        **settings,
    )
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=decoder["VAE"])
    graph.group("5  Subjects as they were", "picture")
    restored = graph.add(
        "BestiaryRestoreSubjects", decoded=decoded["IMAGE"], canvas=scene["image"], mask=scene["subjects"]
    )
    found = graph.add("BestiaryCutOut", title="Things in the picture", image=decoded["IMAGE"], largest_only=False)
    judged = graph.add(
        "BestiaryJudgeScene",
        image=restored["image"],
        canvas=scene["image"],
        mask=scene["subjects"],
        things=found["mask"],
    )
    graph.column()
    graph.add("SaveImage", images=judged["kept"], filename_prefix="scene")
    return []


def scene_qwen_edit(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model", "model")
    graph.note(
        "## A scene with Qwen-Image-Edit\nThe model sees a picture of each subject and draws both anew, in another pose and light; for "
        "exact pixels use the inpainting workflow."
    )
    unet = graph.add("UNETLoader", unet_name="qwen_image_edit_2509_fp8_e4m3fn.safetensors", weight_dtype="default")
    clip = graph.add("CLIPLoader", clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors", type="qwen_image")
    decoder = graph.add("VAELoader", vae_name="qwen_image_vae.safetensors")
    subjects, layout = _photographs(graph, 1024)
    graph.group("3  References", "look")
    pictures = graph.add("BestiarySubjectReferences", subjects=subjects, layouts=layout["layouts"], size=768)
    batch = graph.add("RebatchImages", title="As a batch", images=pictures["references"], batch_size=2)
    first = graph.add("ImageFromBatch", title="Picture 1", image=batch["IMAGE"], batch_index=0, length=1)
    second = graph.add("ImageFromBatch", title="Picture 2", image=batch["IMAGE"], batch_index=1, length=1)
    graph.group("4  Instruction", "prompt")
    shared = {"clip": clip["CLIP"], "vae": decoder["VAE"], "image1": first["IMAGE"], "image2": second["IMAGE"]}
    positive = graph.add("TextEncodeQwenImageEditPlus", title="Instruction", prompt=pictures["instruction"], **shared)
    negative = graph.add("TextEncodeQwenImageEditPlus", title="Negative", prompt="", **shared)
    latent = graph.add("EmptySD3LatentImage", title="Size", width=1024, height=1024, batch_size=1)
    graph.group("5  Picture", "picture")
    shifted = graph.add("ModelSamplingAuraFlow", model=unet["MODEL"], shift=3.0)
    settings = {"seed": SEED, "steps": 20, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
    sampled = graph.add(
        "KSampler",
        model=shifted["MODEL"],
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent_image=latent["LATENT"],
        **settings,
    )
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=decoder["VAE"])
    graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix="scene")
    return []


SCENE_EXAMPLES: dict[str, Example] = {
    "two_in_one_scene": Example(two_in_one_scene, columns=2),
    "scene_repaint": Example(scene_repaint, columns=1),
    "scene_training_set": Example(scene_training_set, columns=3),
    "scene_sdxl_inpaint": Example(scene_sdxl_inpaint, runs=False),
    "scene_qwen_edit": Example(scene_qwen_edit, runs=False),
}
