/** The part-map editor on Discover Parts: see the parts over the pictures; rename, merge and drop them before training. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, make, ownEvents, slider } from "./elements.mjs";
import { Panel } from "./folding.mjs";
import { after, debounced } from "./linked.mjs";
import { PartMap, partColor } from "./part_maps.mjs";
import { loadStrings, t } from "./strings.mjs";
import { findWidget, setWidget, watchWidget } from "./upstream.mjs";

const BLOCK = "BestiaryDiscoverParts";
const HEIGHT = 560;
const SIZE = [460, 900];
const PAGE = 8;
const percent = (share) => `${Math.round(100 * share)} %`;

/** What one node shows; the text of its field `edits` is the only thing that is kept. */
class PartEditor {
  constructor(node) {
    this.node = node;
    this.widget = findWidget(node, "edits");
    Object.assign(this, { key: null, facts: null, maps: [], page: 0, only: null, place: 0 });
    this.marked = new Set();
    this.unfolded = new Set();
    this.build();
    this.panel = new Panel(node, { name: "part_editor", property: "bestiary_part_editor", element: this.element, height: HEIGHT, size: SIZE });
    this.head.prepend(this.panel.button);
    this.cover.show(this.opacity);
    watchWidget(this.widget, debounced(() => this.refresh()));
  }

  get opacity() {
    return this.panel?.state.opacity ?? 0.8;
  }

  build() {
    const tool = (name, run) => make("button", { type: "button", className: "bst-chip", textContent: t(`parts.${name}`), title: t(`parts.${name}Help`), onclick: run });
    this.tools = {
      rename: tool("rename", () => this.rename()),
      merge: tool("merge", () => this.merge()),
      drop: tool("drop", () => this.drop()),
      undo: tool("undo", () => this.undo()),
      reset: tool("reset", () => this.write("")),
    };
    this.head = make("div", { className: "bst-tools" }, make("b", { textContent: t("parts.title") }));
    this.pictures = make("div", { className: "bst-maps" });
    this.pages = make("div", { className: "bst-pages" });
    this.cover = slider(t("parts.opacity"), { min: 0, max: 1, step: 0.05 }, (value) => {
      this.panel.remember({ opacity: value });
      this.paint();
    });
    this.tree = make("div", { className: "bst-tree", role: "tree", "aria-label": t("parts.tree"), "aria-multiselectable": "true", onkeydown: (event) => this.pressed(event) });
    this.tree.addEventListener("pointerleave", () => this.show(null));
    const actions = make("div", { className: "bst-chips", role: "toolbar", "aria-label": t("parts.actions") }, ...Object.values(this.tools));
    this.status = make("p", { className: "bst-hint", role: "status" });
    this.rest = make("div", { className: "bst-parts-rest" }, this.pictures, make("div", { className: "bst-options" }, this.pages, this.cover.element), this.tree, actions, this.status);
    this.element = make("div", { className: "bst-editor bst-part-editor", role: "group", "aria-label": t("parts.title") }, this.head, this.rest);
    ownEvents(this.element);
  }

  /** A run ended: its discovery is shown. */
  executed(output) {
    const key = output?.bestiary_discovered?.[0]?.key;
    if (key) this.refresh(key);
  }

  /** Asks the server what was found and what the edits make of it. */
  async refresh(key = this.key) {
    const count = (this.asked = (this.asked ?? 0) + 1);
    const found = await this.fetched(key);
    // a later question, or a name that is being typed, goes first
    if (count !== this.asked) return;
    if (this.typing) {
      this.typing.after = () => this.refresh(key);
      return;
    }
    if (found.key && found.key !== this.key) {
      this.key = found.key;
      this.page = 0;
      this.maps = Array.from({ length: found.pictures }, () => null);
    }
    this.facts = found.key ? found : null;
    this.lines = this.facts ? this.rows() : [];
    const known = new Set(this.lines.map(({ id }) => id));
    this.marked = new Set([...this.marked].filter((id) => known.has(id)));
    this.only = null;
    this.list();
    this.paint();
    this.tell(found.error ?? found.fault?.text ?? (this.facts ? t("parts.hint", { shown: found.pictures, total: found.total }) : t("parts.empty")), Boolean(found.error ?? found.fault));
  }

  async fetched(key) {
    try {
      const asked = key ?? (await (await api.fetchApi(`/bestiary/discovered_by/${encodeURIComponent(this.node.id)}`)).json()).key;
      if (!asked) return {};
      const answer = await api.fetchApi(`/bestiary/discovered/${encodeURIComponent(asked)}?${new URLSearchParams({ edits: this.text })}`);
      return await answer.json();
    } catch (fault) {
      return { error: `${fault.message}` };
    }
  }

