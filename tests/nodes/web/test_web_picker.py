"""Tests of the part picker in a browser: what is clicked becomes prompt text, what is typed moves the picker."""

from collections import Counter

import torch

CREATURE = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "P": "BestiaryPartPrompt"}
LINKS = [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 1, "P", 0)]


def open_picker(desk):
    desk.build(CREATURE, LINKS)
    picker = desk.page.locator(".bst-picker").first
    picker.locator(".bst-tile").first.wait_for()
    return picker


def kinds_of(facts, place):
    part = [part for part in facts["parts"] if not part["background"]][place]
    return part["written"], part["kinds"]["written"]


def number_of(facts, place, kind):
    return str([part for part in facts["parts"] if not part["background"]][place]["kinds"]["numbers"][kind])


def tile(picker, facts, place, kind):
    return picker.locator(f'.bst-tile[data-number="{number_of(facts, place, kind)}"]')


def test_pick_type_queue_and_reload(desk, dictionary_facts):
    picker = open_picker(desk)
    (first, kinds), (second, others) = (kinds_of(dictionary_facts, place) for place in (0, 1))
    tile(picker, dictionary_facts, 0, 2).click()
    assert desk.value("P", "text") == f"a photo of a <{first}:{kinds[2]}> {{parts}}"
    picker.locator(".bst-part").nth(1).click()
    tile(picker, dictionary_facts, 1, 0).click()
    tile(picker, dictionary_facts, 1, 1).click(modifiers=["Shift"])
    blend = f"<{second}:{others[0]}*0.5+{others[1]}*0.5>"
    assert desk.value("P", "text") == f"a photo of a <{first}:{kinds[2]}> {blend} {{parts}}"
    desk.shot(f"picker_{desk.label}")

    # typed
    box = desk.page.locator("textarea").first
    typed = f"one (<{first}:{kinds[1]}>:1.3) here"
    # Vue writes what was picked into the box a moment later, and would take the selection away that is typed over
    desk.page.wait_for_timeout(1000)
    box.fill(typed)
    if box.input_value() != typed:
        box.fill(typed)
    picker.locator(".bst-part").first.click()
    wanted = number_of(dictionary_facts, 0, 1)
    picker.locator(f'.bst-tile[data-mark="first"][data-number="{wanted}"]').wait_for()
    assert picker.locator(".bst-badge").inner_text() == "×1.3"
    assert desk.value("P", "text") == typed
    prompt = desk.prompt()
    asked = next(node["inputs"] for node in prompt.values() if node["class_type"] == "BestiaryPartPrompt")
    assert asked["text"] == typed and "picker" not in asked

    desk.reload(P="BestiaryPartPrompt")
    picker = desk.page.locator(".bst-picker").first
    picker.locator('.bst-tile[data-mark="first"]').wait_for()
    assert desk.value("P", "text") == typed
    assert picker.locator('.bst-tile[data-mark="first"]').get_attribute("data-number") == number_of(
        dictionary_facts, 0, 1
    )
    # each script was asked for once
    twice = {url: count for url, count in Counter(desk.loaded).items() if count > 1 and url.endswith(("js", "css"))}
    assert twice == {}


def test_the_picture_of_what_was_picked_comes_back(desk, dictionary_facts):
    nodes = {**CREATURE, "K": "KSampler", "E": "EmptyLatentImage", "V": "VAEDecode", "S": "PreviewImage"}
    links = [
        *LINKS,
        ("D", 0, "K", 0),
        ("P", 0, "K", 1),
        ("P", 0, "K", 2),
        ("E", 0, "K", 3),
        ("K", 0, "V", 0),
        ("L", 2, "V", 1),
    ]
    desk.build(nodes, [*links, ("V", 0, "S", 0)])
    desk.page.evaluate(
        """() => {
            const set = (node, name, value) => { const w = node.widgets.find((one) => one.name === name); w.value = value; w.callback?.(value) };
            for (const [name, value] of [["steps", 2], ["cfg", 1], ["seed", 3]]) set(K, name, value);
            for (const name of ["width", "height"]) set(E, name, 128);
        }"""
    )
    picker = desk.page.locator(".bst-picker").first
    tile(picker, dictionary_facts, 0, 1).click()
    desk.page.evaluate("app.queuePrompt(0)")
    desk.page.wait_for_function(
        "Object.values(app.nodeOutputs ?? {}).some((out) => out.images?.length)", timeout=120_000
    )
    desk.shot(f"queued_{desk.label}")


