"""What a preview of a spectrum shows, whatever samples it: the whole concept, and what each stage alone has learned.

Letters: n real pictures, m stages shown alone, V vectors of a stage, D width.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ....concepts.spectrum.attribute_presets import stages_text
from ....concepts.spectrum.prompt_spectrum import PromptSpectrum
from ....concepts.spectrum.stage_algebra import assemble
from ....concepts.spectrum.staged_prompt import PromptSources, StagedPrompt, resolve_staged_prompt
from ..pictures.contact_sheet import PREVIEW_TILE, contact_sheet, to_image

MOST_STAGES_SHOWN = 20


def shown_stages(spectrum: PromptSpectrum) -> list[int]:
    """Stages, counted from 0, that get a picture of their own; a spectrum of one stage has none."""
    return list(range(min(spectrum.stages, MOST_STAGES_SHOWN))) if spectrum.stages > 1 else []


def sheet_prompts(spectrum: PromptSpectrum, template: str, whole: int, stages: Sequence[int]) -> list[StagedPrompt]:
    """`whole` prompts with all stages, then one for each of `stages` alone; `{}` of the template is where the concept goes."""
    text = template.replace("{}", "<concept>")
    chosen = [spectrum] * whole + [only_stage(spectrum, stage) for stage in stages]
    return [resolve_staged_prompt(text, PromptSources({"concept": one})) for one in chosen]


def sheet_seeds(whole: int, stages: Sequence[int]) -> list[int]:
    """Seeds of the same pictures: different ones for the whole, one for all single stages."""
    return [*range(whole), *[0] * len(stages)]


def spectrum_sheet(
    real: Sequence[Image.Image], names: Sequence[str], made: Tensor, stages: Sequence[int]
) -> Image.Image:
    """Real pictures with their names, and those of `sheet_prompts`, `(n+m, 3, H, W)` in 0..1, on one sheet."""
    captions = [*names, *("all stages" for _ in names), *(f"stage {stages_text((s,))} alone" for s in stages)]
    return contact_sheet([*real, *map(to_image, made)], captions, columns=max(2 * len(names), 5), tile=PREVIEW_TILE)


def only_stage(spectrum: PromptSpectrum, stage: int) -> PromptSpectrum:
    """The concept at one stage, its neutral words `(V, D)` at all others; the whole concept where they are unknown."""
    if not spectrum.neutral:
        return spectrum
    # one stage of neutral words, from which every other stage takes its content
    flat = {name: spectrum.neutral[name].unsqueeze(0) for name in spectrum.embeddings}  # (1, V, W)
    neutral = PromptSpectrum(spectrum.backbone, flat, spectrum.bounds.equal(1, spectrum.bounds.num_timesteps))
    picks = [(spectrum, s) if s == stage else (neutral, 0) for s in range(spectrum.stages)]
    return assemble(picks, spectrum.bounds, like=spectrum)
