/** Rows of parts, and below an unfolded part its kinds: to be looked at, marked and renamed, by mouse and by keys. */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";
import { colorsOf, partColor } from "./part_maps.mjs";
import { naturalOrder } from "./part_order.mjs";

const percent = (share) => `${Math.round(100 * share)} %`;
const counted = (what, count) => t(count === 1 ? `parts.${what}One` : `parts.${what}`, { count });

/** Pixels of a kind's example: twice as many as are shown. */
const EXAMPLE = 56;

/**
 * `on` holds what happens: look(part or null), changed(), rename(row, name), drop(), merge(), undo(), redo(), and
 * example(canvas, row), which draws an example of a kind.
 */
export class PartTree {
  constructor(on) {
    this.on = on;
    this.rows = [];
    this.place = 0;
    this.marked = new Set();
    this.unfolded = new Set();
    this.typing = null;
    /** Nothing can be renamed while it is set. */
    this.locked = false;
    this.element = make("div", {
      className: "bst-tree",
      role: "tree",
      "aria-label": t("parts.tree"),
      "aria-multiselectable": "true",
      onkeydown: (event) => this.pressed(event),
      onpointerleave: () => on.look(null),
      onfocusout: (event) => !this.element.contains(event.relatedTarget) && on.look(null),
    });
  }

  /** The row in focus, or the one that was last. */
  get current() {
    return this.rows[this.place] ?? null;
  }

  get chosen() {
    return this.rows.filter(({ id }) => this.marked.has(id));
  }

  /** Shows the parts of a discovery; null shows nothing. Marks belong to what was shown before, and go. */
  show(facts) {
    const [before, now] = [this.facts?.edited ?? [], facts?.edited ?? []];
    // names alone have changed: an unfolded part stays unfolded under its new one
    if (before.length === now.length) {
      this.unfolded = new Set(now.filter((_, part) => this.unfolded.has(before[part].name)).map(({ name }) => name));
    }
    // a renamed part may stand elsewhere now
    const held = before.length === now.length ? this.current : null;
    this.facts = facts;
    this.marked.clear();
    this.list(held);
  }

  list(kept = null) {
    const held = this.element.contains(document.activeElement);
    this.colors = this.facts ? colorsOf(this.facts) : [];
    const numbered = (this.facts?.edited ?? []).map((part, number) => ({ ...part, part, number }));
    this.rows = naturalOrder(numbered).flatMap(({ part, number }) => this.rowsOf(part, number));
    const same = kept ? this.rows.findIndex(({ part, kind }) => part === kept.part && kind === kept.kind) : -1;
    this.place = same >= 0 ? same : Math.max(0, Math.min(this.place, this.rows.length - 1));
    this.element.replaceChildren(...this.rows.map((row, place) => this.drawn(row, place)));
    if (held) this.focus();
    this.on.changed();
  }

  focus() {
    this.element.children[this.place]?.focus();
  }

  /** Brings the row of a part into focus. */
  seek(part) {
    this.place = Math.max(0, this.rows.findIndex((row) => row.part === part));
    this.list();
    this.focus();
  }

  /** How edits call a part, or a kind of it. */
  idOf(part, kind) {
    const { name, kinds } = this.facts.edited[part];
    return kind === null ? name : `${name}:${kinds[kind].name ?? kind}`;
  }

  rowsOf(part, number) {
    const own = { id: this.idOf(number, null), part: number, kind: null, facts: part, title: part.name };
    if (!this.unfolded.has(part.name)) return [own];
    const kinds = part.kinds.map((facts, kind) => ({ id: this.idOf(number, kind), part: number, kind, facts, title: facts.name ?? t("parts.kind", { number: kind }) }));
    return [own, ...kinds];
  }

