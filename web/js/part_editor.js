/** The part-map editor on Discover Parts: see the parts over the pictures; rename, merge and drop them before training. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, make, ownEvents, slider } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { executionIds, isFed } from "./host/links.mjs";
import { after, debounced } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, setWidget, watchWidget } from "./host/widgets.mjs";
import { describeDiscovery, newestDiscovery } from "./parts/discoveries.mjs";
import { plainName } from "./parts/mentions.mjs";
import { PartMap, colorsOf } from "./parts/part_maps.mjs";
import { readableName } from "./parts/part_order.mjs";
import { PartTree } from "./parts/part_tree.mjs";

const BLOCK = "BestiaryDiscoverParts";
const HEIGHT = 560;
const SIZE = [460, 900];
const PAGE = 8;
const TOOLS = ["rename", "merge", "drop", "readable", "undo", "reset"];

/** What one node shows. Edits are kept as the text of its field `edits`, the discovery they are shown for in its properties. */
class PartEditor {
  constructor(node) {
    this.node = node;
    Object.assign(this, { facts: null, maps: [], page: 0, only: null, shown: null, used: null, moves: 0 });
    /** Texts before and after what the page itself wrote, for undo and redo. */
    Object.assign(this, { past: [], future: [], written: null });
    /** Whatever asks the server is done one after the other. */
    this.work = Promise.resolve();
    this.build();
    this.panel = new Panel(node, { name: "part_editor", property: "bestiary_part_editor", element: this.element, height: HEIGHT, size: SIZE });
    this.head.prepend(this.panel.button);
    this.cover.show(this.opacity);
    this.follow = debounced(() => this.refresh());
    watchWidget(ownWidget(node, "edits"), () => this.text !== this.shown && this.follow());
  }

  get widget() {
    return findWidget(this.node, "edits");
  }

  get opacity() {
    return this.panel?.state.opacity ?? 0.8;
  }

  /** Whether the edits come from another block; then the last run knows them. */
  get linked() {
    return isFed(this.node, "edits");
  }

  get text() {
    return `${(this.linked ? this.used : this.widget.value) ?? ""}`;
  }

