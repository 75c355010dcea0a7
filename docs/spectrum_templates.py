"""Example workflows about prompt spectra and stages; see workflow_templates.py."""

from __future__ import annotations

from template_pieces import GUIDANCE, SAMPLER, SEED, STEPS, Example, Shipped, empty_latent, nothing, sample, show, vae
from workflow_graph import Graph, Node

DEMO_SPECTRUM = {"initial_words": "creature", "vectors": 12, "steps": 400, "batch_size": 4, "vector_lr": 3.0}
DEMO_SPECTRUM |= {"preview_every": 200, "more_settings": 'method.norm = "free"'}
"""Settings of Train Spectrum that suit the miniature model."""

SPECTRA, SPECTRUM_ENDING = ("meadow_lark", "swamp_drake", "snow_moth"), ".spectrum.safetensors"
SPECTRA_TAKES = ("layout", "content", "material, style")
"""The shipped spectra (make_spectra.py), and what the mixture takes of each."""
STAGE_FIRST = "a photo of a creature , in the snow , at night , facing left"
STAGE_REST = (
    "a photo of a creature with red striped crested head , red striped round body , in a meadow , at day , facing right"
)
STAGE_LINES = f"0%-30%: {STAGE_FIRST}"
"""What the staged prompt hears first, and afterwards."""
SWEPT_TEXT = "a photo of a creature with {word} striped round body , in a meadow , at day , facing right"
SWEPT_WORD, SWEPT_OTHERWISE, SWEPT_ATTRIBUTE = "red", "blue", "colour"
"""The word whose stages are looked for, what stands there at the others, and what the result is called."""
RANGE_REST = "a photo of a creature , in the snow , at night"
"""What acts after the spectrum."""


