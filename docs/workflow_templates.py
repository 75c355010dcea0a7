"""What the example workflows hold: edit here, then run `make_workflows.py`.

Every function fills a `Graph`; names of parts and kinds come from the shipped dictionary through `Shipped`.
"""

from __future__ import annotations

from dreambooth_templates import DREAMBOOTH_EXAMPLES
from scene_templates import SCENE_EXAMPLES
from spectrum_templates import SPECTRUM_EXAMPLES
from template_pieces import (
    SCENE,
    SEED,
    Example,
    Shipped,
    chosen_parts,
    demo_model,
    empty_latent,
    nothing,
    sample,
    show,
    vae,
)
from workflow_graph import Graph, Node

DEMO_TRAINING = {"steps": 150, "batch_size": 8, "accumulation": 1, "token_lr": 0.02, "lora_lr": 0.0015, "rank": 8}
DEMO_TRAINING |= {
    "attention_weight": 0.2,
    "more_settings": 'method.projector_depth = 0\nmethod.positional = false\nmethod.part_words = "head body wing tail legs"\n'
    'method.initial_spread = 0.05\ncaptions.templates = 1.0\ncaptions.noun = "creature"',
}
"""Settings of Train Parts that suit the miniature model: those of the command line's recipe `demo`, fewer steps."""

_FOR_DRAWINGS = "descriptor"
"""Drawn creatures are told apart by colour and texture; photographs by imagenet, the block's own choice."""


def mix_four_species(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Mix parts of four species\nA head of one, wings of another. Press **Run**: nothing has to be downloaded, and it takes "
        "seconds on a CPU.\n\nThe miniature model is small, so expect colours and patterns rather than fine shapes.",
    )
    wishes = [(part, shipped.kind(part, number)) for number, part in enumerate(shipped.parts)]
    chosen = chosen_parts(graph, loaded["dictionary"], wishes)
    graph.group("3  The prompt", "prompt")
    graph.note(
        "`{parts}` is where the parts go. You may also type them:\n\n"
        f"`a photo of a <{shipped.parts[0]}:{shipped.kind(shipped.parts[0], 0)}> creature`"
    )
    slots = {f"part_{number}": part["part"] for number, part in enumerate(chosen, 1)}
    together = graph.add("BestiaryCombineParts", **slots)
    text = f"a photo of a {{parts}} creature {SCENE}"
    positive = graph.add("BestiaryPartPrompt", clip=loaded["CLIP"], text=text, parts=together["part"])
    negative = nothing(graph, loaded["CLIP"])
    graph.group("4  Pictures", "picture")
    latent = empty_latent(graph, 4)
    sampled = sample(graph, loaded["MODEL"], positive["conditioning"], negative, latent)
    graph.column()
    return [show(graph, sampled, vae(graph), "A creature that nobody drew")]


