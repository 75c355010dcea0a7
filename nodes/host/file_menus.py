"""Menus of files that a graph may fill by itself: the name that a Save node has just given, linked to a Load node.

ComfyUI refuses a text where a menu is; a node that looks at the types of its links itself may take one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from comfy_api.latest import io

from ...concepts.errors import BestiaryError


def check_file_input(
    node: type[io.ComfyNode],
    file: str | None,
    links: Mapping[str, str],
    check: Callable[[str], object],
    name: str = "file",
) -> bool | str:
    """What `validate_inputs` of a Load node answers: True, or what is wrong.

    Args:
        node: its class.
        file: value of the menu called `name`; None where it is linked, and looked at when the graph runs.
        links: types of what is linked, by input; `name` may be a text, all others are what the node takes.
        check: raises BestiaryError for names that are no such file.
    """
    from comfy_execution.validation import validate_node_input

    # the class is locked while it is asked, so its own copy of the schema cannot be made here
    taken = {one.id: one.io_type for one in node.define_schema().inputs}
    taken[name] = f"{taken[name]},{io.String.io_type}"
    for linked, kind in links.items():
        if not validate_node_input(kind, taken[linked]):
            return f"{linked}, received_type({kind}) mismatch input_type({taken[linked]})"
    if file is None:
        return True
    try:
        check(file)
    except BestiaryError as fault:
        return str(fault)
    return True