def test_a_block_for_one_part_keeps_its_pick_in_its_fields(desk, dictionary_facts):
    desk.build({**CREATURE, "Q": "BestiaryPart"}, [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 2, "Q", 0)])
    picker = desk.page.locator(".bst-picker").nth(1)
    _, kinds = kinds_of(dictionary_facts, 0)
    desk.page.evaluate("app.canvas.ds.offset = [400, -600]; app.canvas.setDirty(true, true)")
    desk.page.wait_for_timeout(300)
    tile(picker, dictionary_facts, 0, 1).click()
    tile(picker, dictionary_facts, 0, 2).click(modifiers=["Shift"])
    part = [part for part in dictionary_facts["parts"] if not part["background"]][0]["name"]
    names = ("part", "kind", "weight", "blend_with", "blend_amount")
    assert [desk.value("Q", name) for name in names] == [part, kinds[1], 1, kinds[2], 0.5]


def test_search_favourites_sources_random_and_clear(plain_desk, dictionary_facts):
    desk, picker = plain_desk, open_picker(plain_desk)
    first, kinds = kinds_of(dictionary_facts, 0)
    search = picker.get_by_role("searchbox", name="Search kinds")
    search.fill(kinds[3])
    found = picker.locator(".bst-tile:visible").evaluate_all("(all) => all.map((one) => one.dataset.number)")
    assert number_of(dictionary_facts, 0, 3) in found and len(found) < len(kinds)
    search.fill("no such kind")
    assert picker.locator(".bst-empty").inner_text() == "No kind matches “no such kind”."
    search.fill("")
    grid = picker.get_by_role("listbox")
    grid.press("Home")
    grid.press("ArrowRight")
    grid.press("f")
    picker.get_by_role("button", name="Show only favourites").click()
    assert picker.locator(".bst-tile:visible").count() == 1
    picker.get_by_role("button", name="Show only favourites").click()

    # head of A, everything else of B
    picker.get_by_role("button", name="Mix two creatures").click()
    sources = picker.locator(".bst-source")
    for place in (0, 1):
        sources.nth(place).get_by_role("button", name="Draw").click()
    state = desk.page.evaluate("P.properties.bestiary_picker")
    sources.nth(1).get_by_role("button", name="Use all").click()
    picker.locator(".bst-row").first.get_by_role("button", name=f"{first} of A").click()
    text = desk.value("P", "text")
    written = {key.split("/")[1]: value for key, value in state["b"].items()}
    parts = {f"{part['number']}": part["written"] for part in dictionary_facts["parts"]}
    head = next(key for key, part in parts.items() if part == first)
    written[head] = state["a"][f"creatures/{head}"]
    mentions = [f"<{part}:{written[key]}>" for key, part in parts.items() if key in written]
    assert text == f"a photo of a {' '.join(mentions)} {{parts}}"
    picker.get_by_role("button", name="Clear all parts").click()
    assert desk.value("P", "text") == "a photo of a {parts}"
    picker.get_by_role("button", name="Random creature").click()
    assert desk.value("P", "text").count("<") == len(state["b"])


def test_keys_alone_reach_everything(plain_desk, dictionary_facts):
    desk, picker = plain_desk, open_picker(plain_desk)
    first, kinds = kinds_of(dictionary_facts, 0)
    picker.get_by_role("searchbox").focus()
    desk.page.keyboard.press("ArrowDown")
    desk.page.keyboard.press("End")
    desk.page.keyboard.press("Enter")
    assert desk.value("P", "text") == f"a photo of a <{first}:{kinds[-1]}> {{parts}}"
    picker.get_by_role("radio").first.focus()
    desk.page.keyboard.press("ArrowDown")
    assert picker.get_by_role("radio").nth(1).get_attribute("aria-checked") == "true"
    # nothing is made anew while nothing changes, so that the focus stays
    desk.page.evaluate("() => { window.kept = document.activeElement }")
    desk.page.wait_for_timeout(300)
    assert desk.page.evaluate("kept === document.activeElement && kept.isConnected")
    # nothing without a name for those who do not see it
    nameless = picker.evaluate(
        "(all) => [...all.querySelectorAll('button, input, select, [role=listbox]')].filter((e) => e.offsetParent && !(e.ariaLabel || e.textContent.trim())).length"
    )
    assert nameless == 0
    # links that go with a block end quietly
    desk.page.evaluate("() => { app.graph.remove(D); app.graph.remove(P) }")
    desk.page.wait_for_timeout(300)