def blend_two_kinds(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Blend two kinds\nEvery part half of one kind, half of another. Move **amount** from 0 to 1 and run again.",
    )
    amount = graph.add("PrimitiveFloat", title="amount", value=0.5)
    graph.group("2  Between two kinds", "parts")
    blends = [
        graph.add(
            "BestiaryBlendKinds",
            title=f"{part}: between two",
            dictionary=loaded["dictionary"],
            part=part,
            first_kind=shipped.kind(part, 0),
            second_kind=shipped.kind(part, 1),
            amount=amount["FLOAT"],
        )
        for part in shipped.parts
    ]
    graph.group("3  For all three", "prompt")
    slots = {f"part_{number}": part["part"] for number, part in enumerate(blends, 1)}
    together = graph.add("BestiaryCombineParts", **slots)
    negative = nothing(graph, loaded["CLIP"])
    latent = empty_latent(graph, 3)
    graph.group("4  The same noise three times", "picture")
    lanes = [("First kind", shipped.whole(0)), ("Blend", "{parts}"), ("Second kind", shipped.whole(1))]
    shown = []
    for number, (title, parts) in enumerate(lanes):
        if number:
            graph.column()
        linked = {"parts": together["part"]} if parts == "{parts}" else {}
        text = f"a photo of a {parts} creature {SCENE}"
        prompt = graph.add("BestiaryPartPrompt", title=title, clip=loaded["CLIP"], text=text, **linked)
        sampled = sample(graph, loaded["MODEL"], prompt["conditioning"], negative, latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return shown


def random_creatures(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Random creatures\nNew kinds of every part, drawn from what the learned ones have in common: creatures that no "
        "picture showed.\n\nAnother **seed** is another creature; a larger **spread** is a stranger one. To keep one, "
        "switch Save Dictionary on with Ctrl+M.",
    )
    graph.group("2  Two new creatures", "parts")
    drawn = [
        graph.add("BestiaryRandomKind", title=f"Creature {seed}", dictionary=loaded["dictionary"], seed=seed)
        for seed in (1, 2)
    ]
    graph.add(
        "BestiarySaveDictionary",
        title="Save creature 1 (Ctrl+M)",
        muted=True,
        dictionary=drawn[0]["dictionary"],
        filename="with_a_new_creature",
    )
    graph.group("3  For both", "prompt")
    negative = nothing(graph, loaded["CLIP"])
    latent = empty_latent(graph, 4)
    graph.group("4  Four pictures of each", "picture")
    shown = []
    for number, creature in enumerate(drawn):
        if number:
            graph.column()
        text = f"a photo of a {{parts}} creature {SCENE}"
        title, parts = creature.title, creature["part"]
        prompt = graph.add("BestiaryPartPrompt", title=title, clip=loaded["CLIP"], text=text, parts=parts)
        sampled = sample(graph, loaded["MODEL"], prompt["conditioning"], negative, latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return shown


def part_regions(graph: Graph, shipped: Shipped) -> list[Node]:
    part = shipped.parts[0]
    loaded = demo_model(
        graph,
        shipped,
        f"## Part regions\nKeeps the part **{part}** inside a mask. The masks here are halves of the picture; use Load Image (as "
        "Mask) or the mask editor for your own. Any size will do.",
    )
    graph.group("2  Where the part may be", "parts")
    black = graph.add("SolidMask", title="Black", value=0.0, width=128, height=128)
    half = graph.add("SolidMask", title="White half", value=1.0, width=64, height=128)
    masks = [
        graph.add(
            "MaskComposite", title=title, destination=black["MASK"], source=half["MASK"], x=x, y=0, operation="add"
        )
        for title, x in (("Left half", 0), ("Right half", 64))
    ]
    graph.column()
    regions = [
        graph.add(
            "BestiaryPartRegions",
            title=f"{part}: {mask.title.lower()}",
            model=loaded["MODEL"],
            mask=mask["MASK"],
            part=part,
            feather=8,
        )
        for mask in masks
    ]
    graph.group("3  The prompt", "prompt")
    text = f"a photo of a {shipped.whole(2)} creature {SCENE}"
    positive = graph.add("BestiaryPartPrompt", clip=loaded["CLIP"], text=text)
    negative = nothing(graph, loaded["CLIP"])
    latent = empty_latent(graph, 4)
    graph.group("4  The same noise: free, left, right", "picture")
    shown = []
    models = [
        ("Anywhere", loaded["MODEL"]),
        *((mask.title, node["model"]) for mask, node in zip(masks, regions, strict=True)),
    ]
    for number, (title, model) in enumerate(models):
        if number:
            graph.column()
        sampled = sample(graph, model, positive["conditioning"], negative, latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return shown


def attention_heat_maps(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Where each part looked\nThe picture stays the same to the last bit: attention is only recorded beside the sampler.",
    )
    graph.group("2  Record", "parts")
    recorded = graph.add("BestiaryAttentionMaps", model=loaded["MODEL"])
    text = f"a photo of a {shipped.whole(0)} creature {SCENE}"
    positive = graph.add("BestiaryPartPrompt", clip=loaded["CLIP"], text=text)
    negative = nothing(graph, loaded["CLIP"])
    graph.group("3  Sample", "picture")
    sampled = sample(graph, recorded["model"], positive["conditioning"], negative, empty_latent(graph, 1))
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=vae(graph))
    graph.group("4  Look", "look")
    shown = graph.add(
        "BestiaryShowAttention", record=recorded["attention"], latent=sampled["LATENT"], image=decoded["IMAGE"]
    )
    graph.column()
    graph.add("PreviewAny", title="How sharply each part looked", source=shown["text"])
    graph.note(
        "**first_step** and **last_step** choose when: early steps settle where things are, late ones what they look like."
    )
    return [shown]


def discover_and_segment(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Pictures", "model")
    graph.note(
        "## Discover parts, then find them again\nParts and their kinds, without labels.\n\nFor a folder of your own, put "
        "**Load Image Dataset from Folder** in the place of Demo Pictures, and choose **imagenet** or **dinov2** for "
        "photographs. To keep the codebook, switch Save Codebook on with Ctrl+M."
    )
    known = graph.add("BestiaryDemoPictures", title="Pictures to learn from", count=42, seed=1)
    new = graph.add("BestiaryDemoPictures", title="New pictures", count=4, seed=2)
    graph.group("2  Discover", "parts")
    found = graph.add(
        "BestiaryDiscoverParts", images=known["images"], feature_source=_FOR_DRAWINGS, num_parts=5, num_kinds=14
    )
    graph.add("PreviewAny", title="Report", source=found["report"])
    graph.add(
        "BestiarySaveCodebook",
        title="Save Codebook (Ctrl+M)",
        muted=True,
        codebook=found["codebook"],
        filename="my_creatures",
    )
    graph.column()
    overlays = graph.add("PreviewImage", title="Parts that were found", images=found["overlays"])
    graph.group("3  Segment", "look")
    seen = graph.add("BestiarySegmentParts", images=new["images"], codebook=found["codebook"])
    again = graph.add("PreviewImage", title="The same parts in new pictures", images=seen["overlay"])
    graph.column()
    mask = graph.add("BestiaryPartMask", part_maps=seen["part maps"], parts="foreground")
    masks = graph.add("MaskPreview", title="Masks for inpainting", mask=mask["mask"])
    return [again, masks, overlays]


def evaluate_parts(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## Did it draw what was asked for?\nThe codebook looks for the parts in the pictures and names their kinds: **EMR** is "
        "the share of parts that came out as asked, **CoSim** how near the others came.",
    )
    graph.group("2  Draw", "prompt")
    text = f"a photo of a {shipped.mixed()} creature {SCENE}"
    positive = graph.add("BestiaryPartPrompt", clip=loaded["CLIP"], text=text)
    negative = nothing(graph, loaded["CLIP"])
    graph.column()
    sampled = sample(graph, loaded["MODEL"], positive["conditioning"], negative, empty_latent(graph, 4))
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=vae(graph))
    drawn = graph.add("PreviewImage", title="What was drawn", images=decoded["IMAGE"])
    graph.group("3  Judge", "look")
    model = next(node for node in graph.nodes if node.kind == "BestiaryDemoModel")
    plain = {name.lower(): model[name] for name in ("MODEL", "CLIP", "VAE")}
    features = graph.add("BestiaryDiffusionFeatures", title="The plain model's eyes", **plain)
    codebook = graph.add("BestiaryLoadCodebook", codebook_name=shipped.codebook)
    judged = graph.add(
        "BestiaryEvaluateParts",
        images=decoded["IMAGE"],
        codebook=codebook["codebook"],
        dictionary=loaded["dictionary"],
        prompt=positive["text"],
        features=features["features"],
    )
    graph.column()
    overlay = graph.add("PreviewImage", title="What is seen, and what was asked", images=judged["overlay"])
    graph.add("PreviewAny", title="Part by part", source=judged["report"])
    return [drawn, overlay]


def train_parts(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model and pictures", "model")
    graph.note(
        "## Learn a dictionary\nFrom pictures to parts, and from parts to tokens that prompts can name. Takes some minutes on a "
        "CPU; **Cancel** keeps what was learned.\n\nFor real pictures see the help page of Train Parts."
    )
    model = graph.add("BestiaryDemoModel")
    pictures = graph.add("BestiaryDemoPictures", count=56, seed=1)
    graph.group("2  Discover", "parts")
    found = graph.add(
        "BestiaryDiscoverParts", images=pictures["images"], feature_source=_FOR_DRAWINGS, num_parts=5, num_kinds=14
    )
    maps = {"codebook": found["codebook"], "part_maps": found["part maps"]}
    prepared = graph.add("BestiaryTrainingImages", images=pictures["images"], vae=model["VAE"], **maps)
    graph.group("3  Learn", "prompt")
    trained = graph.add(
        "BestiaryTrainParts",
        **{name.lower(): model[name] for name in ("MODEL", "CLIP", "VAE")},
        training_set=prepared["training set"],
        name="my_creatures",
        **DEMO_TRAINING,
    )
    graph.group("4  Keep and look", "look")
    graph.add("BestiarySaveDictionary", dictionary=trained["dictionary"], filename="my_creatures")
    graph.add("LossGraphNode", loss=trained["loss map"], filename_prefix="my_creatures_loss")
    graph.column()
    graph.add("BestiaryDictionaryInfo", dictionary=trained["dictionary"])
    return [trained]


def look_into_a_dictionary(graph: Graph, shipped: Shipped) -> list[Node]:
    loaded = demo_model(
        graph,
        shipped,
        "## What a dictionary holds\nParts, kinds and their pictures, so that you know what a prompt may ask for.",
    )
    graph.group("2  Look", "look")
    return [graph.add("BestiaryDictionaryInfo", dictionary=loaded["dictionary"])]


def sd15_mix_parts(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model and parts", "model")
    graph.note(
        "## Stable Diffusion 1.5\nChoose your checkpoint and a dictionary that was trained for it (`bestiary train parts`, or "
        "`bestiary import partcraft`), then name its parts and kinds on the right."
    )
    model = graph.add("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    loaded = graph.add("BestiaryLoadDictionary", model=model["MODEL"], clip=model["CLIP"], file="birds.safetensors")
    wishes = [("head", "cardinal"), ("wing", "blue jay"), ("body", "goldfinch"), ("tail", "magpie")]
    chosen = chosen_parts(graph, loaded["dictionary"], wishes)
    graph.group("3  The prompt", "prompt")
    slots = {f"part_{number}": part["part"] for number, part in enumerate(chosen, 1)}
    together = graph.add("BestiaryCombineParts", **slots)
    text = "a photo of a {parts} bird, sitting on a branch, soft light"
    positive = graph.add("BestiaryPartPrompt", clip=loaded["CLIP"], text=text, parts=together["part"])
    negative = graph.add("CLIPTextEncode", title="Negative", text="blurry, drawing, text", clip=loaded["CLIP"])
    graph.group("4  Picture", "picture")
    latent = graph.add("EmptyLatentImage", width=512, height=512, batch_size=1)["LATENT"]
    settings = {"seed": SEED, "steps": 30, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    conditions = {"positive": positive["conditioning"], "negative": negative["CONDITIONING"]}
    sampled = graph.add("KSampler", model=loaded["MODEL"], **conditions, latent_image=latent, **settings)
    graph.column()
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=model["VAE"])
    graph.add("SaveImage", images=decoded["IMAGE"], filename_prefix="bestiary")
    return []


def deepfloyd_if_cascade(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Stage I: 64 x 64", "model")
    graph.note(
        "## DeepFloyd IF\nPut `IF-I-M-v1.0` and `IF-II-M-v1.0` into `models/diffusers`, the Stable Diffusion x4 upscaler into "
        "`models/checkpoints`, and run `python -m pip install diffusers`. Weights for non-commercial research only."
    )
    first = graph.add("BestiaryLoadIF", folder="IF-I-M-v1.0")
    text = "a photo of a cardinal on a snowy branch, morning light"
    positive = graph.add("CLIPTextEncode", title="Prompt", text=text, clip=first["CLIP"])
    negative = graph.add("CLIPTextEncode", title="Negative", text="", clip=first["CLIP"])
    graph.column()
    empty = graph.add("EmptyChromaRadianceLatentImage", title="Empty pixels", width=64, height=64, batch_size=1)
    settings = {"seed": SEED, "steps": 50, "sampler_name": "euler", "scheduler": "normal"}
    conditions = {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}
    small = graph.add("KSampler", model=first["MODEL"], **conditions, latent_image=empty["LATENT"], cfg=7.0, **settings)
    picture = graph.add("VAEDecode", samples=small["LATENT"], vae=first["VAE"])
    graph.group("2  Stage II: 256 x 256", "picture")
    second = graph.add("BestiaryLoadIF", folder="IF-II-M-v1.0", text_encoder="none")
    upscale = graph.add("BestiaryIFUpscale", **conditions, image=picture["IMAGE"])
    graph.column()
    conditions = {"positive": upscale["positive"], "negative": upscale["negative"]}
    larger = graph.add(
        "KSampler", model=second["MODEL"], **conditions, latent_image=upscale["LATENT"], cfg=4.0, **settings
    )
    picture = graph.add("VAEDecode", samples=larger["LATENT"], vae=second["VAE"])
    graph.add("SaveImage", images=picture["IMAGE"], filename_prefix="deepfloyd_if_256")
    graph.group("3  Stable Diffusion x4: 1024 x 1024", "look")
    third = graph.add("CheckpointLoaderSimple", ckpt_name="x4-upscaler-ema.safetensors")
    positive = graph.add("CLIPTextEncode", title="Prompt", text=text, clip=third["CLIP"])
    negative = graph.add("CLIPTextEncode", title="Negative", text="", clip=third["CLIP"])
    graph.column()
    upscale = graph.add(
        "SD_4XUpscale_Conditioning",
        title="x4 upscale",
        images=picture["IMAGE"],
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        scale_ratio=4.0,
        noise_augmentation=0.1,
    )
    conditions = {"positive": upscale["positive"], "negative": upscale["negative"]}
    large = graph.add(
        "KSampler", model=third["MODEL"], **conditions, latent_image=upscale["latent"], cfg=7.0, **settings
    )
    picture = graph.add("VAEDecode", samples=large["LATENT"], vae=third["VAE"])
    graph.add("SaveImage", images=picture["IMAGE"], filename_prefix="deepfloyd_if_1024")
    return []


EXAMPLES: dict[str, Example] = {
    "mix_four_species": Example(mix_four_species),
    "blend_two_kinds": Example(blend_two_kinds, columns=3),
    "random_creatures": Example(random_creatures),
    "part_regions": Example(part_regions),
    "attention_heat_maps": Example(attention_heat_maps, columns=1),
    "discover_and_segment": Example(discover_and_segment),
    "evaluate_parts": Example(evaluate_parts),
    "train_parts": Example(train_parts, columns=1),
    "look_into_a_dictionary": Example(look_into_a_dictionary, columns=1),
    "sd15_mix_parts": Example(sd15_mix_parts, runs=False),
    "deepfloyd_if_cascade": Example(deepfloyd_if_cascade, runs=False),
    **SPECTRUM_EXAMPLES,
    **SCENE_EXAMPLES,
    **DREAMBOOTH_EXAMPLES,
}
"""Every example by the name of its file."""
