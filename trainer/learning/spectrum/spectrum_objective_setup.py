"""From settings to what the loop needs to learn a spectrum, over any denoiser: start, objective, batches, parameter groups.

Shared by the command line and the graph, so it imports no library that holds models. Letters: N pictures, V vectors of a
stage, D width of a vector over all text encoders, (H, W) cached latent grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....concepts.denoiser.denoiser import Denoiser
from ....concepts.denoiser.process import FlowProcess
from ....concepts.errors import BestiaryError
from ....concepts.name_search import shown_name
from ....concepts.spectrum.prompt_spectrum import PromptSpectrum
from ....concepts.spectrum.spectrum_file import load_spectrum, save_spectrum
from ....concepts.spectrum.stage_bounds import StageBounds
from ....concepts.spectrum.stage_table import ProspectNetwork, StageTable
from ....concepts.spectrum.staged_conditioning import encode_staged
from ..denoiser.prompt_encoding import use_insertion
from ..parts.token_start import COMMON_WORDS, word_spread
from ..pictures.latent_cache import LatentCache
from ..run.fit import ParameterGroup
from ..run.training import Origin, Sample, Training
from .spectrum_images import SpectrumImages, SpectrumPlan
from .spectrum_objective import SpectrumObjective, curve_labels, pieces_of
from .spectrum_settings import TrainSpectrumSettings
from .spectrum_sheet import sheet_prompts, sheet_seeds, shown_stages, spectrum_sheet


@dataclass(frozen=True)
class SpectrumTraining(Training[PromptSpectrum]):
    """The vectors of all stages, which become a spectrum."""

    settings: TrainSpectrumSettings
    objective: SpectrumObjective
    batches: SpectrumImages
    bounds: StageBounds
    start: Tensor
    """`(V, D)`: the words the vectors start from."""

    def curve_labels(self) -> dict[str, tuple[str, ...]]:
        """Curves by stage."""
        return curve_labels(self.bounds.stages)

    def learned(self, steps: int, origin: Origin) -> PromptSpectrum:
        """The spectrum, with a note of how it was made."""
        return build_spectrum(self, steps, made_by=origin.made_by, base=origin.base)

    def size_of(self, concept: PromptSpectrum) -> str:
        """How many stages it has."""
        return f"{concept.stages} stages"

    def save(self, concept: PromptSpectrum, path: Path) -> None:
        """Write the spectrum and read it back."""
        save_spectrum(concept, path)
        load_spectrum(path)

    @torch.no_grad()
    def sheets(self, origin: Origin, sample: Sample) -> tuple[Image.Image, ...]:
        """The first few pictures beside those made from all stages, then pictures in which one stage alone has its vectors."""
        spectrum = build_spectrum(self, 0)
        names = self.batches.names[: self.settings.run.preview_count]
        stages = shown_stages(spectrum)
        prompts = sheet_prompts(spectrum, self.settings.captions.templates[0], len(names), stages)
        made = sample(encode_staged(self.denoiser, prompts), sheet_seeds(len(names), stages))
        return (spectrum_sheet([origin.square(row) for row in range(len(names))], names, made, stages),)


def set_up_spectrum(
    settings: TrainSpectrumSettings,
    denoiser: Denoiser,
    names: Sequence[str],
    cache: LatentCache,
    masks: np.ndarray | None = None,
) -> SpectrumTraining:
    """A training from its first step on; draws from torch's generator.

    Args:
        names: what messages call the N pictures.
        cache: their moments, in the same order.
        masks: `(N, H, W)` 0..1, what is learned from; None is everything.

    Raises:
        BestiaryError: the words to start from give no token, or one that the tokenizer does not know.
    """
    use_insertion(denoiser.text, settings.method.insertion)
    bounds = settings.method.bounds(denoiser.process.num_timesteps)
    words = word_start(denoiser, settings.method.initial_words, settings.method.vectors)
    start = denoiser.backbone.join_vectors(words)  # (V, D)
    torch.manual_seed(settings.run.seed)  # the network draws from torch's own generator
    objective = build_objective(settings, denoiser, bounds, start)
    plan = SpectrumPlan(
        batch_size=settings.optimizer.batch_size,
        accumulation=settings.optimizer.accumulation,
        latent_size=settings.images.training_size(denoiser.backbone) // denoiser.backbone.latent_factor,
        bounds=bounds,
        process=denoiser.process,
        prompts=tuple(
            denoiser.text.tokenize(pieces_of(text, settings.method.vectors), chunks=1)
            for text in settings.captions.templates
        ),
        seed=settings.run.seed,
        latent_factor=denoiser.backbone.latent_factor,
    )
    batches = SpectrumImages(names, cache, plan, masks, denoiser.device)
    groups = parameter_groups(settings, objective, denoiser)
    return SpectrumTraining(settings, denoiser, objective, batches, groups, bounds, start)


def word_start(denoiser: Denoiser, words: str, vectors: int) -> dict[str, Tensor]:
    """What `vectors` vectors start from, encoder -> `(V, D)` float32 on the CPU: the mean of the words' embeddings, whole words only.

    The mean is given the words' usual norm, because a mean of many words is far shorter than any word.

    Raises:
        BestiaryError: the words give no token, or one that the tokenizer does not know.
    """
    if words and (unknown := denoiser.text.unknown_words(words)):
        listed = ", ".join(map(shown_name, unknown))
        raise BestiaryError(
            f"initial words: {denoiser.backbone.name} does not know {listed}; name what the pictures show in other plain "
            "words, or leave them empty to start from common ones"
        )
    start = {}
    for name, rows in denoiser.text.word_vectors(words or COMMON_WORDS).items():
        own = rows.float().cpu()  # (n, D)
        mean = own.mean(0, keepdim=True)
        # each text encoder has norms of its own; a single word needs no scaling
        if len(own) > 1:
            mean = mean * own.norm(dim=-1).mean() / mean.norm().clamp_min(1e-12)
        start[name] = mean.repeat(vectors, 1)  # (V, D)
    return start


def build_objective(
    settings: TrainSpectrumSettings, denoiser: Denoiser, bounds: StageBounds, start: Tensor
) -> SpectrumObjective:
    """Fresh vectors around `start` `(V, D)`, or ProSpect's fresh network, in their objective; draws from torch's generator."""
    method = settings.method
    if settings.base.checkpointing:
        denoiser.network.set_gradient_checkpointing(True)
    if method.parameterisation == "reference":
        table: StageTable | ProspectNetwork = ProspectNetwork(start[:1], bounds.stages)
    else:
        table = StageTable(start, bounds.stages, norm=method.norm)
        generator = torch.Generator().manual_seed(settings.run.seed)
        table.perturb(method.initial_noise * word_spread(denoiser), generator)
    return SpectrumObjective(
        denoiser,
        table.to(denoiser.device).train(),
        stages=bounds.stages,
        min_snr=method.min_snr,
    )


def parameter_groups(
    settings: TrainSpectrumSettings, objective: SpectrumObjective, denoiser: Denoiser
) -> tuple[ParameterGroup, ...]:
    """The vectors, or the network's weights, which alone decay, with their learning rate."""
    optimizer, parameters = settings.optimizer, dict(objective.table.named_parameters())
    if settings.method.parameterisation == "reference":
        return (ParameterGroup("network", parameters, optimizer.network_lr, optimizer.weight_decay),)
    # embeddings differ tenfold in size between backbones
    return (ParameterGroup("vectors", parameters, optimizer.vector_lr * word_spread(denoiser)),)


