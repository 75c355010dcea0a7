"""Every node of the pack: the table of contents."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    attention_nodes,
    demo_model_nodes,
    part_dictionary_nodes,
    part_discovery_nodes,
    part_evaluation_nodes,
    part_kind_nodes,
    part_prompt_nodes,
    prompt_spectrum_nodes,
    prompt_stage_nodes,
    spectrum_training_nodes,
    training_nodes,
)
from .concept_folders import register_folder
from .template_order import order_templates
from .web_routes import add_routes

NODES: list[type[io.ComfyNode]] = [
    *demo_model_nodes.NODES,
    *part_dictionary_nodes.NODES,
    *part_prompt_nodes.NODES,
    *part_kind_nodes.NODES,
    *attention_nodes.NODES,
    *part_discovery_nodes.NODES,
    *part_evaluation_nodes.NODES,
    *prompt_spectrum_nodes.NODES,
    *prompt_stage_nodes.NODES,
    *training_nodes.NODES,
    *spectrum_training_nodes.NODES,
]


class BestiaryExtension(ComfyExtension):
    """What ComfyUI's loader asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes; the models folder is known and the browser's routes are there from here on."""
        register_folder()
        add_routes()
        order_templates()
        return NODES
