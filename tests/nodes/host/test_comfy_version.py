"""One pack for old and new ComfyUI: every schema builds under a fake old `io` and under a fake new one.

The old one knows what 0.3.64 knows and refuses all else, as that version does; the new one knows what later versions added.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest

ROOT = Path(__file__).parents[3]

BASE = ["id", "display_name", "optional", "tooltip", "lazy", "extra_dict"]
WIDGET = ["id", "display_name", "optional", "tooltip", "lazy", "default", "socketless", "force_input"]
WIDGETS = {
    "Boolean": [*WIDGET, "label_on", "label_off"],
    "Int": [*WIDGET, "min", "max", "step", "control_after_generate", "display_mode"],
    "Float": [*WIDGET, "min", "max", "step", "round", "display_mode"],
    "String": [*WIDGET, "multiline", "placeholder", "dynamic_prompts"],
    "Combo": [*WIDGET, "options", "control_after_generate", "upload", "image_folder", "remote"],
}
OUTPUT = ["id", "display_name", "tooltip", "is_output_list"]
SCHEMA = [
    "node_id", "display_name", "category", "inputs", "outputs", "hidden", "description", "is_input_list", "is_output_node",
    "is_deprecated", "is_experimental", "is_api_node", "not_idempotent", "enable_expand",
]  # fmt: skip
NEW_SCHEMA = ["search_aliases", "is_dev_only", "essentials_category", "accept_all_inputs", "price_badge"]
NEW_WIDGET = ["advanced", "raw_link"]


def record(name: str, fields: list[str]) -> type:
    """A class that takes these keyword arguments and refuses others, with them in its signature."""

    def __init__(self: object, *values: object, **named: object) -> None:
        bound = signature.bind(*values, **named)
        for field in fields:
            setattr(self, field, bound.arguments.get(field))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(field, kind, default=None) for field in fields])
    return type(name, (), {"__init__": __init__, "__signature__": signature})


class FakeIO(types.ModuleType):
    """`comfy_api.latest.io` as far as schemas need it; `new` adds what later versions know."""

    def __init__(self, *, new: bool) -> None:
        super().__init__("io")
        self._new = new
        fields = [*SCHEMA, *(NEW_SCHEMA if new else [])]
        self.Schema = dataclasses.make_dataclass("Schema", [(field, object, None) for field in fields])
        self.Input, self.Output = record("Input", BASE), record("Output", OUTPUT)
        self.ComfyNode = type("ComfyNode", (), {"hidden": None})
        self.NodeOutput = type("NodeOutput", (), {})
        self.Hidden = types.SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")

    def Custom(self, name: str) -> type:  # noqa: N802
        """A kind of our own."""
        return self._kind(name, BASE)

    def __getattr__(self, name: str) -> type:
        """Every other kind: with a widget, or a socket alone."""
        if name.startswith("__"):
            raise AttributeError(name)
        fields = WIDGETS.get(name, BASE)
        return self._kind(name, [*fields, *(NEW_WIDGET if self._new and name in WIDGETS else [])])

    def _kind(self, name: str, fields: list[str]) -> type:
        made = type(name, (), {"Input": record("Input", fields), "Output": record("Output", OUTPUT)})
        setattr(self, name, made)
        return made


@pytest.fixture(params=["old", "new"])
def pack(request, monkeypatch, tmp_path) -> Iterator[tuple[str, FakeIO, types.ModuleType]]:
    """The pack, loaded once more under another name beside a fake ComfyUI of that age."""
    io = FakeIO(new=request.param == "new")
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ui, latest.ComfyExtension = io, types.ModuleType("ui"), type("ComfyExtension", (), {})
    parent = types.ModuleType("comfy_api")
    parent.latest = latest
    monkeypatch.setitem(sys.modules, "comfy_api", parent)
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    name = f"bestiary_beside_{request.param}"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield request.param, io, module
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
        del sys.modules[loaded]


def nodes_of(module: types.ModuleType) -> list[type]:
    async def load() -> list[type]:
        extension = await module.comfy_entrypoint()
        return await extension.get_node_list()

    return asyncio.run(load())


def test_every_schema_builds(pack):
    age, io, module = pack
    nodes = nodes_of(module)
    schemas = [node.define_schema() for node in nodes]
    assert len(schemas) > 10 and all(isinstance(schema, io.Schema) for schema in schemas)
    assert len({schema.node_id for schema in schemas}) == len(nodes)
    # what only new versions know reaches them, and them alone
    assert hasattr(schemas[0], "search_aliases") == (age == "new")
    assert any(getattr(schema, "search_aliases", None) for schema in schemas) == (age == "new")


def test_extras_of_inputs_reach_the_versions_that_know_them(pack):
    age, io, module = pack
    nodes_of(module)
    version = sys.modules[f"{module.__name__}.nodes.host.comfy_version"]
    made = version.socket(io.Int.Input, "steps", default=20, tooltip="how many", advanced=True)
    assert (made.id, made.default, made.tooltip) == ("steps", 20, "how many")
    assert getattr(made, "advanced", None) == (True if age == "new" else None)


def test_the_fake_old_one_refuses_what_is_too_new():
    old, new = FakeIO(new=False), FakeIO(new=True)
    for refused in (
        lambda: old.Int.Input("steps", advanced=True),
        lambda: old.Schema(node_id="x", search_aliases=[]),
        lambda: old.Custom("X").Input("x", default=1),
    ):
        with pytest.raises(TypeError):
            refused()
    assert new.Int.Input("steps", advanced=True).advanced and new.Schema(search_aliases=["a"]).search_aliases == ["a"]


def test_this_comfyui_gets_what_it_knows():
    from bestiary.nodes.host.comfy_version import schema, socket
    from comfy_api.latest import io

    known = {field.name for field in dataclasses.fields(io.Schema)}
    made = schema(node_id="BestiaryDemoModel", search_aliases=["a"], never_known=1)
    assert made.node_id == "BestiaryDemoModel" and not hasattr(made, "never_known")
    assert hasattr(made, "search_aliases") == ("search_aliases" in known)
    assert socket(io.Int.Input, "steps", default=3, never_known=1).default == 3


@pytest.mark.parametrize("moves", [False, True])
def test_a_clip_of_ours_stays_in_one_place_where_others_would_move(monkeypatch, moves):
    """Set CLIP Hooks reloads moving ones from the file that ComfyUI remembers, which ours has not."""
    import comfy.sd
    from bestiary.nodes.host.comfy_version import fixed_clip_options

    def older(target: object, model_options: object = None) -> None: ...

    def newer(target: object, model_options: object = None, disable_dynamic: bool = False) -> None: ...

    monkeypatch.setattr(comfy.sd, "CLIP", newer if moves else older)
    assert fixed_clip_options() == ({"disable_dynamic": True} if moves else {})


def test_text_encoders_are_told_their_device_where_comfyui_tells_them():
    from bestiary.nodes.host.comfy_version import name_device

    told: list[dict] = []
    knowing = types.SimpleNamespace(execution_device="cpu", set_clip_options=told.append)
    name_device(knowing)
    name_device(types.SimpleNamespace(set_clip_options=told.append))
    assert told == [{"execution_device": "cpu"}]
