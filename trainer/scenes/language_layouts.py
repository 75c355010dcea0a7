"""Layouts by a language model: asked, checked, repaired, asked again; None where no answer can be used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...concepts.errors import BestiaryError
from ...scenes.layout_request import LayoutRequest
from ...scenes.layout_text import layout_from_text, layout_request
from ...scenes.scene_layout import SceneLayout
from ...scenes.subject import Subject
from .chat_endpoint import ChatEndpoint

MADE_BY = "llm"


@dataclass(frozen=True)
class LanguageLayouts:
    """A language model that lays subjects out."""

    endpoint: ChatEndpoint
    retries: int = 2
    """Further questions after an answer that cannot be used."""
    temperature: float = 0.7

    def find(
        self,
        subjects: Sequence[Subject],
        request: LayoutRequest,
        place: str,
        measure: Callable[[SceneLayout], float],
    ) -> tuple[SceneLayout | None, tuple[str, ...]]:
        """A layout that keeps the limits, and notes on it; None where the solver must take over.

        Args:
            place: phrase such as `in a garden`; empty leaves it open.
            measure: largest share of a subject's mask that others hide once the picture is put together.
        """
        question = layout_request(subjects, place, request.width, request.height)
        faults: list[str] = []
        for number in range(self.retries + 1):
            try:
                answer = self.endpoint.ask(
                    [{"role": "user", "content": question}],
                    schema=answer_schema(subjects),
                    seed=(request.seed + number) % 2**31,
                    temperature=self.temperature,
                )
                read = layout_from_text(answer, subjects, request)
                layout = replace(read.layout, made_by=MADE_BY, seed=request.seed)
                hidden = measure(layout)
            except BestiaryError as fault:
                faults.append(str(fault))
                continue
            if hidden <= request.max_occlusion:
                return layout, read.notes
            faults.append(f"a subject is hidden by {hidden:.3f}, at most {request.max_occlusion:g} is allowed")
        return None, (f"no layout of the language model can be used ({faults[-1]}): the solver made this one",)


def answer_schema(subjects: Sequence[Subject]) -> dict[str, Any]:
    """JSON schema of the answer to `layout_request`."""
    box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    entry = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "box": box},
        "required": ["id", "box"],
        "additionalProperties": False,
    }
    entries = {"type": "array", "items": entry, "minItems": len(subjects), "maxItems": len(subjects)}
    canvas = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    return {
        "type": "object",
        "properties": {"canvas": canvas, "scene": {"type": "string"}, "objects": entries},
        "required": ["canvas", "scene", "objects"],
        "additionalProperties": False,
    }
