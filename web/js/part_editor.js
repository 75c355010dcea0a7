/** The part-map editor on Discover Parts: see the parts over the pictures; rename, merge and drop them before training. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { describeDiscovery, newestDiscovery } from "./discoveries.mjs";
import { addStyle, make, ownEvents, slider } from "./elements.mjs";
import { Panel } from "./folding.mjs";
import { after, debounced } from "./linked.mjs";
import { PartMap } from "./part_maps.mjs";
import { PartTree } from "./part_tree.mjs";
import { loadStrings, t } from "./strings.mjs";
import { findWidget, setWidget, watchWidget } from "./upstream.mjs";

const BLOCK = "BestiaryDiscoverParts";
const HEIGHT = 560;
const SIZE = [460, 900];
const PAGE = 8;
const TOOLS = ["rename", "merge", "drop", "undo", "reset"];

/** What one node shows. Edits are kept as the text of its field `edits`, the discovery they are shown for in its properties. */
class PartEditor {
  constructor(node) {
    this.node = node;
    this.widget = findWidget(node, "edits");
    Object.assign(this, { facts: null, maps: [], page: 0, only: null, shown: null, asked: 0, busy: false });
    this.build();
    this.panel = new Panel(node, { name: "part_editor", property: "bestiary_part_editor", element: this.element, height: HEIGHT, size: SIZE });
    this.head.prepend(this.panel.button);
    this.cover.show(this.opacity);
    const follow = debounced(() => this.refresh());
    watchWidget(this.widget, () => this.text !== this.shown && follow());
  }

  get opacity() {
    return this.panel?.state.opacity ?? 0.8;
  }

  get text() {
    return `${this.widget.value ?? ""}`;
  }

  build() {
    const tool = (name) => make("button", { type: "button", className: "bst-chip", textContent: t(`parts.${name}`), title: t(`parts.${name}Help`), onclick: () => this[name]() });
    this.tools = Object.fromEntries(TOOLS.map((name) => [name, tool(name)]));
    this.head = make("div", { className: "bst-tools" }, make("b", { textContent: t("parts.title") }));
    this.pictures = make("div", { className: "bst-maps" });
    this.pages = make("div", { className: "bst-pages" });
    this.cover = slider(t("parts.opacity"), { min: 0, max: 1, step: 0.05 }, (value) => {
      this.panel.remember({ opacity: value });
      this.paint();
    });
    this.tree = new PartTree({
      look: (part) => this.look(part),
      changed: () => this.enable(),
      rename: (row, name) => this.renameRow(row, name),
      drop: () => this.drop(),
      merge: () => this.merge(),
      undo: () => this.undo(),
    });
    const actions = make("div", { className: "bst-chips", role: "toolbar", "aria-label": t("parts.actions") }, ...Object.values(this.tools));
    this.status = make("p", { className: "bst-hint", role: "status" });
    this.rest = make("div", { className: "bst-parts-rest" }, this.pictures, make("div", { className: "bst-options" }, this.pages, this.cover.element), this.tree.element, actions, this.status);
    this.element = make("div", { className: "bst-editor bst-part-editor", role: "group", "aria-label": t("parts.title") }, this.head, this.rest);
    ownEvents(this.element);
  }

  /** A run ended, or failed over its edits: what it found is shown. */
  async executed(key = null) {
    const found = key ?? (await newestDiscovery(this.node));
    if (!found) return;
    this.panel.remember({ key: found });
    this.refresh();
  }

  /** Asks the server what was found and what the edits make of it. */
  async refresh() {
    const text = this.text;
    const count = (this.asked += 1);
    const found = await this.found(text);
    // a later question goes first
    if (count !== this.asked) return;
    this.show(found, text);
  }

  /** Of the discovery that belongs to the node, else of the newest that its block made. */
  async found(text) {
    const { key } = this.panel.state;
    const own = key ? await describeDiscovery(key, text) : { gone: true };
    if (!own.gone) return own;
    const newest = await newestDiscovery(this.node);
    if (!newest || newest === key) return key ? own : {};
    this.panel.remember({ key: newest });
    return describeDiscovery(newest, text);
  }

  show(found, text) {
    // a name that is being typed is not torn away
    if (this.tree.typing) {
      this.tree.typing.after = () => this.show(found, text);
      return;
    }
    if (found.key !== this.facts?.key) {
      this.page = 0;
      this.maps = Array.from({ length: found.pictures ?? 0 }, () => null);
    }
    this.facts = found.key ? found : null;
    this.shown = text;
    this.only = null;
    this.tree.show(this.facts);
    this.paint();
    const wrong = found.error ?? found.fault?.text;
    if (wrong) this.tell(wrong, true);
    else if (this.facts) this.tell(t("parts.hint", { shown: found.pictures, total: found.total }));
    else this.tell(t(found.gone ? "parts.gone" : "parts.empty"));
  }

