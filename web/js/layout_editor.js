/** The editor on Edit Layout: cut-outs on their canvas, to be dragged, resized, turned, mirrored and put in order. */

import { app } from "../../../scripts/app.js";
import { addStyle, make, ownEvents } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { isFed } from "./host/links.mjs";
import { after, debounced } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, setWidget, watchWidget } from "./host/widgets.mjs";
import { edit, faults, placed, readEdits, reordered } from "./scenes/placements.mjs";
import { Stage } from "./scenes/stage.mjs";

const BLOCK = "BestiaryEditLayout";
const HEIGHT = 420;
const SIZE = [460, 680];
/** What runs have shown, by graph and node: the graph's own undo makes its nodes anew. */
const SHOWN = new Map();
const TOOLS = ["flip", "front", "back", "undo", "reset"];

/** What one node shows. Edits are kept as the text of its field `edits`; layouts and cut-outs come with each run. */
class LayoutEditor {
  constructor(node) {
    this.node = node;
    Object.assign(this, { facts: null, number: 0, chosen: null, dragged: null, past: [] });
    this.build();
    this.panel = new Panel(node, { name: "layout_editor", property: "bestiary_layout_editor", element: this.element, height: HEIGHT, size: SIZE });
    this.head.prepend(this.panel.button);
    this.follow = debounced(() => this.show());
    watchWidget(ownWidget(node, "edits"), this.follow);
    this.show();
  }

  build() {
    const tool = (name) => make("button", { type: "button", className: "bst-chip", textContent: t(`layout.${name}`), title: t(`layout.${name}Help`), onclick: () => this.use(name) });
    const leaf = (name, sign, step) => make("button", { type: "button", className: "bst-chip", textContent: sign, title: t(`layout.${name}`), "aria-label": t(`layout.${name}`), onclick: () => this.turnTo(this.number + step) });
    this.tools = Object.fromEntries(TOOLS.map((name) => [name, tool(name)]));
    this.head = make("div", { className: "bst-tools" }, make("b", { className: "bst-run", textContent: t("layout.title") }), ...Object.values(this.tools));
    this.which = make("span");
    this.pages = make("div", { className: "bst-tools bst-leaves" }, leaf("previous", "‹", -1), this.which, leaf("next", "›", 1));
    this.stage = new Stage(this);
    this.status = make("p", { className: "bst-hint", role: "status" });
    this.element = make("div", { className: "bst-picker bst-layout-editor", role: "group", "aria-label": t("layout.title") }, this.head, this.pages, this.stage.element, this.status);
    ownEvents(this.element);
  }

  get key() {
    return `${this.node.graph?.id}/${this.node.id}`;
  }

  get text() {
    return `${findWidget(this.node, "edits")?.value ?? ""}`;
  }

  get layout() {
    return this.facts.layouts[this.number];
  }

  /** The placements of the layout in sight, from back to front, with what is dragged where it is. */
  placements() {
    if (!this.facts) return [];
    const all = placed(this.layout, readEdits(this.text)?.[this.number], this.facts.subjects);
    return all.map((one) => (one.subject === this.dragged?.subject ? this.dragged : one));
  }

  executed(facts) {
    if (!facts) return;
    SHOWN.set(this.key, facts);
    this.facts = facts;
    this.number = Math.min(this.number, facts.layouts.length - 1);
    this.show();
  }

  turnTo(number) {
    this.number = Math.min(Math.max(number, 0), this.facts.layouts.length - 1);
    this.show();
  }

  choose(name) {
    this.chosen = name;
    this.show();
  }

  use(name) {
    if (name === "front" || name === "back") this.order(name === "front" ? 1 : -1);
    else this[name]();
    this.stage.focus(this.chosen);
  }

  preview(placement) {
    this.dragged = placement;
    this.show();
  }

  keep(...changed) {
    this.dragged = null;
    const edits = { ...readEdits(this.text) };
    const own = { ...edits[this.number] };
    for (const one of changed) {
      const fields = edit(one, this.layout.find(({ subject }) => subject === one.subject));
      if (fields) own[one.subject] = fields;
      else delete own[one.subject];
    }
    this.write({ ...edits, [this.number]: own });
  }

  flip() {
    const one = this.placements().find(({ subject }) => subject === this.chosen);
    if (one) this.keep({ ...one, flip: !one.flip });
  }

  order(step) {
    if (this.chosen) this.keep(...reordered(this.placements(), this.chosen, step));
  }

  reset() {
    const { [this.number]: _, ...others } = readEdits(this.text) ?? {};
    this.write(others);
  }

  undo() {
    if (!this.past.length) return;
    setWidget(findWidget(this.node, "edits"), this.past.pop());
    this.show();
  }

  write(edits) {
    const kept = Object.entries(edits).filter(([, own]) => Object.keys(own).length);
    this.past.push(this.text);
    setWidget(findWidget(this.node, "edits"), kept.length ? JSON.stringify(Object.fromEntries(kept)) : "");
    this.show();
  }

  show() {
    const { facts } = this;
    const usable = Boolean(facts) && !isFed(this.node, "edits");
    this.stage.element.hidden = !facts;
    this.stage.element.inert = !usable;
    this.pages.hidden = !facts || facts.layouts.length < 2;
    const placements = this.placements();
    const chosen = placements.some(({ subject }) => subject === this.chosen);
    for (const name of ["flip", "front", "back"]) this.tools[name].disabled = !usable || !chosen;
    this.tools.undo.disabled = !this.past.length;
    this.tools.reset.disabled = !usable || !readEdits(this.text)?.[this.number];
    if (!facts) return this.tell(t("layout.empty"));
    this.which.textContent = t("layout.which", { number: this.number + 1, count: facts.layouts.length });
    const found = faults(placements, facts.width, facts.height);
    this.stage.show(facts, new Set(found.map(({ subject }) => subject)));
    const said = found.map(({ subject, hidden }) => (hidden ? t("layout.hidden", { name: subject, share: Math.round(100 * hidden) }) : t("layout.outside", { name: subject })));
    return this.tell(said.join("; ") || t("layout.fine"), said.length > 0);
  }

  tell(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bst-wrong", wrong);
  }
}

app.registerExtension({
  name: "Bestiary.LayoutEditor",
  async init() {
    addStyle();
    await loadStrings();
  },
  nodeCreated(node) {
    if (node.comfyClass !== BLOCK) return;
    const editor = new LayoutEditor(node);
    after(node, "onExecuted", (output) => editor.executed(output?.bestiary_layout?.[0]));
    after(node, "onConfigure", () => {
      editor.executed(editor.facts ?? SHOWN.get(editor.key));
      editor.follow();
    });
    after(node, "onConnectionsChange", editor.follow);
  },
});