def test_a_workflow_made_without_a_picker_keeps_its_layout(plain_desk):
    desk, picker = plain_desk, open_picker(plain_desk)
    desk.page.evaluate(
        """async () => {
            const saved = JSON.parse(JSON.stringify(app.graph.serialize()));
            const node = saved.nodes.find((one) => one.type === "BestiaryPartPrompt");
            delete node.properties.bestiary_picker;
            node.size = [400, 200];
            await app.loadGraphData(saved);
        }"""
    )
    desk.page.wait_for_timeout(600)
    assert picker.locator(".bst-grid").is_hidden()
    size = desk.page.evaluate("[...app.graph.nodes.find((one) => one.comfyClass === 'BestiaryPartPrompt').size]")
    assert size[1] <= 220
    picker.get_by_role("button", name="Fold or unfold").click()
    picker.locator(".bst-tile").first.wait_for()


def test_without_a_link_a_dictionary_can_be_chosen_to_look_at(plain_desk):
    plain_desk.build({"P": "BestiaryPartPrompt"}, [])
    picker = plain_desk.page.locator(".bst-picker").first
    assert "Connect Load Part Dictionary" in picker.locator(".bst-status").inner_text()
    picker.get_by_role("combobox", name="Dictionary to show").select_option(label="creatures")
    picker.locator(".bst-tile").first.wait_for()


def save_made(server, name, **fields):
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

    rows = fields.pop("rows")
    made = PartDictionary(
        "bestiary-demo", background=None, rows=rows, embeddings={"clip_l": torch.ones(len(rows), 128)}, **fields
    )
    made.save(server.folder / "models" / "bestiary" / name)


def show_file(desk, name):
    desk.build({"P": "BestiaryPartPrompt"}, [])
    desk.page.evaluate(f"() => {{ P.properties.bestiary_picker = {{file: '{name}'}}; P.onConfigure(P) }}")
    return desk.page.locator(".bst-picker").first


def merged_pair(server):
    """Files of two dictionaries with parts and kinds in common, and what the graph makes of them."""
    from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary

    save_made(
        server,
        "one.safetensors",
        part_names=("head", "unused", "wing"),
        kind_names=({0: "jay", 4: "owl"}, {}, {}),
        rows=torch.tensor([[0, 0], [0, 4], [2, 1]]),
    )
    save_made(
        server,
        "two.safetensors",
        part_names=("tail", "Head", "9"),
        kind_names=({}, {0: "Jay", 1: "wren", 4: "<b>"}, {2: "7"}),
        rows=torch.tensor([[0, 0], [1, 0], [1, 1], [1, 4], [2, 2]]),
        id_base=1,
    )
    pair = [
        PartDictionary.load(server.folder / "models" / "bestiary" / f"{name}.safetensors") for name in ("one", "two")
    ]
    return merge_dictionaries(*pair)[0]


MERGED = {"L": "BestiaryDemoModel", "D": "BestiaryLoadDictionary", "E": "BestiaryLoadDictionary"}
MERGED |= {"G": "BestiaryMergeDictionaries", "X": "BestiaryRandomKind", "A": "BestiaryApplyDictionary"}
MERGED |= {"F": "BestiaryLoadDictionary", "P": "BestiaryPartPrompt"}