  drawn(row, place) {
    const { part, kind, facts, id, title } = row;
    const isPart = kind === null;
    const open = this.unfolded.has(facts.name);
    const swatch = make("span", { className: "bst-dot", "aria-hidden": "true" });
    swatch.style.background = facts.background ? "transparent" : `rgb(${partColor(this.colors[part]).join(" ")})`;
    const ground = isPart && facts.background ? `${t("parts.ground")} · ` : "";
    const share = isPart ? `${ground}${percent(facts.share)} · ${counted("kinds", facts.kinds.length)}` : counted("count", facts.count);
    const box = make("input", { type: "checkbox", tabIndex: -1, checked: this.marked.has(id), "aria-label": t("parts.mark", { name: title }), onchange: () => this.mark(place) });
    const hasKinds = isPart && facts.kinds.length > 0;
    const example = !isPart && facts.example !== null ? make("canvas", { className: "bst-example", width: EXAMPLE, height: EXAMPLE, "aria-hidden": "true" }) : null;
    if (example) this.on.example(example, row);
    return make(
      "div",
      {
        // ComfyUI's own Ctrl+Z, which hears keys before any block, leaves those alone that are typed into text areas
        type: "textarea",
        className: isPart ? "bst-tree-row" : "bst-tree-row bst-tree-kind",
        role: "treeitem",
        tabIndex: place === this.place ? 0 : -1,
        "aria-level": isPart ? "1" : "2",
        "aria-selected": `${this.marked.has(id)}`,
        "aria-expanded": hasKinds ? `${open}` : null,
        "aria-label": `${title}, ${share}`,
        onfocusin: () => this.look(place),
        onpointerenter: () => this.on.look(part),
        ondblclick: () => this.rename(place),
      },
      box,
      // for the pointer alone: keys and readers have the arrows and aria-expanded
      hasKinds ? make("span", { className: "bst-unfold", "aria-hidden": "true", textContent: open ? "▾" : "▸", onclick: () => this.unfold(place, !open) }) : null,
      swatch,
      example,
      make("span", { className: "bst-tree-name", textContent: title }),
      make("small", { textContent: share }),
    );
  }

  look(place) {
    if (place !== this.place) {
      this.place = place;
      [...this.element.children].forEach((row, other) => (row.tabIndex = other === place ? 0 : -1));
      this.on.changed();
    }
    this.on.look(this.rows[place]?.part ?? null);
  }

  mark(place) {
    const { id } = this.rows[place];
    if (!this.marked.delete(id)) this.marked.add(id);
    this.place = place;
    this.list();
  }

  unfold(place, open) {
    const { facts, kind } = this.rows[place] ?? {};
    if (kind !== null || !facts.kinds.length) return;
    if (open) this.unfolded.add(facts.name);
    else this.unfolded.delete(facts.name);
    this.place = place;
    this.list();
  }

  /** The name of a row is typed in its place; whatever comes meanwhile is done `after` it. */
  rename(place = this.place) {
    const row = this.rows[place];
    const name = this.element.children[place]?.querySelector(".bst-tree-name");
    if (!row || !name || this.typing || this.locked) return;
    const field = make("input", { type: "text", className: "bst-tree-name", value: row.title, "aria-label": t("parts.newName", { name: row.title }) });
    const typing = (this.typing = { after: null });
    const finish = (keep, refocus) => {
      if (this.typing !== typing) return;
      this.typing = null;
      const typed = field.value.trim();
      field.replaceWith(name);
      if (refocus) this.element.children[place]?.focus();
      typing.after?.();
      if (keep && typed && typed !== row.title) this.on.rename(row, typed);
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter", true);
    });
    field.addEventListener("dblclick", (event) => event.stopPropagation());
    field.addEventListener("blur", () => finish(true, false));
    name.replaceWith(field);
    field.focus();
    field.select();
  }

  pressed(event) {
    if (event.target instanceof HTMLInputElement && event.target.type === "text") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const control = event.ctrlKey || event.metaKey;
    const back = { z: () => (event.shiftKey ? this.on.redo() : this.on.undo()), y: () => this.on.redo() };
    if (event.altKey || (control && !(key in back))) return;
    const move = (place) => this.element.children[Math.max(0, Math.min(place, this.rows.length - 1))]?.focus();
    const run = {
      ArrowDown: () => move(this.place + 1),
      ArrowUp: () => move(this.place - 1),
      Home: () => move(0),
      End: () => move(this.rows.length - 1),
      ArrowRight: () => this.unfold(this.place, true),
      ArrowLeft: () => this.leave(move),
      F2: () => this.rename(),
      Enter: () => this.rename(),
      Delete: () => this.on.drop(),
      " ": () => this.rows.length && this.mark(this.place),
      m: () => this.on.merge(),
    }[key];
    const done = control ? back[key] : run;
    if (!done) return;
    // Delete would remove the node, Ctrl+Z undo in the graph
    event.preventDefault();
    event.stopPropagation();
    done();
  }

  /** From a kind to its part, from a part to its folded self. */
  leave(move) {
    const row = this.current;
    if (row && row.kind !== null) move(this.rows.findIndex((other) => other.part === row.part));
    else this.unfold(this.place, false);
  }
}