@torch.no_grad()
def build_spectrum(
    training: SpectrumTraining, steps: int, *, made_by: str = "bestiary train spectrum", base: str | None = None
) -> PromptSpectrum:
    """The spectrum `(S, V, D)` of a training's present weights, after so many steps.

    Args:
        made_by: the program, for the file's provenance.
        base: the model it was learned on; None takes the settings' own.

    Raises:
        BestiaryError: the weights are not finite.
    """
    settings, batches, process = training.settings, training.batches, training.denoiser.process
    # lists are cut: the header of a file must stay small
    provenance = {
        "made_by": made_by,
        "base": base or settings.base.path,
        "parameterisation": settings.method.parameterisation,
        "norm": settings.method.norm,
        "steps": steps,
        "pictures": list(batches.names[:50]),
        "image_size": training.image_size,
        "batch": batches.plan.step_size,
        "templates": list(settings.captions.templates[:20]),
        "learning_rate": training.groups[0].learning_rate,
        "seed": settings.run.seed,
        **({"insertion": settings.method.insertion} if settings.method.insertion != "input" else {}),
    }
    return PromptSpectrum.from_matrix(
        training.denoiser.backbone,
        training.objective.table.matrix(),
        training.bounds,
        neutral=training.start,
        initial_words=settings.method.initial_words,
        provenance=provenance,
        shift=process.shift if isinstance(process, FlowProcess) else None,
    )