def test_all_dictionaries_behind_the_links_are_found(plain_desk, server, tmp_path):
    from bestiary.nodes.part_dictionary.dictionary_listing import list_dictionary

    theirs = merged_pair(server)
    theirs.save(tmp_path / "merged.safetensors")
    links = [("L", 1, "D", 1), ("L", 1, "E", 1), ("D", 2, "G", 0), ("E", 2, "G", 1), ("G", 0, "X", 0), ("L", 1, "F", 1)]
    # a CLIP that knows one dictionary, then learns what comes out of Random Kind over both
    links += [("F", 1, "A", 1), ("X", 2, "A", 2), ("A", 1, "P", 0)]
    plain_desk.build(MERGED, links)
    files = {"D": "one.safetensors", "E": "two.safetensors", "F": "creatures.safetensors"}
    plain_desk.page.evaluate(
        """(files) => {
            for (const [node, file] of Object.entries(files)) {
                const w = window[node].widgets.find((one) => one.name === "file");
                w.value = file;
                w.callback?.(file);
            }
            P.onConnectionsChange();
        }""",
        files,
    )
    picker = plain_desk.page.locator(".bst-picker").first
    picker.locator(".bst-part", has_text="one_two.tail").wait_for()
    parts = picker.locator(".bst-part b").all_inner_texts()
    listed = list_dictionary(tmp_path / "merged.safetensors")
    assert {name for name in parts if name.startswith("one_two.")} == {
        f"one_two.{part['name']}" for part in listed["parts"]
    }
    assert any(name.startswith("creatures.") for name in parts)
    # numbers, names and what is written are those of the merged file
    ours = plain_desk.page.evaluate(
        """async () => {
            const { linkedDictionaries } = await import("/extensions/ComfyUI-Bestiary/js/parts/linked.mjs");
            const merged = linkedDictionaries(P).set.all.find((one) => one.called === "one_two");
            return merged.parts.map((part) => ({
                number: part.number, name: part.name, written: part.written, background: part.background,
                numbers: part.kinds.map((kind) => kind.number), names: part.kinds.map((kind) => kind.name),
                kinds: part.kinds.map((kind) => kind.written),
            }));
        }"""
    )
    for part, other in zip(ours, listed["parts"], strict=True):
        assert {name: part[name] for name in ("number", "name", "written", "background")} == {
            name: other[name] for name in ("number", "name", "written", "background")
        }
        columns = other["kinds"]
        assert (part["numbers"], part["names"], part["kinds"]) == (
            columns["numbers"],
            columns["names"],
            columns["written"],
        )


def test_a_dictionary_socket_carries_one_dictionary(plain_desk):
    nodes = {
        "L": "BestiaryDemoModel",
        "D": "BestiaryLoadDictionary",
        "F": "BestiaryLoadDictionary",
        "P": "BestiaryPart",
    }
    plain_desk.build(nodes, [("L", 1, "D", 1), ("D", 1, "F", 1), ("F", 2, "P", 0)])
    plain_desk.page.evaluate(
        "() => { const w = F.widgets.find((one) => one.name === 'name'); w.value = 'mine'; w.callback?.('mine'); P.onConnectionsChange() }"
    )
    plain_desk.page.wait_for_timeout(500)
    called = plain_desk.page.evaluate(
        """async () => {
            const { upstreamDictionaries } = await import("/extensions/ComfyUI-Bestiary/js/parts/upstream.mjs");
            const named = (node) => upstreamDictionaries(node).map((one) => one.called);
            return [named(P), named(F)];
        }"""
    )
    assert called == [["mine"], ["creatures"]]


def test_script_in_names_is_shown_as_text(plain_desk, server):
    evil = "<img src=x onerror='window.broken=1'>"
    rows = torch.tensor([[0, 0], [0, 1]])
    save_made(
        server,
        "evil.safetensors",
        part_names=(evil,),
        kind_names=({0: evil, 1: "</style><script>window.broken=1</script>"},),
        rows=rows,
    )
    picker = show_file(plain_desk, "evil.safetensors")
    picker.locator(".bst-tile").first.wait_for()
    assert picker.locator(".bst-name").first.inner_text() == evil
    assert picker.locator("img, script").count() == 0
    picker.locator(".bst-tile").first.click()
    plain_desk.page.wait_for_timeout(200)
    assert plain_desk.page.evaluate("window.broken") is None
    # and what is written is read back
    assert picker.locator('.bst-tile[data-mark="first"]').count() == 1
    plain_desk.shot("hostile")


