"""List of all nodes of the pack."""

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
from .scenes import layout_edit_nodes, layout_nodes, scene_nodes, scene_set_nodes, subject_nodes
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
    *subject_nodes.NODES,
    *layout_nodes.NODES,
    *layout_edit_nodes.NODES,
    *scene_nodes.NODES,
    *scene_set_nodes.NODES,
]


class BestiaryExtension(ComfyExtension):
    """Entry point for ComfyUI's loader."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All node classes; also registers the models folder and the routes for the browser."""
        register_folder()
        add_routes()
        order_templates()
        return NODES