def train_spectrum(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model and one picture", "model")
    graph.note(
        "## Learn what a picture says\nOne drawing, and ten stages of the denoising that each learn what they can say of it. Takes "
        "some minutes on a CPU; **Cancel** keeps what was learned.\n\nFor a picture of your own put Load Image in the place of "
        "Demo Pictures, and a checkpoint in the place of Demo Model; the defaults of Train Spectrum suit Stable Diffusion."
    )
    model = graph.add("BestiaryDemoModel")
    pictures = graph.add("BestiaryDemoPictures", count=1, seed=4)
    graph.group("2  Learn", "prompt")
    trained = graph.add(
        "BestiaryTrainSpectrum",
        **{name.lower(): model[name] for name in ("MODEL", "CLIP", "VAE")},
        images=pictures["images"],
        name="my_creature",
        **DEMO_SPECTRUM,
    )
    graph.group("3  Keep", "look")
    graph.add("BestiarySaveSpectrum", spectrum=trained["spectrum"], filename="my_creature")
    graph.add("LossGraphNode", loss=trained["loss map"], filename_prefix="my_creature_loss")
    graph.group("4  The same noise: all stages, and some of them alone", "picture")
    graph.note(
        "`<my_creature@content|creature>` takes the stages that carry the content and says *creature* at all others."
    )
    latent = empty_latent(graph, 2)
    lanes = {"All of it": "<my_creature>", "Its content": "<my_creature@content|creature>"}
    for number, (title, mention) in enumerate(lanes.items()):
        if number:
            graph.column()
        prompt = graph.add(
            "BestiarySpectrumPrompt",
            title=title,
            clip=model["CLIP"],
            text=f"a photo of a {mention}",
            negative_text="",
            spectrum_1=trained["spectrum"],
        )
        sampled = sample(graph, model["MODEL"], prompt["positive"], prompt["negative"], latent)
        show(graph, sampled, vae(graph), title)
    return [trained]


def mix_attributes(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model and spectra", "model")
    graph.note(
        "## Layout of one, content of another, material and style of a third\nA spectrum says what a picture holds at every stage "
        "of its denoising. Each of these three was learned from a single drawing; the first stages settle where things are, the "
        "last ones what they look like.\n\nChange what the mixture **takes** from each: attributes, stages (`4-6`) or percents "
        "(`0%-30%`)."
    )
    model = graph.add("BestiaryDemoModel")
    graph.column()
    loaded = [
        graph.add("BestiaryLoadSpectrum", title=name.replace("_", " "), file=f"{name}{SPECTRUM_ENDING}", name=name)
        for name in SPECTRA
    ]
    graph.group("2  Mix", "parts")
    taken = {}
    for number, (spectrum, takes) in enumerate(zip(loaded, SPECTRA_TAKES, strict=True), 1):
        taken |= {f"reference_{number}": spectrum["spectrum"], f"takes_{number}": takes}
    mixed = graph.add("BestiaryMixAttributes", name="mix", **taken)
    graph.add("PreviewAny", title="Which stage comes from where", source=mixed["table"])
    graph.group("3  The same noise: each alone, and the mixture", "picture")
    latent = empty_latent(graph, 1)
    shown = []
    for number, (name, spectrum) in enumerate(zip((*SPECTRA, "mix"), (*loaded, mixed), strict=True)):
        if number:
            graph.column()
        prompt = graph.add(
            "BestiarySpectrumPrompt",
            title=name.replace("_", " "),
            clip=model["CLIP"],
            text=f"a photo of a <{name}>",
            negative_text="",
            spectrum_1=spectrum["spectrum"],
        )
        sampled = sample(graph, model["MODEL"], prompt["positive"], prompt["negative"], latent)
        shown.append(show(graph, sampled, vae(graph), name.replace("_", " ")))
    return shown


def stage_text(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model", "model")
    graph.note(
        "## Other words at other stages\nNo learned file: the lines of **Stage Text** say what each stage of the denoising is "
        "told, by attribute, stage or percent. The rest of the way hears the text below them.\n\nWorks with every model."
    )
    model = graph.add("BestiaryDemoModel")
    graph.group("2  Words per stage", "prompt")
    staged = graph.add("BestiaryStageText", clip=model["CLIP"], lines=STAGE_LINES, text=STAGE_REST)
    graph.add("PreviewAny", title="What stands at every stage", source=staged["report"])
    negative = nothing(graph, model["CLIP"])
    graph.column()
    walk = {"scheduler": SAMPLER["scheduler"], "sampler": SAMPLER["sampler_name"], "steps": STEPS, "denoise": 1.0}
    graph.add("BestiaryStagePreview", model=model["MODEL"], conditioning=staged["conditioning"], **walk)
    graph.group("3  The same noise: staged, and each text alone", "picture")
    latent = empty_latent(graph, 4)
    lanes = [("Staged", staged["conditioning"])]
    plain = {"All the way the first text": STAGE_FIRST, "All the way the second text": STAGE_REST}
    for title, text in plain.items():
        encoded = graph.add("CLIPTextEncode", title=title, text=text, clip=model["CLIP"])
        lanes.append((title, encoded["CONDITIONING"]))
    shown = []
    for title, positive in lanes:
        graph.column()
        sampled = sample(graph, model["MODEL"], positive, negative, latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return [shown[1], shown[0], shown[2]]


def find_attribute_stages(graph: Graph, shipped: Shipped) -> list[Node]:
    graph.group("1  Model", "model")
    graph.note(
        "## Which stages carry a word?\nThe same picture is drawn once for every stage: **word** at that stage alone, **otherwise** at "
        "all others. The stages that change the picture most become a line of presets, which goes on to **Stage Text**: there the "
        f"attribute `{SWEPT_ATTRIBUTE}` now means these stages.\n\nWorks with every model; take more pictures in **Size and count** for "
        "surer figures."
    )
    model = graph.add("BestiaryDemoModel")
    graph.group("2  Sweep the word over the stages", "look")
    walk = {"steps": STEPS, "cfg": GUIDANCE, "sampler": SAMPLER["sampler_name"], "scheduler": SAMPLER["scheduler"]}
    swept = graph.add(
        "BestiaryFindAttributeStages",
        model=model["MODEL"],
        clip=model["CLIP"],
        vae=model["VAE"],
        latent=empty_latent(graph, 2),
        text=SWEPT_TEXT,
        word=SWEPT_WORD,
        otherwise=SWEPT_OTHERWISE,
        negative_text="",
        seed=SEED,
        attribute=SWEPT_ATTRIBUTE,
        **walk,
    )
    graph.column()
    graph.add("PreviewAny", title="How much each stage changes", source=swept["table"])
    graph.add("PreviewAny", title="A line of presets", source=swept["presets"])
    graph.group("3  Use what was found", "prompt")
    plain = SWEPT_TEXT.format(word=SWEPT_OTHERWISE)
    lines = f"{SWEPT_ATTRIBUTE}: {SWEPT_TEXT.format(word=SWEPT_WORD)}"
    staged = graph.add("BestiaryStageText", clip=model["CLIP"], lines=lines, text=plain, presets=swept["presets"])
    negative = nothing(graph, model["CLIP"])
    graph.column()
    sampled = sample(graph, model["MODEL"], staged["conditioning"], negative, empty_latent(graph, 4))
    show(graph, sampled, vae(graph), f"{SWEPT_WORD} at these stages alone")
    return [swept]


def spectrum_for_a_while(graph: Graph, shipped: Shipped) -> list[Node]:
    first, second = SPECTRA[0], SPECTRA[2]
    graph.group("1  Model and spectra", "model")
    graph.note(
        "## A spectrum for a part of the way\n**Intersect Range** keeps the stages of a conditioning between two shares of the way; "
        "ComfyUI's own range node would overwrite them. What acts elsewhere is linked as **outside**.\n\n**Stage Preview** shows which "
        "step falls into which stage, before anything is sampled."
    )
    model = graph.add("BestiaryDemoModel")
    loaded = [
        graph.add("BestiaryLoadSpectrum", title=name.replace("_", " "), file=f"{name}{SPECTRUM_ENDING}", name=name)
        for name in (first, second)
    ]
    graph.group("2  Until 45 %: a prompt by stages", "prompt")
    prompt = graph.add(
        "BestiarySpectrumPrompt",
        clip=model["CLIP"],
        text=f"a photo of a <{first}>",
        negative_text="",
        spectrum_1=loaded[0]["spectrum"],
    )
    rest = graph.add("CLIPTextEncode", title="From 45 % on", text=RANGE_REST, clip=model["CLIP"])
    cut = graph.add(
        "BestiaryIntersectRange",
        conditioning=prompt["positive"],
        start=0.0,
        end=0.45,
        outside=rest["CONDITIONING"],
        model=model["MODEL"],
    )
    graph.column()
    walk = {"scheduler": SAMPLER["scheduler"], "sampler": SAMPLER["sampler_name"], "steps": STEPS, "denoise": 1.0}
    seen = graph.add("BestiaryStagePreview", model=model["MODEL"], conditioning=cut["conditioning"], **walk)
    graph.add("PreviewAny", title="Steps of every stage", source=seen["table"])
    graph.group("3  Keep a mixture (Ctrl+M)", "parts")
    links = {"reference_1": loaded[0]["spectrum"], "reference_2": loaded[1]["spectrum"]}
    takes = {"takes_1": "1-4", "takes_2": "5-10"}
    mixed = graph.add("BestiaryMixAttributes", name="mix", **links, **takes)
    graph.add("PreviewAny", title="Which spectrum has which stages", source=mixed["table"])
    graph.add(
        "BestiarySaveSpectrum",
        title="Save Spectrum (Ctrl+M)",
        muted=True,
        spectrum=mixed["spectrum"],
        filename="lark_then_moth",
    )
    graph.group("4  The same noise: all the way, until 45 %, the rest alone", "picture")
    latent = empty_latent(graph, 1)
    lanes = {
        f"{first.replace('_', ' ')} all the way": prompt["positive"],
        "until 45 %, then the words": cut["conditioning"],
        "the words all the way": rest["CONDITIONING"],
    }
    shown = []
    for number, (title, positive) in enumerate(lanes.items()):
        if number:
            graph.column()
        sampled = sample(graph, model["MODEL"], positive, prompt["negative"], latent)
        shown.append(show(graph, sampled, vae(graph), title))
    return shown


SPECTRUM_EXAMPLES: dict[str, Example] = {
    "train_spectrum": Example(train_spectrum, columns=1),
    "mix_attributes": Example(mix_attributes, in_help=True),
    "stage_text": Example(stage_text, in_help=True, blocks_in_help=("BestiaryStagePreview",)),
    "find_attribute_stages": Example(find_attribute_stages, columns=1, blocks_in_help=("BestiaryFindAttributeStages",)),
    "spectrum_for_a_while": Example(spectrum_for_a_while, columns=3, in_help=True),
}
"""Examples by the name of their files."""
