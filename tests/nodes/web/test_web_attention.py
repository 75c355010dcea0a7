"""Tests of the heat-map viewer in a browser: what was sampled shows, parts are compared, steps are scrubbed."""

NODES = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "A": "BestiaryAttentionMaps", "K": "KSampler"}
NODES |= {"P": "BestiaryPartPrompt", "E": "EmptyLatentImage", "V": "VAEDecode", "W": "BestiaryShowAttention"}
LINKS = [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 1, "P", 0), ("D", 0, "A", 0), ("A", 0, "K", 0), ("P", 0, "K", 1)]
LINKS += [
    ("P", 0, "K", 2),
    ("E", 0, "K", 3),
    ("K", 0, "V", 0),
    ("L", 2, "V", 1),
    ("A", 1, "W", 0),
    ("K", 0, "W", 1),
    ("V", 0, "W", 2),
]
STEPS = 3


def sampled(desk, dictionary_facts):
    desk.build(NODES, LINKS)
    parts = [part for part in dictionary_facts["parts"] if not part["background"]][:3]
    text = " ".join(f"<{part['written']}:{part['kinds']['written'][0]}>" for part in parts)
    desk.page.evaluate(
        """([text, steps]) => {
            const set = (node, name, value) => { const w = node.widgets.find((one) => one.name === name); w.value = value; w.callback?.(value) };
            for (const [name, value] of [["steps", steps], ["cfg", 1], ["seed", 3]]) set(K, name, value);
            for (const name of ["width", "height"]) set(E, name, 128);
            set(P, "text", text);
            app.queuePrompt(0);
            app.canvas.ds.offset = [60 - W.pos[0], 60 - W.pos[1]];
            app.canvas.setDirty(true, true);
        }""",
        [text, STEPS],
    )
    viewer = desk.page.locator(".bst-attention")
    viewer.locator(".bst-chip").first.wait_for(timeout=120_000)
    desk.page.wait_for_timeout(500)
    # wherever the frontend puts it inside its block, it comes into view
    top = viewer.bounding_box()["y"]
    desk.page.evaluate(f"app.canvas.ds.offset[1] -= {top - 120} / app.canvas.ds.scale; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(500)
    return viewer, parts


def test_parts_are_seen_compared_and_scrubbed(desk, dictionary_facts):
    viewer, parts = sampled(desk, dictionary_facts)
    chips = viewer.locator(".bst-chip")
    assert [name.split(":")[0] for name in chips.all_inner_texts()] == [part["name"] for part in parts]
    assert viewer.locator("canvas").count() == len(parts)
    desk.page.wait_for_timeout(500)
    # once: ComfyUI draws no second picture of the same below
    assert desk.page.evaluate("[W.imgs ?? null, Boolean(app.nodeOutputs[W.id]?.images?.length)]") == [None, True]
    block = f'[data-node-id="{desk.page.evaluate("W.id")}"]'
    # Vue nodes of the older frontend draw a node's outputs whatever the node says
    older = desk.vue and desk.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").startswith("1.27")
    assert desk.page.locator(f"{block} img").count() == int(older)
    desk.shot(f"attention_{desk.label}")
    chips.first.hover()
    assert viewer.locator("canvas").count() == 1
    chips.nth(0).click()
    chips.nth(1).click()
    desk.page.mouse.move(5, 5)
    assert viewer.locator("canvas").count() == 2
    assert chips.nth(0).get_attribute("aria-pressed") == "true"

    picture = "() => document.querySelector('.bst-attention canvas').toDataURL()"
    mean = desk.page.evaluate(picture)
    scrub = viewer.get_by_role("slider", name="Step")
    assert scrub.get_attribute("max") == f"{STEPS}"
    scrub.fill("1")
    assert scrub.get_attribute("aria-valuetext") == "1" and desk.page.evaluate(picture) != mean
    scrub.fill("0")
    assert scrub.get_attribute("aria-valuetext") == "all" and desk.page.evaluate(picture) == mean
    viewer.locator("canvas").first.hover()
    assert viewer.locator(".bst-hint").inner_text().startswith("Here: ")


def test_before_the_first_run_it_says_what_to_do(plain_desk):
    plain_desk.build({"W": "BestiaryShowAttention"}, [])
    viewer = plain_desk.page.locator(".bst-attention")
    assert viewer.inner_text().strip() == "Run the workflow to see the attention of each part."
