"""What every node promises to people: words on everything, ids that stay, a help page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
from bestiary.nodes.host.concept_folders import register_folder

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "web" / "docs"
CATEGORIES = {
    "Bestiary/parts",
    "Bestiary/attention",
    "Bestiary/discover",
    "Bestiary/deepfloyd if",
    "Bestiary/demo",
    "Bestiary/train",
    "Bestiary/spectrum",
    "Bestiary/scenes",
}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory) -> Iterator[list]:
    """Finished schemas of all nodes; models/bestiary is an empty folder."""
    from bestiary.nodes.registration import NODES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "models_dir", str(tmp_path_factory.mktemp("models")))
        patch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
        patch.setattr(folder_paths, "filename_list_cache", {})
        register_folder()
        yield [node.GET_SCHEMA() for node in NODES]


def faults(schemas: list, *checks: object) -> list[str]:
    """Places where a check of (schema) gave words."""
    return [f"{schema.node_id}: {word}" for schema in schemas for check in checks for word in check(schema)]


def test_ids_begin_with_our_name_and_are_there_once(schemas):
    ids = [schema.node_id for schema in schemas]
    assert [name for name in ids if not name.startswith("Bestiary")] == [] and len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)


def test_every_node_has_a_name_a_category_and_a_description(schemas):
    def words(schema):
        yield from ("no display name" for _ in [0] if not schema.display_name)
        yield from (f"category {schema.category!r}" for _ in [0] if schema.category not in CATEGORIES)
        yield from ("description too short" for _ in [0] if len(schema.description or "") < 30)

    assert faults(schemas, words) == []
    names = [schema.display_name for schema in schemas]
    assert len(set(names)) == len(names)


def test_every_input_has_a_tooltip(schemas):
    bare = lambda schema: [one.id for one in schema.inputs or [] if not (one.tooltip or "").strip()]  # noqa: E731
    assert faults(schemas, bare) == []


def test_every_output_has_a_tooltip(schemas):
    bare = lambda schema: [str(one.id) for one in schema.outputs or [] if not (one.tooltip or "").strip()]  # noqa: E731
    assert faults(schemas, bare) == []


def test_every_output_has_a_display_name(schemas):
    bare = lambda schema: [str(one.id) for one in schema.outputs or [] if not one.display_name]  # noqa: E731
    assert faults(schemas, bare) == []


def test_optional_inputs_come_last(schemas):
    def words(schema):
        optional = [bool(one.optional) for one in schema.inputs or []]
        # the order of inputs is public: that of one older node stays as it is
        if schema.node_id != "BestiaryTrainInBackground" and optional != sorted(optional):
            yield "an optional input before a required one"

    assert faults(schemas, words) == []


def test_no_id_is_both_input_and_output_and_none_stands_twice(schemas):
    def words(schema):
        inputs, outputs = [one.id for one in schema.inputs or []], [one.id for one in schema.outputs or []]
        yield from set(inputs) & set(outputs)
        yield from (name for name in {*inputs} if inputs.count(name) > 1)
        yield from (name for name in {*outputs} if outputs.count(name) > 1)
        yield from (name for name in [*inputs, *outputs] if not name.isidentifier() or name != name.lower())

    assert faults(schemas, words) == []


def test_every_choice_and_number_has_a_default_among_its_values(schemas):
    def words(schema):
        for one in schema.inputs or []:
            low, high = getattr(one, "min", None), getattr(one, "max", None)
            if one.io_type in ("INT", "FLOAT") and (one.default is None or low is None or high is None):
                yield f"{one.id} lacks default, min or max"
            elif one.io_type in ("INT", "FLOAT") and not low <= one.default <= high:
                yield f"{one.id}: {one.default} is not in {low}..{high}"
            elif one.io_type == "COMBO" and one.default is not None and one.default not in one.options:
                yield f"{one.id}: {one.default!r} is not among {one.options}"

    assert faults(schemas, words) == []


def test_execute_takes_exactly_the_inputs(schemas):
    import inspect

    from bestiary.nodes.registration import NODES

    owners = {schema.node_id: node for schema, node in zip(schemas, NODES, strict=True)}

    def words(schema):
        taken = dict(inspect.signature(owners[schema.node_id].execute).parameters)
        inputs = {one.id: one for one in schema.inputs or []}
        # sockets without number of their own come as keywords
        spread = [name for name, one in taken.items() if one.kind is inspect.Parameter.VAR_KEYWORD]
        known = inputs.keys() & taken.keys() if spread else inputs.keys()
        yield from (taken.keys() - set(spread)) ^ known
        yield from (
            name for name in known & taken.keys() if inputs[name].optional and taken[name].default is taken[name].empty
        )

    assert faults(schemas, words) == []


def page_of(schema: object, schemas: list) -> str:
    """Help page of a node, with the pages it refers to by `as in **Display Name**`; empty if there is none."""
    path = DOCS / f"{schema.node_id}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    others = [other for other in schemas if f"as in **{other.display_name}**" in text and other is not schema]
    return "\n".join([text, *((DOCS / f"{other.node_id}.md").read_text(encoding="utf-8") for other in others)])


def test_every_node_has_a_help_page_that_names_its_inputs(schemas):
    def words(schema):
        text = page_of(schema, schemas)
        yield from ("no page in web/docs, or no example in it" for _ in [0] if "xample" not in text)
        for one in schema.inputs or []:
            # numbered sockets may be told together, as part_1 to part_8
            if one.id not in text and f"{one.id.rstrip('0123456789')}1" not in text:
                yield f"the page does not name the input {one.id}"

    assert faults(schemas, words) == []


def test_every_help_page_has_its_node(schemas):
    pages = {path.stem for path in DOCS.glob("*.md")} | {path.name for path in DOCS.iterdir() if path.is_dir()}
    assert pages - {schema.node_id for schema in schemas} == set()