  enable() {
    const { current, chosen } = this.tree;
    this.tools.rename.disabled = !current;
    this.tools.drop.disabled = !current || (current.kind === null && current.facts.background);
    this.tools.merge.disabled = chosen.length < 2;
    this.tools.undo.disabled = this.tools.reset.disabled = !this.facts || !this.text.trim();
  }

  /** Shows one edited part alone, with null all of them. */
  look(part) {
    if (this.only === part) return;
    this.only = part;
    this.paint();
  }

  paint() {
    const count = this.facts?.pictures ?? 0;
    const first = this.page * PAGE;
    const numbers = Array.from({ length: Math.min(PAGE, count - first) }, (_, number) => first + number);
    const maps = numbers.map((number) => (this.maps[number] ??= new PartMap(this.facts.key, number)));
    const shown = maps.map((map) => map.canvas);
    if (shown.length !== this.pictures.children.length || shown.some((canvas, place) => canvas !== this.pictures.children[place])) this.pictures.replaceChildren(...shown);
    const view = { parts: this.facts?.parts ?? [], background: this.facts?.edited.findIndex((part) => part.background), only: this.only, opacity: this.opacity };
    maps.forEach((map, place) => map.draw({ ...view, codes: this.facts.codes[numbers[place]] }));
    this.paintPages(Math.ceil(count / PAGE));
  }

  paintPages(pages) {
    if (this.pages.dataset.shown === `${pages}/${this.page}`) return;
    this.pages.dataset.shown = `${pages}/${this.page}`;
    const page = (number) => make("button", { type: "button", className: "bst-chip", "aria-pressed": `${number === this.page}`, "aria-label": t("parts.page", { number: number + 1 }), textContent: number + 1, onclick: () => this.turn(number) });
    this.pages.replaceChildren(...(pages > 1 ? Array.from({ length: pages }, (_, number) => page(number)) : []));
  }

  turn(page) {
    this.page = page;
    this.paint();
    this.pages.children[page]?.focus();
  }

  rename() {
    this.tree.rename();
  }

  renameRow({ id, kind }, typed) {
    const name = typed.replaceAll(/[\n,]/g, " ");
    if (kind === null) this.tree.renamed(id, name);
    this.append(`rename ${id}, ${name}`);
  }

  merge() {
    const { chosen } = this.tree;
    const kinds = chosen.filter(({ kind }) => kind !== null);
    if (chosen.length < 2) this.tell(t("parts.markTwo"), true);
    else if (kinds.length && (kinds.length < chosen.length || new Set(chosen.map(({ part }) => part)).size > 1)) this.tell(t("parts.notAlike"), true);
    else this.append(`merge ${chosen.map(({ id }) => id).join(", ")}`);
  }

  drop() {
    const row = this.tree.current;
    if (!row) return;
    if (row.kind === null && row.facts.background) this.tell(t("parts.noDrop"), true);
    else this.append(`drop ${row.id}`);
  }

  /** Takes the last edit back, with the remarks below it. */
  undo() {
    const lines = this.text.split("\n");
    const last = lines.findLastIndex((line) => line.trim() && !line.trim().startsWith("#"));
    if (last >= 0) this.write(lines.slice(0, last).join("\n"));
  }

  reset() {
    this.write("");
  }

  /** One more edit, kept only if it fits; others wait for what it shows. */
  async append(line) {
    if (this.busy || !this.facts) return;
    const before = this.text.trimEnd();
    const text = before ? `${before}\n${line}` : line;
    const count = (this.asked += 1);
    this.busy = true;
    const found = await describeDiscovery(this.facts.key, text);
    this.busy = false;
    // meanwhile the field was typed in: that is shown instead
    if (count !== this.asked) return;
    if (found.key && !found.fault) this.write(text, found);
    else this.tell(found.error ?? found.fault?.text ?? t("parts.gone"), true);
  }

  /** Puts a text into the field, with what it makes of the parts where that is known. */
  write(text, found = null) {
    if (found) this.show(found, text);
    setWidget(this.widget, text);
    this.enable();
  }

  tell(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bst-wrong", wrong);
  }
}

app.registerExtension({
  name: "Bestiary.PartEditor",
  async init() {
    addStyle();
    await loadStrings();
  },
  nodeCreated(node) {
    if (node.comfyClass !== BLOCK) return;
    const editor = new PartEditor(node);
    const again = debounced(() => editor.refresh());
    after(node, "onExecuted", (output) => editor.executed(output?.bestiary_discovered?.[0]?.key));
    after(node, "onConfigure", () => {
      editor.cover.show(editor.opacity);
      again();
    });
    again();
    // a run whose edits do not fit fails, but its parts were found
    const failed = ({ detail }) => {
      const id = `${detail?.node_id}`;
      if (id === `${node.id}` || id.endsWith(`:${node.id}`)) editor.executed();
    };
    api.addEventListener("execution_error", failed);
    after(node, "onRemoved", () => api.removeEventListener("execution_error", failed));
  },
});
