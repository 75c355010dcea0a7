"""Tests of the widgets inside subgraphs: links are followed through the boundary both ways, and past what merely passes them on."""

OWN_PAGES = (
    True  # what stays of subgraphs, of nodes that others bring and of widgets broken on purpose disturbs later tests
)
IMPORTS = """
    const { linkedDictionaries } = await import("/extensions/ComfyUI-Bestiary/js/parts/linked.mjs");
    const { executionIds, isFed, sourceOf, targetsOf } = await import("/extensions/ComfyUI-Bestiary/js/host/links.mjs");
    const { samplingsOf } = await import("/extensions/ComfyUI-Bestiary/js/stages/sampling.mjs");
    const { upstreamDictionaries } = await import("/extensions/ComfyUI-Bestiary/js/parts/upstream.mjs");
    const { findWidget, widgetValue } = await import("/extensions/ComfyUI-Bestiary/js/host/widgets.mjs");
"""
CREATURE = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "P": "BestiaryPartPrompt"}
LINKS = [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 1, "P", 0)]


def look(desk, script, value=None):
    """What an expression with our modules gives in the page."""
    return desk.page.evaluate(f"async (value) => {{ {IMPORTS} return {script} }}", value)


def wrap(desk, host, *names):
    """Puts nodes of the page into a subgraph, whose block becomes window[host]; the nodes keep their page names."""
    desk.page.evaluate(
        """async ([host, names]) => {
            const graph = window[names[0]].graph;
            const before = names.map((name) => window[name]);
            const made = graph.convertToSubgraph(new Set(before));
            window[host] = made.node;
            const inside = [...made.subgraph.nodes];
            // numbers may have changed, kinds and order have not
            for (const node of before) {
                const place = inside.findIndex((one) => (one.subgraph ?? one.type) === (node.subgraph ?? node.type));
                window[names[before.indexOf(node)]] = inside.splice(place, 1)[0];
            }
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        [host, names],
    )


def enter(desk, host, node):
    """Opens a subgraph, with one of its nodes in view."""
    desk.page.evaluate(
        """async ([host, node]) => {
            app.canvas.openSubgraph(window[host].subgraph, window[host]);
            window[node].pos = [300, 90];
            app.canvas.ds.offset = [100, 20];
            app.canvas.ds.scale = 0.9;
            app.canvas.setDirty(true, true);
        }""",
        [host, node],
    )


def is_drawn(desk):
    """Whether this frontend draws what is inside subgraphs: its first Vue nodes (1.27) show the outermost graph alone."""
    early = desk.page.evaluate("!('rootGraph' in app)")
    return not (early and desk.vue)


def get_and_set(desk, *, source, target):
    """A link from window[source[0]] to window[target[0]] by the names of a Set and a Get node, as KJNodes has them."""
    desk.page.evaluate(
        """([source, target]) => {
            for (const [kind, sockets] of [["SetNode", ["addInput", "addOutput"]], ["GetNode", ["addOutput"]]]) {
                if (LiteGraph.registered_node_types[kind]) continue;
                class Passing extends LiteGraph.LGraphNode {
                    constructor(title) {
                        super(title);
                        this.isVirtualNode = true;
                        this.addWidget("text", "Constant", "", () => {}, {});
                        for (const add of sockets) this[add]("CLIP", "*");
                    }
                }
                LiteGraph.registerNodeType(kind, Passing);
                LiteGraph.registered_node_types[kind].title = kind;
            }
            const put = (kind, graph) => {
                const node = LiteGraph.createNode(kind);
                graph.add(node);
                node.widgets[0].value = "learned";
                return node;
            };
            const [from, slot] = source;
            const [to, input] = target;
            window[from].connect(slot, put("SetNode", window[from].graph), 0);
            put("GetNode", window[to].graph).connect(0, window[to], input);
        }""",
        [source, target],
    )


def test_a_picker_inside_a_subgraph_shows_the_parts_linked_outside(desk, dictionary_facts):
    desk.build({**CREATURE, "R": "Reroute"}, [*LINKS[:2], ("D", 1, "R", 0), ("R", 0, "P", 0)])
    wrap(desk, "H", "P")
    wrap(desk, "O", "H")
    enter(desk, "O", "H")
    enter(desk, "H", "P")
    assert look(desk, "upstreamDictionaries(P).map((one) => one.called)") == ["creatures"]
    if not is_drawn(desk):
        return
    picker = desk.page.locator(".bst-picker:visible").first
    picker.locator(".bst-tile").first.wait_for()
    assert picker.locator(".bst-status").inner_text() == ""
    desk.shot(f"subgraph_{desk.label}")
    part = [part for part in dictionary_facts["parts"] if not part["background"]][0]
    picker.locator(f'.bst-row[data-part="{part["name"]}"] .bst-part').click()
    picker.locator(f'.bst-tile[data-number="{part["kinds"]["numbers"][1]}"]').click()
    wanted = f"a photo of a <{part['written']}:{part['kinds']['written'][1]}> {{parts}}"
    desk.page.wait_for_function("(wanted) => P.widgets.find((one) => one.name === 'text').value === wanted", arg=wanted)


def test_links_are_followed_out_of_a_subgraph_and_by_get_and_set(desk):
    desk.build({**CREATURE, "R": "Reroute"}, [*LINKS[:2], ("D", 1, "R", 0), ("R", 0, "P", 0)])
    wrap(desk, "H", "L", "D", "R")
    assert look(desk, "upstreamDictionaries(P).map((one) => one.called)") == ["creatures"]

    desk.build(CREATURE, LINKS[:2])
    wrap(desk, "H", "P")
    assert look(desk, "upstreamDictionaries(P)") == []
    get_and_set(desk, source=("D", 1), target=("P", 0))
    assert look(desk, "upstreamDictionaries(P).map((one) => one.called)") == ["creatures"]
    assert look(desk, "targetsOf(D, 1).some(({ node, slot }) => node === P && slot === 0)")
    assert look(desk, "executionIds(P)") == [f"{desk.page.evaluate('H.id')}:{desk.page.evaluate('P.id')}"]

    # a bypassed block hands its CLIP on, and teaches it nothing
    desk.page.evaluate("() => { D.mode = 4 }")
    assert look(desk, "[upstreamDictionaries(P), sourceOf(P, 0) === L]") == [[], True]


def test_fields_that_a_subgraph_offers_are_read_and_written_there(desk):
    desk.build(CREATURE, LINKS)
    wrap(desk, "H", "D", "P")
    desk.page.evaluate(
        """() => {
            for (const [node, name, type] of [[D, "name", "STRING"], [P, "text", "STRING"]]) {
                const input = H.subgraph.addInput(name, type);
                input.connect(node.inputs.find((one) => one.name === name), node);
            }
        }"""
    )
    offered = "(name) => H.widgets.find((one) => one.name === name)"
    desk.page.evaluate(f"() => {{ ({offered})('name').value = 'mine' }}")
    assert look(desk, "upstreamDictionaries(P).map((one) => one.called)") == ["mine"]
    enter(desk, "H", "P")
    look(desk, "linkedDictionaries(P).update()")
    if not is_drawn(desk):
        return
    picker = desk.page.locator(".bst-picker:visible").first
    picker.locator(".bst-tile").first.click()
    desk.page.wait_for_function(f"() => /<.+:.+> {{parts}}/.test(({offered})('text').value)")
    picker.locator('.bst-tile[data-mark="first"]').wait_for()
    desk.page.evaluate("() => { app.canvas.setGraph(H.graph) }")
    asked = [node["inputs"] for node in desk.prompt().values() if node["class_type"] == "BestiaryPartPrompt"]
    assert asked[0]["text"] == desk.page.evaluate(f"({offered})('text').value")


def test_stage_strips_see_references_and_samplers_across_the_boundary(plain_desk):
    desk = plain_desk
    nodes = {"S": "BestiaryLoadSpectrum", "M": "BestiaryMixAttributes", "T": "BestiarySpectrumPrompt", "K": "KSampler"}
    slot = "((node, name) => node.inputs.findIndex((one) => one.name === name))"
    desk.build(nodes, [])
    desk.page.evaluate(
        f"""() => {{
            S.connect(0, M, {slot}(M, "reference_1"));
            M.connect(0, T, T.inputs.findIndex((one) => one.type === "BESTIARY_SPECTRUM"));
            T.connect(0, K, {slot}(K, "positive"));
        }}"""
    )
    wrap(desk, "H", "M", "T")
    assert look(desk, "[isFed(M, 'reference_1'), isFed(M, 'reference_2')]") == [True, False]
    assert look(desk, "samplingsOf(M).map(({ node, steps }) => [node === K, steps])") == [[True, 20]]
    # a socket of the subgraph that nothing is linked to is no reference
    desk.page.evaluate("() => { H.disconnectInput(0) }")
    assert look(desk, "[isFed(M, 'reference_1'), isFed(M, 'reference_2')]") == [False, False]


def test_a_fault_in_one_widget_leaves_the_others_alone(plain_desk):
    desk = plain_desk
    desk.build({**CREATURE, "Q": "BestiaryPartPrompt"}, [*LINKS, ("D", 1, "Q", 0)])
    look(
        desk,
        """[P, Q].forEach((node) => {
            const broken = () => { throw new Error("broken on purpose") };
            linkedDictionaries(node).listeners = new Set([broken, () => (node.heard = true), ...linkedDictionaries(node).listeners]);
            linkedDictionaries(node).update();
        })""",
    )
    desk.page.wait_for_function("P.heard && Q.heard")
    for place in (0, 1):
        desk.page.locator(".bst-picker").nth(place).locator(".bst-tile").first.wait_for()
    assert len([fault for fault in desk.own_faults() if "broken on purpose" in fault]) >= 2
    desk.faults.clear()


def test_loops_and_dangling_links_end(plain_desk):
    plain_desk.build(CREATURE, LINKS[:2])
    get_and_set(plain_desk, source=("D", 1), target=("P", 0))
    # what the Set node is given comes from its own Get node
    plain_desk.page.evaluate(
        """() => {
            const [setter] = app.graph.nodes.filter((node) => node.type === "SetNode");
            const getter = LiteGraph.createNode("GetNode");
            app.graph.add(getter);
            getter.widgets[0].value = "learned";
            getter.connect(0, setter, 0);
        }"""
    )
    assert look(plain_desk, "[upstreamDictionaries(P), targetsOf(D, 1), samplingsOf(P)]") == [[], [], []]
    plain_desk.page.evaluate("() => { app.graph.remove(app.graph.nodes.find((node) => node.type === 'SetNode')) }")
    assert look(plain_desk, "[upstreamDictionaries(P), sourceOf(P, 0)]") == [[], None]
