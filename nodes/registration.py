"""Every node of the pack: the table of contents."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import attention_nodes
from .deepfloyd_if import if_nodes
from .demo import demo_model_nodes
from .evaluation import part_evaluation_nodes
from .host.concept_folders import register_folder
from .host.template_order import order_templates
from .part_dictionary import part_dictionary_nodes
from .part_map import part_discovery_nodes
from .part_prompt import part_kind_nodes, part_prompt_nodes
from .spectrum import prompt_spectrum_nodes, prompt_stage_nodes
from .training import dreambooth_training_nodes, spectrum_training_nodes, training_nodes
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
    *dreambooth_training_nodes.NODES,
    *if_nodes.NODES,
]


class BestiaryExtension(ComfyExtension):
    """What ComfyUI's loader asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes; the models folder is known and the browser's routes are there from here on."""
        register_folder()
        add_routes()
        order_templates()
        return NODES