  get text() {
    return `${this.widget.value ?? ""}`;
  }

  /** One row per edited part, and below an unfolded one a row per kind. */
  rows() {
    return this.facts.edited.flatMap((part, number) => {
      const own = { id: part.name, part: number, kind: null, facts: part };
      if (!this.unfolded.has(part.name)) return [own];
      const kinds = part.kinds.map((facts, kind) => ({ id: `${part.name}:${facts.name ?? kind}`, part: number, kind, facts }));
      return [own, ...kinds];
    });
  }

  list() {
    const held = this.tree.contains(document.activeElement);
    this.place = Math.max(0, Math.min(this.place, this.lines.length - 1));
    this.tree.replaceChildren(...this.lines.map((line, place) => this.row(line, place)));
    if (held) this.tree.children[this.place]?.focus();
    const some = this.lines.length > 0;
    this.tools.rename.disabled = this.tools.drop.disabled = !some;
    this.tools.merge.disabled = this.marked.size < 2;
    this.tools.undo.disabled = this.tools.reset.disabled = !this.text.trim();
  }

  row(line, place) {
    const { part, kind, facts, id } = line;
    const swatch = make("span", { className: "bst-dot", "aria-hidden": "true" });
    swatch.style.background = facts.background ? "transparent" : `rgb(${partColor(part).join(" ")})`;
    const title = kind === null ? facts.name : (facts.name ?? t("parts.kind", { number: kind }));
    const share = kind === null ? `${percent(facts.share)} · ${t("parts.kinds", { count: facts.kinds.length })}` : t("parts.count", { count: facts.count });
    const box = make("input", { type: "checkbox", tabIndex: -1, checked: this.marked.has(id), "aria-label": t("parts.mark", { name: title }), onchange: () => this.mark(place) });
    const fold = make("button", { type: "button", className: "bst-unfold", tabIndex: -1, "aria-hidden": "true", textContent: this.unfolded.has(facts.name) ? "▾" : "▸", onclick: () => this.unfold(place, !this.unfolded.has(facts.name)) });
    const element = make(
      "div",
      {
        className: kind === null ? "bst-tree-row" : "bst-tree-row bst-tree-kind",
        role: "treeitem",
        tabIndex: place === this.place ? 0 : -1,
        "aria-level": kind === null ? "1" : "2",
        "aria-selected": `${this.marked.has(id)}`,
        "aria-expanded": kind === null && facts.kinds.length ? `${this.unfolded.has(facts.name)}` : null,
        "aria-label": `${title}, ${share}`,
        onfocus: () => this.look(place),
        onpointerenter: () => this.show(part),
        ondblclick: () => this.rename(place),
      },
      box,
      kind === null && facts.kinds.length ? fold : null,
      swatch,
      kind !== null && facts.example !== null ? this.example(facts.example) : null,
      make("span", { className: "bst-tree-name", textContent: title }),
      make("small", { textContent: share }),
    );
    return element;
  }

  example(number) {
    const route = `/bestiary/discovered/${encodeURIComponent(this.key)}/picture?number=${number}`;
    return make("img", { className: "bst-example", src: api.apiURL(route), alt: "", loading: "lazy" });
  }

  look(place) {
    this.place = place;
    [...this.tree.children].forEach((row, other) => (row.tabIndex = other === place ? 0 : -1));
    this.show(this.lines[place].part);
  }

  /** Shows one edited part alone, with null all of them. */
  show(part) {
    if (this.only === part) return;
    this.only = part;
    this.paint();
  }

  paint() {
    const count = this.facts?.pictures ?? 0;
    const first = this.page * PAGE;
    const numbers = Array.from({ length: Math.min(PAGE, count - first) }, (_, number) => first + number);
    const maps = numbers.map((number) => (this.maps[number] ??= new PartMap(this.key, number)));
    const shown = maps.map((map) => map.canvas);
    if (shown.length !== this.pictures.children.length || shown.some((canvas, place) => canvas !== this.pictures.children[place])) this.pictures.replaceChildren(...shown);
    const view = { parts: this.facts?.parts ?? [], background: this.facts?.edited.findIndex((part) => part.background), only: this.only, opacity: this.opacity };
    for (const map of maps) map.draw(view);
    const pages = Math.ceil(count / PAGE);
    const page = (number) => make("button", { type: "button", className: "bst-chip", "aria-pressed": `${number === this.page}`, "aria-label": t("parts.page", { number: number + 1 }), textContent: number + 1, onclick: () => this.turn(number) });
    if (this.pages.dataset.shown !== `${pages}/${this.page}`) {
      this.pages.dataset.shown = `${pages}/${this.page}`;
      this.pages.replaceChildren(...(pages > 1 ? Array.from({ length: pages }, (_, number) => page(number)) : []));
    }
  }

