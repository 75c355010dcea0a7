"""Tests of all our blocks at once: what their widgets are called, and that those with an element of their own are drawn."""

LOOK = """() => app.graph.nodes.map((node) => {
    const widgets = node.widgets ?? [];
    const names = widgets.map(({ name }) => name);
    const own = widgets.filter(({ type }) => /^BESTIARY_/.test(type));
    return {
        kind: node.comfyClass,
        twice: names.filter((name, place) => names.indexOf(name) !== place),
        asInputs: own.filter(({ name }) => node.inputs?.some((input) => input.name === name)).map(({ name }) => name),
        shown: own.filter(({ element }) => element?.isConnected).map(({ name }) => name),
        own: own.map(({ name }) => name),
    };
})"""


def test_no_two_widgets_of_a_block_have_one_name(desk):
    """Vue nodes draw one widget of a name, and one that is named as an input is taken for the input's."""
    kinds = desk.page.evaluate(
        "Object.keys(LiteGraph.registered_node_types).filter((kind) => kind.startsWith('Bestiary'))"
    )
    assert len(kinds) > 30
    desk.build({f"N{number}": kind for number, kind in enumerate(kinds)}, [])
    # all of them in sight
    desk.page.evaluate(
        "() => { app.canvas.ds.scale = 0.1; app.canvas.ds.offset = [0, 0]; app.canvas.setDirty(true, true) }"
    )
    # the first Vue nodes (1.27) draw no bodies that small
    if not desk.vue or desk.page.evaluate("'rootGraph' in app"):
        desk.page.wait_for_function(f"({LOOK})().every(({{ own, shown }}) => own.length === shown.length)")
    looked = desk.page.evaluate(LOOK)
    assert [one for one in looked if one["twice"] or one["asInputs"]] == []
    own = {one["kind"]: one["own"] for one in looked if one["own"]}
    assert len(own) >= 10 and {"BestiaryPartPrompt", "BestiarySpectrumPrompt", "BestiaryTrainParts"} <= set(own)
