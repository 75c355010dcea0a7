/** A canvas with cut-outs that people drag, resize and turn by pointer and by keys. */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";
import { resized, turned } from "./placements.mjs";

const TALLEST = 310;
const STEP = 1;
const LARGE_STEP = 10;
const GROWTH = 1.05;
const TURN = 5;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * `owner` has: placements() from back to front, chosen, choose(name), preview(placement) while something is dragged, keep(placement)
 * at its end, flip(), order(step), undo().
 */
export class Stage {
  constructor(owner) {
    this.owner = owner;
    const handle = (kind) => make("span", { className: `bst-handle bst-${kind}`, title: t(`layout.${kind}`) });
    // above all subjects, so that none of them lies on the handles
    this.frame = make("div", { className: "bst-frame", hidden: true }, handle("resize"), handle("turn"));
    this.frame.addEventListener("pointerdown", (event) => this.grab(event, owner.chosen, this.frame));
    this.element = make("div", { className: "bst-scene" }, this.frame);
    this.parts = new Map();
    this.element.addEventListener("keydown", (event) => this.typed(event));
  }

  /** Draws subjects anew where they are others, and moves those that are there. */
  show({ width, height, subjects }, faulty) {
    const placements = this.owner.placements();
    this.width = width;
    // a tall canvas is shown whole too
    Object.assign(this.element.style, { aspectRatio: `${width} / ${height}`, maxWidth: `${Math.round((TALLEST * width) / height)}px` });
    const names = placements.map(({ subject }) => subject);
    for (const [name, part] of this.parts) if (!names.includes(name) || part.dataset.picture !== subjects[name].picture) this.forget(name);
    for (const [order, one] of placements.entries()) {
      const part = this.parts.get(one.subject) ?? this.add(one.subject, subjects[one.subject].picture);
      const place = {
        left: `${(100 * one.x) / width}%`,
        top: `${(100 * one.y) / height}%`,
        width: `${(100 * one.width) / width}%`,
        height: `${(100 * one.height) / height}%`,
        transform: `rotate(${one.turn}deg)`,
      };
      Object.assign(part.style, place, { zIndex: order });
      if (this.owner.chosen === one.subject) Object.assign(this.frame.style, place, { zIndex: placements.length });
      part.firstChild.style.transform = one.flip ? "scaleX(-1)" : "";
      part.classList.toggle("bst-faulty", faulty.has(one.subject));
      part.classList.toggle("bst-grabbed", this.owner.chosen === one.subject);
      part.setAttribute("aria-pressed", `${this.owner.chosen === one.subject}`);
    }
    this.frame.hidden = !names.includes(this.owner.chosen);
  }

  add(name, picture) {
    const image = make("img", { src: picture, alt: "", draggable: false });
    const label = t("layout.subject", { name });
    const part = make("div", { className: "bst-subject", tabIndex: 0, role: "button", title: name, "aria-label": label }, image);
    Object.assign(part.dataset, { subject: name, picture });
    part.addEventListener("pointerdown", (event) => this.grab(event, name, part));
    part.addEventListener("focus", () => this.owner.choose(name));
    this.parts.set(name, part);
    this.element.append(part);
    return part;
  }

  forget(name) {
    this.parts.get(name).remove();
    this.parts.delete(name);
  }

  focus(name) {
    this.parts.get(name)?.focus();
  }

  /** Follows the pointer until it is let go. */
  grab(event, name, holder) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.focus(name);
    const start = this.owner.placements().find(({ subject }) => subject === name);
    const frame = this.element.getBoundingClientRect();
    const scale = this.width / frame.width;
    const at = ({ clientX, clientY }) => [(clientX - frame.left) * scale, (clientY - frame.top) * scale];
    const [fromX, fromY] = at(event);
    const [middle, centre] = [start.x + start.width / 2, start.y + start.height / 2];
    const kind = event.target.classList.contains("bst-resize") ? "resize" : event.target.classList.contains("bst-turn") ? "turn" : "move";
    let last = start;
    const moved = (now) => {
      const [x, y] = at(now);
      if (kind === "move") last = { ...start, x: start.x + x - fromX, y: start.y + y - fromY };
      else if (kind === "turn") last = turned(start, (Math.atan2(x - middle, centre - y) * 180) / Math.PI);
      else last = resized(start, (start.width * Math.hypot(x - middle, y - centre)) / Math.hypot(fromX - middle, fromY - centre));
      this.owner.preview(last);
    };
    const done = (end) => {
      holder.removeEventListener("pointermove", moved);
      holder.removeEventListener("pointerup", done);
      holder.removeEventListener("pointercancel", done);
      if (end.type === "pointerup" && last !== start) this.owner.keep(last);
      else this.owner.preview(null);
    };
    holder.setPointerCapture(event.pointerId);
    holder.addEventListener("pointermove", moved);
    holder.addEventListener("pointerup", done);
    holder.addEventListener("pointercancel", done);
  }

  typed(event) {
    const one = this.owner.placements().find(({ subject }) => subject === this.owner.chosen);
    // Ctrl+Z is the graph's own, which holds the edits too
    if (!one || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = event.shiftKey ? LARGE_STEP : STEP;
    const keep = (changed) => () => this.owner.keep(changed);
    const [right, down] = MOVES[event.key] ?? [0, 0];
    const actions = {
      ...Object.fromEntries(Object.keys(MOVES).map((key) => [key, keep({ ...one, x: one.x + right * step, y: one.y + down * step })])),
      "+": keep(resized(one, one.width * GROWTH)),
      "-": keep(resized(one, one.width / GROWTH)),
      ",": keep(turned(one, one.turn - TURN)),
      ".": keep(turned(one, one.turn + TURN)),
      f: () => this.owner.flip(),
      z: () => this.owner.undo(),
      PageUp: () => this.owner.order(1),
      PageDown: () => this.owner.order(-1),
    };
    const action = actions[event.key];
    if (!action) return;
    // the graph has the same keys for its own
    event.preventDefault();
    event.stopPropagation();
    action();
  }
}