  turn(page) {
    this.page = page;
    this.paint();
    this.pages.children[page]?.focus();
  }

  mark(place) {
    const { id } = this.lines[place];
    if (!this.marked.delete(id)) this.marked.add(id);
    this.place = place;
    this.list();
  }

  unfold(place, open) {
    const { facts, kind } = this.lines[place];
    if (kind !== null || !facts.kinds.length) return;
    if (open) this.unfolded.add(facts.name);
    else this.unfolded.delete(facts.name);
    this.place = place;
    this.lines = this.rows();
    this.list();
  }

  /** The name of a row is typed in its place. */
  rename(place = this.place) {
    const line = this.lines[place];
    const name = this.tree.children[place]?.querySelector(".bst-tree-name");
    if (!line || !name) return;
    const field = make("input", { type: "text", className: "bst-tree-name", value: name.textContent, "aria-label": t("parts.newName", { name: name.textContent }) });
    const typing = (this.typing = { after: null });
    const finish = (keep) => {
      if (this.typing !== typing) return;
      this.typing = null;
      const typed = field.value.trim();
      field.replaceWith(name);
      this.tree.children[place]?.focus();
      if (keep && typed && typed !== name.textContent) this.append(`rename ${line.id}, ${typed.replaceAll(/[\n,]/g, " ")}`, { [line.id]: typed });
      else typing.after?.();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter");
    });
    field.addEventListener("blur", () => finish(true));
    name.replaceWith(field);
    field.focus();
    field.select();
  }

  merge() {
    const chosen = this.lines.filter(({ id }) => this.marked.has(id));
    const kinds = chosen.filter(({ kind }) => kind !== null);
    if (chosen.length < 2) return this.tell(t("parts.markTwo"), true);
    if (kinds.length && (kinds.length < chosen.length || new Set(chosen.map(({ part }) => part)).size > 1)) return this.tell(t("parts.notAlike"), true);
    this.marked.clear();
    return this.append(`merge ${chosen.map(({ id }) => id).join(", ")}`);
  }

  drop() {
    const line = this.lines[this.place];
    if (line) this.append(`drop ${line.id}`);
  }

  undo() {
    const lines = this.text.trimEnd().split("\n");
    this.write(lines.slice(0, -1).join("\n"));
  }

  append(line, renamed = {}) {
    for (const [before, now] of Object.entries(renamed)) if (this.unfolded.delete(before)) this.unfolded.add(now);
    const before = this.text.trimEnd();
    this.write(before ? `${before}\n${line}` : line);
  }

  write(text) {
    setWidget(this.widget, text);
  }

  pressed(event) {
    if (event.target instanceof HTMLInputElement && event.target.type === "text") return;
    const undo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
    if (!undo && (event.ctrlKey || event.metaKey || event.altKey)) return;
    const move = (place) => this.tree.children[Math.max(0, Math.min(place, this.lines.length - 1))]?.focus();
    const run = {
      ArrowDown: () => move(this.place + 1),
      ArrowUp: () => move(this.place - 1),
      Home: () => move(0),
      End: () => move(this.lines.length - 1),
      ArrowRight: () => this.unfold(this.place, true),
      ArrowLeft: () => this.unfold(this.place, false),
      F2: () => this.rename(),
      Enter: () => this.rename(),
      Delete: () => this.drop(),
      " ": () => this.mark(this.place),
      m: () => this.merge(),
    }[event.key];
    const chosen = undo ? () => this.undo() : run;
    if (!chosen) return;
    // Delete would remove the node, Ctrl+Z undo in the graph
    event.preventDefault();
    event.stopPropagation();
    chosen();
  }

  tell(text, wrong) {
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
    const again = debounced(() => editor.refresh(null));
    after(node, "onExecuted", (output) => editor.executed(output));
    after(node, "onConfigure", () => {
      editor.cover.show(editor.opacity);
      again();
    });
    again();
    // a run whose edits do not fit fails, but its parts were found
    const failed = ({ detail }) => `${detail?.node_id}` === `${node.id}` && editor.refresh(null);
    api.addEventListener("execution_error", failed);
    after(node, "onRemoved", () => api.removeEventListener("execution_error", failed));
  },
});
