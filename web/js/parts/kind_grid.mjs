/** Thumbnails of kinds in rows. Only what can be seen exists, so five thousand kinds scroll like fifty. */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";

const EDGE = 64;
const WIDTH = EDGE + 10;
const HEIGHT = EDGE + 26;
/** Rows made beyond what can be seen, above and below. */
const SPARE = 2;
/** Tiles made so far, for their ids. */
let made = 0;

/** A list box of kinds; `events` has pick(kind), second(kind) and favourite(kind). */
export class KindGrid {
  constructor(events) {
    this.events = events;
    this.kinds = [];
    this.marks = new Map();
    this.favourites = new Set();
    this.active = 0;
    this.columns = 1;
    this.tiles = [];
    this.spacer = make("div", { className: "bst-spacer", role: "presentation" });
    this.empty = make("p", { className: "bst-empty", hidden: true });
    this.element = make(
      "div",
      { className: "bst-grid", role: "listbox", tabIndex: 0, "aria-label": t("picker.kinds"), onkeydown: (event) => this.keyed(event) },
      this.spacer,
      this.empty,
    );
    this.element.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => this.measure()).observe(this.element);
  }

  /** Shows other kinds; `marks` says of a chosen kind "first" or "second". */
  show({ kinds, marks, favourites, label, emptyText }) {
    const same = kinds.length === this.kinds.length && kinds.every((kind, place) => kind === this.kinds[place]);
    Object.assign(this, { kinds, marks, favourites });
    this.element.setAttribute("aria-label", label);
    this.empty.textContent = emptyText;
    this.empty.hidden = kinds.length > 0;
    if (!same) {
      const chosen = kinds.findIndex((kind) => marks.get(kind) === "first");
      this.active = Math.max(0, chosen);
      for (const tile of this.tiles) tile.shown = null;
      this.measure();
      this.reveal(this.active);
    }
    this.render(true);
  }

  measure() {
    const { clientWidth } = this.element;
    if (!clientWidth) return;
    this.columns = Math.max(1, Math.floor(clientWidth / WIDTH));
    // what is left over is shared out, so that rows fill the width
    this.step = clientWidth / this.columns;
    this.spacer.style.height = `${Math.ceil(this.kinds.length / this.columns) * HEIGHT}px`;
    this.render(true);
  }

  later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.render(false);
    });
  }

  render(all) {
    const { scrollTop, clientHeight } = this.element;
    if (!clientHeight) return;
    const firstRow = Math.max(0, Math.floor(scrollTop / HEIGHT) - SPARE);
    const rows = Math.ceil(clientHeight / HEIGHT) + 2 * SPARE + 1;
    const first = firstRow * this.columns;
    const last = Math.min(this.kinds.length, first + rows * this.columns);
    this.prepare(rows * this.columns);
    const count = this.tiles.length;
    for (let offset = 0; offset < count; offset += 1) {
      // a kind keeps its tile while both scroll by
      const place = first + offset;
      const tile = this.tiles[place % count];
      if (place >= last) tile.element.hidden = true;
      else if (all || tile.shown !== this.kinds[place] || tile.element.hidden) this.fill(tile, place);
    }
    this.element.setAttribute("aria-activedescendant", this.kinds.length ? this.tileOf(this.active)?.id ?? "" : "");
  }

  prepare(count) {
    while (this.tiles.length < count) {
      const star = make("span", { className: "bst-star", "aria-hidden": "true", textContent: "★" });
      const picture = make("span", { className: "bst-thumb" }, star);
      const name = make("span", { className: "bst-name" });
      const element = make("div", { className: "bst-tile", role: "option", id: `bst-tile-${(made += 1)}` }, picture, name);
      const tile = { element, picture, name, star, shown: null };
      element.addEventListener("click", (event) => this.clicked(tile, event));
      this.tiles.push(tile);
      this.spacer.append(element);
      // places are counted modulo the number of tiles, so all of them move
      for (const other of this.tiles) other.shown = null;
    }
  }

  fill(tile, place) {
    const kind = this.kinds[place];
    const { element, picture, name } = tile;
    const mark = this.marks.get(kind);
    tile.shown = kind;
    tile.place = place;
    element.hidden = false;
    const left = (place % this.columns) * this.step + (this.step - WIDTH) / 2;
    element.style.transform = `translate(${left}px, ${Math.floor(place / this.columns) * HEIGHT}px)`;
    const painted = kind.part.owner.paint(picture, kind, EDGE);
    picture.classList.toggle("bst-blank", !painted);
    picture.dataset.label = painted ? "" : kind.label.slice(0, 8);
    name.textContent = kind.label;
    element.title = kind.name === null ? kind.label : `${kind.label} (${kind.number})`;
    element.dataset.mark = mark ?? "";
    element.dataset.number = kind.number;
    element.classList.toggle("bst-active", place === this.active);
    element.classList.toggle("bst-favourite", this.favourites.has(kind));
    element.setAttribute("aria-selected", `${Boolean(mark)}`);
    element.setAttribute("aria-label", this.spoken(kind, mark));
    element.setAttribute("aria-posinset", place + 1);
    element.setAttribute("aria-setsize", this.kinds.length);
  }

  spoken(kind, mark) {
    const facts = [kind.label];
    if (mark) facts.push(t(`picker.${mark === "linked" ? "linkedMark" : mark}`));
    if (this.favourites.has(kind)) facts.push(t("picker.favourite"));
    return facts.join(", ");
  }

  clicked(tile, event) {
    this.active = tile.place;
    this.choose(tile.shown, event);
  }

  choose(kind, event) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) this.events.second(kind);
    else this.events.pick(kind);
  }

  keyed(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / HEIGHT)) * this.columns;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page };
    const kind = this.kinds[this.active];
    if (event.key in moves) this.move(this.active + moves[event.key]);
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(this.kinds.length - 1);
    else if (kind && !event.ctrlKey && (event.key === "Enter" || event.key === " ")) this.choose(kind, event);
    else if (kind && event.key === "f" && !event.ctrlKey && !event.metaKey) this.events.favourite(kind);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(place) {
    this.active = Math.min(this.kinds.length - 1, Math.max(0, place));
    this.reveal(this.active);
    this.render(true);
  }

  reveal(place) {
    const top = Math.floor(place / this.columns) * HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top + HEIGHT - clientHeight;
  }

  tileOf(place) {
    const tile = this.tiles[place % this.tiles.length];
    return tile?.place === place ? tile.element : null;
  }
}