def test_a_broken_file_is_told(plain_desk, server):
    (server.folder / "models" / "bestiary" / "broken.safetensors").write_bytes(b"\xff" * 64)
    picker = show_file(plain_desk, "broken.safetensors")
    picker.locator(".bst-fault", has_text="broken").wait_for()
    assert (
        picker.locator(".bst-fault").inner_text()
        == "broken.safetensors is not a safetensors file, or is truncated (64 bytes)"
    )


def test_five_thousand_kinds_scroll_with_few_elements(plain_desk, server):
    from bestiary.concepts.files.thumbnail_atlas import ThumbnailAtlas
    from PIL import Image

    rows = torch.tensor([[0, kind] for kind in range(5000)])
    images = {(0, n): Image.new("RGB", (96, 96), (n % 256, n // 20 % 256, 128)) for n in range(5000)}
    save_made(
        server,
        "many.safetensors",
        part_names=("head",),
        kind_names=({},),
        rows=rows,
        thumbnails=ThumbnailAtlas.from_images(images),
    )
    picker = show_file(plain_desk, "many.safetensors")
    picker.locator(".bst-tile").first.wait_for()
    grid = picker.locator(".bst-grid")
    # scrolled by 24 pixels a frame; what our own code takes of each frame is measured beside the frames
    figures = grid.evaluate(
        """async (grid) => {
            const frames = [];
            let before = await new Promise(requestAnimationFrame);
            for (let n = 0; n < 180; n += 1) {
                grid.scrollTop += 24;
                const now = await new Promise(requestAnimationFrame);
                frames.push(now - before);
                before = now;
            }
            frames.sort((a, b) => a - b);
            return {median: frames[90], slow: frames[171], tiles: grid.querySelectorAll('.bst-tile').length, top: grid.scrollTop};
        }"""
    )
    print(figures)
    assert figures["top"] == 180 * 24 and figures["tiles"] < 120
    shown = [
        int(number)
        for number in picker.locator(".bst-tile:visible").evaluate_all("(all) => all.map((e) => e.dataset.number)")
    ]
    assert min(shown) > 0 and len(shown) == len(set(shown))
    grid.focus()
    grid.press("End")
    picker.locator('.bst-tile[data-number="4999"]').wait_for()


WHOLE = """() => {
    const { top, bottom } = document.querySelector(".bst-grid").getBoundingClientRect();
    const tiles = [...document.querySelectorAll(".bst-tile")].filter((tile) => !tile.hidden).map((tile) => tile.getBoundingClientRect());
    const whole = tiles.filter((tile) => tile.top >= top - 1 && tile.bottom <= bottom + 1).length;
    return [whole, Math.round(document.querySelector(".bst-picker").getBoundingClientRect().height)];
}"""


def test_six_whole_thumbnails_also_beside_two_creatures(desk, dictionary_facts):
    picker = open_picker(desk)
    assert picker.locator(".bst-part b").all_inner_texts() == [part["name"] for part in dictionary_facts["parts"]]
    whole, height = desk.page.evaluate(WHOLE)
    assert whole >= 6
    picker.get_by_role("button", name="Mix two creatures").click()
    for place in (0, 1):
        picker.locator(".bst-source").nth(place).get_by_role("button", name="Draw").click()
    desk.page.wait_for_timeout(300)
    beside, mixed = desk.page.evaluate(WHOLE)
    assert beside >= 6 and abs(mixed - height) <= 2
    # tiles are clicked, never marked as text
    picker.locator(".bst-tile").first.dblclick()
    picker.locator(".bst-tile").first.click(modifiers=["Shift"])
    assert desk.page.evaluate("getSelection().toString()") == ""


LINKED = {**CREATURE, "H": "BestiaryPart", "R": "BestiaryRandomKind", "C": "BestiaryCombineParts"}


def linked_creature(desk, facts):
    """Part Prompt with a head from a Part block and a drawn second part, both through Combine Parts."""
    (head, kinds), (second, _) = (kinds_of(facts, place) for place in (0, 1))
    links = [*LINKS, ("D", 2, "H", 0), ("D", 2, "R", 0), ("H", 0, "C", 0), ("R", 0, "C", 1), ("C", 0, "P", 1)]
    desk.build(LINKED, links)
    desk.page.evaluate(
        """([head, kind, second]) => {
            const set = (node, name, value) => { const w = node.widgets.find((one) => one.name === name); w.value = value; w.callback?.(value) };
            set(H, "part", head);
            set(H, "kind", kind);
            set(R, "part", second);
            set(P, "text", "a {parts} bird");
            P.onConnectionsChange();
        }""",
        [head, kinds[0], second],
    )
    # the block's own picker is another one
    picker = desk.page.locator(".bst-picker").filter(has=desk.page.locator(".bst-linked")).first
    picker.locator(f'.bst-row[data-part="{head}"].bst-linked').wait_for()
    return picker, head, kinds, second


def test_linked_parts_are_shown_and_asked_about(desk, dictionary_facts):
    picker, head, kinds, second = linked_creature(desk, dictionary_facts)
    row = picker.locator(f'.bst-row[data-part="{head}"]')
    row.locator("small", has_text=f"{kinds[0]} · linked").wait_for()
    picker.locator(f'.bst-row[data-part="{second}"] small', has_text="? · linked").wait_for()
    row.locator(".bst-part").click()
    desk.shot(f"linked_{desk.label}")

    # there, at its own block, whose title says so
    tile(picker, dictionary_facts, 0, 1).click()
    picker.locator(".bst-question", has_text="already").get_by_role("button", name="Replace").click()
    assert [desk.value("H", "kind"), desk.value("P", "text")] == [kinds[1], "a {parts} bird"]
    desk.page.wait_for_function("(wanted) => H.title === wanted", arg=f"{head} of {kinds[1]}")

    # twice on purpose, and back
    tile(picker, dictionary_facts, 0, 2).click()
    picker.get_by_role("button", name="Use both").click()
    assert desk.value("P", "text") == f"a <{head}:{kinds[2]}> {{parts}} bird"
    picker.locator(".bst-question", has_text="used twice").get_by_role("button", name="Keep the link").click()
    assert desk.value("P", "text") == "a {parts} bird"

    # a creature drawn now never doubles a part
    picker.get_by_role("button", name="Random creature").click()
    text = desk.value("P", "text")
    assert f"<{head}:" not in text and f"<{second}:" not in text and text.count("<") == 3


def test_a_linked_part_whose_kind_is_drawn_gives_way_with_its_link(plain_desk, dictionary_facts):
    picker, _, _, second = linked_creature(plain_desk, dictionary_facts)
    picker.locator(f'.bst-row[data-part="{second}"] .bst-part').click()
    tile(picker, dictionary_facts, 1, 0).click()
    picker.get_by_role("button", name="Replace").click()
    _, others = kinds_of(dictionary_facts, 1)
    assert plain_desk.value("P", "text") == f"a <{second}:{others[0]}> {{parts}} bird"
    assert plain_desk.page.evaluate("C.inputs[1].link") is None


def test_titles_follow_what_is_picked_unless_they_were_given(plain_desk, dictionary_facts):
    desk = plain_desk
    desk.build({**CREATURE, "Q": "BestiaryPart"}, [("L", 0, "D", 0), ("L", 1, "D", 1), ("D", 2, "Q", 0)])
    picker = desk.page.locator(".bst-picker").nth(1)
    desk.page.evaluate("app.canvas.ds.offset = [400, -600]; app.canvas.setDirty(true, true)")
    first, kinds = kinds_of(dictionary_facts, 0)
    for place in (0, 1):
        tile(picker, dictionary_facts, 0, place).click()
        desk.page.wait_for_function("(wanted) => Q.title === wanted", arg=f"{first} of {kinds[place]}")
    desk.page.evaluate("() => { Q.title = 'mine' }")
    tile(picker, dictionary_facts, 0, 2).click()
    desk.page.wait_for_timeout(200)
    assert desk.page.evaluate("Q.title") == "mine"


def test_the_page_proposes_the_names_that_the_server_proposes(plain_desk):
    import difflib

    from bestiary.concepts.name_search import plain_name

    names = [
        "head",
        "Upper Left",
        "upper_right",
        "wing",
        "tail",
        "legs",
        "blue jay",
        "blue-jay 2",
        "thistle finch",
        "reed hornet",
    ]
    typed = [
        "haed",
        "uper left",
        "upper",
        "wings",
        "tial",
        "leg",
        "bluejay",
        "finch",
        "horned",
        "zzz",
        "HEAD",
        "upper-lft",
    ]
    ours = plain_desk.page.evaluate(
        """async ([typed, names]) => {
            const { nearest } = await import("/extensions/ComfyUI-Bestiary/js/parts/dictionaries.mjs");
            return typed.map((text) => nearest(text, names, 5));
        }""",
        [typed, names],
    )
    by_plain = {plain_name(name): name for name in names}
    theirs = [
        [by_plain[name] for name in difflib.get_close_matches(plain_name(text), list(by_plain), 5, 0.5)]
        for text in typed
    ]
    assert ours == theirs


def test_names_that_are_alike_are_told_apart_as_on_the_server(plain_desk, tmp_path):
    from bestiary.concepts.part_dictionary.dictionary_merge import merge_dictionaries
    from bestiary.concepts.part_dictionary.part_dictionary import PartDictionary
    from bestiary.nodes.part_dictionary.dictionary_listing import list_dictionary

    def made(*names: str) -> PartDictionary:
        rows, vectors = torch.tensor([(part, 0) for part in range(len(names))]), torch.ones(len(names), 128)
        return PartDictionary("bestiary-demo", names, ({},) * len(names), None, rows, {"clip_l": vectors})

    def facts(dictionary: PartDictionary) -> dict:
        dictionary.save(tmp_path / "made.safetensors")
        return list_dictionary(tmp_path / "made.safetensors")

    both, one, other = made("left wing", "left_wing", "head"), made("left_wing"), made("Left-Wing", "tail")
    typed = ["left wing", "left_wing", " left_wing ", "Left-Wing", "HEAD", "1"]
    pairs = [(both, both), (one, both), (one, other), (other, both), (both, other)]
    found, fields, merged = plain_desk.page.evaluate(
        """async ([facts, typed, pairs]) => {
            const { Dictionary, DictionarySet } = await import("/extensions/ComfyUI-Bestiary/js/parts/dictionaries.mjs");
            const { mergeDictionaries } = await import("/extensions/ComfyUI-Bestiary/js/parts/merging.mjs");
            const set = new DictionarySet([new Dictionary("made", "made", facts)]);
            const names = ([first, second]) =>
                mergeDictionaries(new Dictionary("a", "a", first), new Dictionary("b", "b", second), "m").facts.part_names;
            return [typed.map((text) => set.part(text).number), typed.map((text) => set.named(text).number), pairs.map(names)];
        }""",
        [facts(both), typed, [[facts(first), facts(second)] for first, second in pairs]],
    )
    assert found == fields == [both.find_part(text) for text in typed] == [0, 1, 1, 0, 2, 1]
    assert merged == [list(merge_dictionaries(first, second)[0].part_names) for first, second in pairs]


def test_parts_are_listed_from_the_head_on_and_by_height(plain_desk):
    listed = plain_desk.page.evaluate(
        """async () => {
            const { naturalOrder, readableName } = await import("/extensions/ComfyUI-Bestiary/js/parts/part_order.mjs");
            const named = (names) => naturalOrder(names.map((name) => ({ name, background: name === "background" }))).map(({ name }) => name);
            const high = naturalOrder([{ name: "a", height: 0.5 }, { name: "b", height: -0.5 }, { name: "beak", height: 0.9 }]);
            return [
                named(["tail", "background", "legs", "left wing", "head", "body"]),
                named(["bottom2", "middle", "top2", "bottom", "top", "part_7"]),
                high.map(({ name }) => name),
                ["top2", "bottom3", "upper_left", "head", "mp3 player"].map(readableName),
            ];
        }"""
    )
    assert listed == [
        ["head", "body", "left wing", "legs", "tail", "background"],
        ["top2", "top", "middle", "bottom2", "bottom", "part_7"],
        ["beak", "b", "a"],
        ["upper 2", "lower 3", "upper left", "head", "mp3 player"],
    ]
