"""File menus that accept linked names, such as the output of a Save node linked to a Load node.

ComfyUI rejects a linked text for a menu, unless the node validates the types of its links itself.
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
    """Result of `validate_inputs` of a Load node: True, or the error text.

    Args:
        node: its class.
        file: value of the menu `name`; None if it is linked, then it is checked when the graph runs.
        links: types of the linked inputs; `name` may be a text, all others must match the schema.
        check: raises BestiaryError for an invalid file name.
    """
    from comfy_execution.validation import validate_node_input

    # ComfyUI locks the class during validation, so its cached schema cannot be built here
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
