"""What all example workflows are put together from: the shipped dictionary, a sampler, a size, a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workflow_graph import Graph, Node, Socket

SPECIES = (1, 4, 9, 12)
"""Places, in each part's list of kinds, of the four species that the examples mix."""
SCENE = "in a meadow"
STEPS, GUIDANCE, SEED = 20, 4.0, 7
SAMPLER = {"steps": STEPS, "cfg": GUIDANCE, "sampler_name": "ddim", "scheduler": "normal"}


@dataclass(frozen=True)
class Shipped:
    """The dictionary that comes with the pack, as the examples name it."""

    file: str
    codebook: str
    parts: tuple[str, ...]
    """Parts of the creature, without the background."""
    kinds: dict[str, tuple[str, ...]]
    """Per part its kinds, by name where they have one, else by number."""

    def kind(self, part: str, species: int) -> str:
        """The kind of a part of species `species` of SPECIES."""
        held = self.kinds[part]
        return held[SPECIES[species % len(SPECIES)] % len(held)]

    def whole(self, species: int) -> str:
        """All parts of one species as a prompt names them."""
        return " ".join(f"<{part}:{self.kind(part, species)}>" for part in self.parts)

    def mixed(self) -> str:
        """One part of each species as a prompt names them."""
        return " ".join(f"<{part}:{self.kind(part, number)}>" for number, part in enumerate(self.parts))


@dataclass(frozen=True)
class Example:
    """A workflow, and which blocks' pictures its preview shows, row by row."""

    fill: Callable[[Graph, Shipped], list[Node]]
    runs: bool = True
    """Whether it runs with what ships; else it is only drawn."""
    columns: int = 4
    """Pictures in a row of the preview."""
    in_help: bool = False
    """Whether help pages show the preview, as `web/docs/NAME.jpg`."""
    blocks_in_help: tuple[str, ...] = ()
    """Kinds of blocks whose own picture their help page shows, as `web/docs/KIND.jpg`."""


def demo_model(graph: Graph, shipped: Shipped, hint: str) -> Node:
    """The group every example starts with; returns the loaded dictionary."""
    graph.group("1  Model and parts", "model")
    graph.note(hint)
    model = graph.add("BestiaryDemoModel")
    return graph.add(
        "BestiaryLoadDictionary", model=model["MODEL"], clip=model["CLIP"], file=shipped.file, lora_strength=1.0
    )


def chosen_parts(graph: Graph, dictionary: Socket, wishes: list[tuple[str, str]]) -> list[Node]:
    """One block per part and kind, two in a column."""
    graph.group("2  One part of each", "parts")
    chosen = []
    for number, (part, kind) in enumerate(wishes):
        if number and number % 2 == 0:
            graph.column()
        chosen.append(graph.add("BestiaryPart", title=f"{part} of {kind}", dictionary=dictionary, part=part, kind=kind))
    return chosen


def sample(graph: Graph, model: Socket, positive: Socket, negative: Socket, latent: Socket, title: str = "") -> Node:
    """A KSampler over 20 steps of the embedded model."""
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return graph.add("KSampler", title=title, seed=SEED, **SAMPLER, **inputs)


def show(graph: Graph, sampled: Node, vae: Socket, title: str = "") -> Node:
    """A decoded picture; returns the block that shows it."""
    decoded = graph.add("VAEDecode", samples=sampled["LATENT"], vae=vae)
    return graph.add("PreviewImage", title=title, images=decoded["IMAGE"])


def vae(graph: Graph) -> Socket:
    """The VAE of the embedded model in the graph."""
    return next(node for node in graph.nodes if node.kind == "BestiaryDemoModel")["VAE"]


def empty_latent(graph: Graph, count: int) -> Socket:
    """Empty latents of the embedded model's size."""
    return graph.add("EmptyLatentImage", title="Size and count", width=128, height=128, batch_size=count)["LATENT"]


def nothing(graph: Graph, clip: Socket) -> Socket:
    """The conditioning of an empty text."""
    return graph.add("CLIPTextEncode", title="Negative: nothing", text="", clip=clip)["CONDITIONING"]