  build() {
    const tool = (name) => make("button", { type: "button", className: "bst-chip", textContent: t(`parts.${name}`), title: t(`parts.${name}Help`), onclick: () => this[name]() });
    this.tools = Object.fromEntries(TOOLS.map((name) => [name, tool(name)]));
    this.head = make("div", { className: "bst-tools" }, make("b", { textContent: t("parts.title") }));
    this.pictures = make("div", { className: "bst-maps", onpointerleave: () => this.look(null) });
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
      redo: () => this.redo(),
      example: (canvas, { part, facts }) => this.map(facts.example).cutOut(canvas, part, this.view(facts.example)),
    });
    const actions = make("div", { className: "bst-chips", role: "toolbar", "aria-label": t("parts.actions") }, ...Object.values(this.tools));
    this.status = make("p", { className: "bst-hint", role: "status" });
    this.rest = make("div", { className: "bst-parts-rest" }, this.pictures, make("div", { className: "bst-options" }, this.pages, this.cover.element), this.tree.element, actions, this.status);
    this.element = make("div", { className: "bst-editor bst-part-editor", role: "group", "aria-label": t("parts.title") }, this.head, this.rest);
    ownEvents(this.element);
  }

  /** Does `job` after all that was asked before it. */
  inTurn(job) {
    this.work = this.work.then(job).catch((fault) => this.tell(fault.message, true));
    return this.work;
  }

  /** A run ended, or failed over its edits: what it found is shown. */
  async executed({ key = null, edits = null } = {}) {
    const found = key ?? (await newestDiscovery(this.node));
    if (!found) return;
    if (edits !== null) this.used = edits;
    this.panel.remember({ key: found });
    this.refresh();
  }

  /** Asks the server what was found and what the edits make of it. */
  refresh() {
    return this.inTurn(async () => {
      const { text } = this;
      const found = await this.found(text);
      // the field was typed in meanwhile
      if (text === this.text) this.show(found, text);
      else this.follow();
    });
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
    // what cannot be asked now is shown as it was
    if (found.error) {
      this.tell(found.error, true);
      return;
    }
    if (found.key !== this.facts?.key) {
      this.page = 0;
      this.maps = [];
    }
    // numbers of parts or kinds may stand for others now
    if (numbered(found) !== numbered(this.facts)) this.moves += 1;
    this.facts = found.key ? found : null;
    this.shown = text;
    this.only = null;
    this.tree.show(this.facts);
    this.paint();
    if (found.fault) this.tell(found.fault.text, true);
    else this.tell(this.hint(found));
  }

  hint({ gone, pictures, total }) {
    if (!this.facts) return t(gone ? "parts.gone" : "parts.empty");
    if (this.linked) return t("parts.linked");
    const stale = this.used !== null && this.used.trim() !== this.text.trim();
    return t(stale ? "parts.stale" : "parts.hint", { shown: pictures, total });
  }

  enable() {
    const { current, chosen } = this.tree;
    const free = Boolean(this.facts) && !this.linked;
    this.tree.locked = !free;
    this.tools.rename.disabled = !free || !current;
    this.tools.drop.disabled = !free || !current || (current.kind === null && current.facts.background);
    this.tools.merge.disabled = !free || chosen.length < 2;
    this.tools.readable.hidden = !free || !this.unreadable().length;
    this.tools.undo.disabled = !free || !(this.text.trim() || this.past.length);
    this.tools.reset.disabled = !free || !this.text.trim();
  }

  /** Shows one edited part alone, with null all of them. */
  look(part) {
    if (this.only === part) return;
    this.only = part;
    this.paint();
  }

  /** A picture of the discovery by its number; one that could not be fetched is fetched again. */
  map(number) {
    if (!this.maps[number] || this.maps[number].failed) {
      const map = new PartMap(this.facts.key, number);
      const part = (event) => map.partAt(event, this.view(number));
      map.canvas.addEventListener("pointermove", (event) => {
        const facts = this.facts?.edited[part(event)];
        map.canvas.title = facts?.name ?? "";
        this.look(facts && !facts.background ? part(event) : null);
      });
      map.canvas.addEventListener("click", (event) => part(event) !== null && this.tree.seek(part(event)));
      this.maps[number] = map;
    }
    return this.maps[number];
  }

  view(number) {
    const { parts, edited, codes } = this.facts ?? { parts: [], edited: [], codes: [] };
    return { parts, colors: colorsOf({ parts, edited }), codes: codes[number] ?? [], background: edited.findIndex((part) => part.background), only: this.only, opacity: this.opacity };
  }

  paint() {
    const count = this.facts?.pictures ?? 0;
    const first = this.page * PAGE;
    const numbers = Array.from({ length: Math.min(PAGE, count - first) }, (_, number) => first + number);
    const shown = numbers.map((number) => this.map(number).canvas);
    if (shown.length !== this.pictures.children.length || shown.some((canvas, place) => canvas !== this.pictures.children[place])) this.pictures.replaceChildren(...shown);
    for (const number of numbers) this.map(number).draw(this.view(number));
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
    if (!this.tools.rename.disabled) this.tree.rename();
  }

  renameRow(row, typed) {
    this.append([row], ([id]) => `rename ${id}, ${typed.replaceAll(/[\s,]+/g, " ")}`);
  }

  /** Parts whose names people would write otherwise, with the names they would give: [{part, name}]. */
  unreadable() {
    const { edited } = this.facts ?? { edited: [] };
    const taken = new Set(edited.map(({ name }) => plainName(name)));
    return edited.flatMap(({ name, background }, part) => {
      const right = readableName(name);
      if (background || right === name || (plainName(right) !== plainName(name) && taken.has(plainName(right)))) return [];
      taken.add(plainName(right));
      return [{ part, name: right }];
    });
  }

  /** Gives all of them those names. */
  readable() {
    const wanted = this.unreadable();
    if (!wanted.length) return;
    this.append(wanted.map(({ part }) => ({ part, kind: null })), (ids) => ids.map((id, place) => `rename ${id}, ${wanted[place].name}`).join("\n"));
  }

  merge() {
    const { chosen } = this.tree;
    const kinds = chosen.filter(({ kind }) => kind !== null);
    if (chosen.length < 2) this.tell(t("parts.markTwo"), true);
    else if (kinds.length && (kinds.length < chosen.length || new Set(chosen.map(({ part }) => part)).size > 1)) this.tell(t("parts.notAlike"), true);
    else this.append(chosen, (ids) => `merge ${ids.join(", ")}`);
  }

  drop() {
    const row = this.tree.current;
    if (!row) return;
    if (row.kind === null && row.facts.background) this.tell(t("parts.noDrop"), true);
    else this.append([row], ([id]) => `drop ${id}`);
  }

  /** What the page wrote last is taken back; else the last line, with the remarks below it. */
  undo() {
    this.inTurn(() => {
      if (this.linked) return;
      if (this.past.length && this.text === this.written) {
        this.future.push(this.text);
        this.write(this.past.pop());
        return;
      }
      const lines = this.text.split("\n");
      const last = lines.findLastIndex((line) => line.trim() && !line.trim().startsWith("#"));
      if (last < 0) return;
      this.future = [this.text];
      this.past = [];
      this.write(lines.slice(0, last).join("\n"));
    });
  }

  redo() {
    this.inTurn(() => {
      if (this.linked || !this.future.length || this.text !== this.written) return;
      this.past.push(this.text);
      this.write(this.future.pop());
    });
  }

  reset() {
    this.inTurn(() => {
      if (this.linked) return;
      this.past = [...(this.text === this.written ? this.past : []), this.text];
      this.future = [];
      this.write("");
    });
  }

  /** One more edit of these rows, kept only if it fits; edits wait for those before them. */
  append(rows, line) {
    const { moves } = this;
    return this.inTurn(async () => {
      if (this.linked || !this.facts) return;
      // names may have changed since, numbers must not have
      if (moves !== this.moves) {
        this.tell(t("parts.changed"), true);
        return;
      }
      const ids = rows.map(({ part, kind }) => this.tree.idOf(part, kind));
      const before = this.text;
      const text = before.trim() ? `${before.trimEnd()}\n${line(ids)}` : line(ids);
      const found = await describeDiscovery(this.facts.key, text);
      if (before !== this.text) this.tell(t("parts.changed"), true);
      else if (found.key && !found.fault) this.keep(before, text, found);
      // of an edit by hand the cause is enough, of a line above it the line is told too
      else this.tell(found.error ?? (found.fault?.line === text.split("\n").length ? found.fault.cause : found.fault?.text) ?? t("parts.gone"), true);
    });
  }

  keep(before, text, found) {
    this.past = [...(before === this.written ? this.past : []), before];
    this.future = [];
    this.written = this.shown = text;
    setWidget(this.widget, text);
    this.show(found, text);
  }

  /** Puts a text into the field; the parts follow. */
  write(text) {
    const focused = document.activeElement;
    this.written = text;
    setWidget(this.widget, text);
    this.enable();
    // a button that is of no use any more would lose the focus to the page
    if (this.element.contains(focused) && focused.disabled) this.tree.focus();
  }

  tell(text, wrong = false) {
    this.status.textContent = text;
    this.status.classList.toggle("bst-wrong", wrong);
  }
}

/** What the numbers of parts and kinds stand for, whatever their names are. */
function numbered(facts) {
  return JSON.stringify([facts?.key, facts?.parts, facts?.edited?.map(({ kinds }) => kinds.map(({ count, example }) => [count, example]))]);
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
    after(node, "onExecuted", (output) => editor.executed(output?.bestiary_discovered?.[0]));
    after(node, "onConfigure", () => {
      editor.cover.show(editor.opacity);
      editor.follow();
    });
    // the field may be linked now
    after(node, "onConnectionsChange", editor.follow);
    editor.follow();
    const listeners = {
      // a run whose edits do not fit fails, but its parts were found
      execution_error: ({ detail }) => {
        if (executionIds(node).includes(`${detail?.node_id}`)) editor.executed();
      },
      // a block that had nothing to do says nothing
      execution_success: () => !editor.facts && editor.executed(),
    };
    for (const [name, listener] of Object.entries(listeners)) api.addEventListener(name, listener);
    after(node, "onRemoved", () => {
      for (const [name, listener] of Object.entries(listeners)) api.removeEventListener(name, listener);
    });
  },
});
