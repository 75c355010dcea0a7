/** The part picker: parts on the left, thumbnails of the kinds of one part on the right, weight and blend below. */

import { iconButton, make, ownEvents, slider } from "../host/elements.mjs";
import { refill } from "../host/pressed.mjs";
import { t } from "../host/strings.mjs";
import { KindGrid } from "./kind_grid.mjs";
import { plainName } from "./mentions.mjs";
import { SLOTS, Sources } from "./sources.mjs";

const THUMB = 30;

/**
 * `model` keeps what is not on the screen: set() the dictionaries, read() and write(part, pick) the picks, state and remember(changes),
 * linkedParts() those that come from elsewhere, with canReplace(linked) and replace(part, linked, kinds), notice() words of the last
 * run or null, favourites() and favour(kind), chooser() the files to choose from or null, message() a fault to show or null.
 */
export class PickerView {
  constructor(model) {
    this.model = model;
    this.search = "";
    this.onlyFavourites = false;
    this.grid = new KindGrid({
      pick: (kind) => this.pick(kind),
      second: (kind) => this.second(kind),
      favourite: (kind) => this.model.favour(kind),
    });
    this.sources = new Sources(this);
    this.build();
    ownEvents(this.element);
  }

  build() {
    this.searchBox = make("input", {
      type: "search",
      placeholder: t("picker.search"),
      "aria-label": t("picker.search"),
      oninput: () => this.setSearch(this.searchBox.value),
      onkeydown: (event) => this.searchKey(event),
    });
    this.starButton = iconButton("star", t("picker.onlyFavourites"), () => this.toggleFavourites(), { "aria-pressed": "false" });
    this.mixButton = iconButton("mix", t("picker.mix"), () => this.model.remember({ mix: !this.model.state.mix }), { "aria-pressed": "false" });
    this.chooser = make("select", { className: "bst-chooser", "aria-label": t("picker.dictionary"), hidden: true });
    this.chooser.addEventListener("change", () => this.model.choose(this.chooser.value));
    this.partList = make("div", { className: "bst-parts", role: "radiogroup", "aria-label": t("picker.parts"), onkeydown: (event) => this.partKey(event) });
    this.status = make("div", { className: "bst-status", role: "status", "aria-live": "polite" });
    this.weight = slider(t("picker.weight"), { min: 0, max: 2, step: 0.05 }, (value) => this.change({ weight: value }));
    this.blend = slider(t("picker.blend"), { min: 0, max: 1, step: 0.05 }, (value) => this.setBlend(value));
    this.removeSecond = iconButton("clear", t("picker.removeSecond"), () => this.dropSecond());
    this.blend.element.append(this.removeSecond);
    this.hint = make("span", { className: "bst-hint", textContent: t("picker.blendHint") });
    this.tools = make(
      "div",
      { className: "bst-tools", role: "toolbar", "aria-label": t("picker.tools") },
      this.searchBox,
      this.starButton,
      this.mixButton,
      iconButton("dice", t("picker.random"), () => this.pickMany(this.randomKinds())),
      iconButton("clear", t("picker.clear"), () => this.clear()),
    );
    this.detail = make("div", { className: "bst-detail" }, this.weight.element, this.blend.element, this.hint);
    this.element = make(
      "div",
      { className: "bst-picker", role: "group", "aria-label": t("picker.title") },
      this.chooser,
      this.tools,
      this.sources.element,
      make("div", { className: "bst-body" }, this.partList, this.grid.element),
      this.detail,
      this.status,
    );
  }

  /** Everything anew from the model; cheap enough to be called after every change. */
  refresh() {
    this.showChooser();
    const { picks, faults } = this.model.read();
    this.picks = picks;
    this.linked = this.model.linkedParts();
    if (this.asked && !this.linked.has(this.asked.part)) this.asked = null;
    const parts = this.parts();
    this.activePart = parts.find((part) => this.key(part) === this.model.state.part) ?? [...picks.keys()][0] ?? parts[0] ?? null;
    this.element.classList.toggle("bst-without", !parts.length);
    this.starButton.setAttribute("aria-pressed", `${this.onlyFavourites}`);
    this.mixButton.setAttribute("aria-pressed", `${Boolean(this.model.state.mix)}`);
    this.mixButton.hidden = Boolean(this.model.single);
    this.sources.show(Boolean(this.model.state.mix) && parts.length > 0);
    this.showParts(parts);
    this.showGrid();
    this.showDetail();
    this.showStatus(faults);
  }

  /** Parts that can be picked; backgrounds come last. */
  parts() {
    const { parts } = this.model.set();
    return [...parts.filter((part) => !part.background), ...parts.filter((part) => part.background)];
  }

  key(part) {
    return `${part.owner.called}/${part.number}`;
  }

  get state() {
    return this.model.state;
  }

  remember(changes) {
    this.model.remember(changes);
  }

  showChooser() {
    const files = this.model.chooser();
    this.chooser.hidden = !files;
    if (!files) return;
    const chosen = this.model.state.file ?? "";
    const options = [make("option", { value: "", textContent: t("picker.chooseDictionary") })];
    options.push(...files.map(({ name, called }) => make("option", { value: name, textContent: called })));
    this.chooser.replaceChildren(...options);
    this.chooser.value = chosen;
  }

  showParts(parts) {
    const picked = parts.map((part) => {
      const pick = this.picks.get(part);
      const linked = this.linked.get(part);
      return [this.key(part), pick?.weight, pick?.kinds.map(({ kind, factor }) => [kind.number, factor]), linked && [linked.kinds?.map(({ kind }) => kind.number), linked.source.title]];
    });
    const { mix, a, b } = this.state;
    const shown = JSON.stringify([picked, this.key(this.activePart ?? { owner: {} }), mix, a, b]);
    // buttons under the pointer or the focus stay what they are while nothing changes
    if (shown === this.shownParts && this.shownSet === this.model.set()) return;
    Object.assign(this, { shownParts: shown, shownSet: this.model.set() });
    const focused = this.partList.contains(document.activeElement);
    this.partList.replaceChildren(...parts.map((part) => this.partRow(part)));
    if (focused) this.partList.querySelector('[aria-checked="true"]')?.focus();
  }

  partRow(part) {
    const pick = this.picks.get(part);
    const active = part === this.activePart;
    const several = this.model.set().all.length > 1;
    const label = several ? `${part.owner.called}.${part.name}` : part.name;
    const linked = this.linked.get(part);
    const named = (kinds) => kinds.map(({ kind }) => kind.label).join(" + ");
    const byLink = linked && t("picker.byLink", { kind: linked.kinds ? named(linked.kinds) : "?" });
    const said = [pick && named(pick.kinds), byLink].filter(Boolean).join(" & ") || "–";
    const weight = pick && pick.weight !== 1 ? make("span", { className: "bst-badge", textContent: `×${Number(pick.weight.toFixed(2))}` }) : null;
    const kinds = [...(pick?.kinds ?? []), ...(linked?.kinds ?? [])].slice(0, 2);
    const thumbs = kinds.map(({ kind }) => this.thumb(kind, THUMB / kinds.length, ""));
    const button = make(
      "button",
      {
        type: "button",
        className: "bst-part",
        role: "radio",
        "aria-checked": `${active}`,
        "aria-label": `${label}: ${pick || linked ? said : t("picker.nothing")}`,
        title: linked ? t("picker.linkedFrom", { part: label, title: linked.source.title ?? "" }) : null,
        tabIndex: active ? 0 : -1,
        onclick: () => this.remember({ part: this.key(part) }),
      },
      make("span", { className: "bst-chosen" }, ...thumbs),
      make("span", { className: "bst-words" }, make("b", { textContent: label }), make("small", { textContent: said })),
      weight,
    );
    const row = make("div", { className: "bst-row" }, button);
    row.dataset.part = part.name;
    row.classList.toggle("bst-linked", Boolean(linked));
    row.classList.toggle("bst-double", Boolean(linked && pick));
    if (this.model.state.mix) row.append(...SLOTS.map((slot) => this.sourceButton(slot, part, label)));
    if (pick) row.append(iconButton("clear", t("picker.remove", { part: label }), () => this.model.write(part, null), { className: "bst-icon bst-remove" }));
    return row;
  }

  sourceButton(slot, part, label) {
    const letter = slot.toUpperCase();
    const kinds = this.sources.of(slot, part);
    return make("button", {
      type: "button",
      className: "bst-letter",
      textContent: letter,
      disabled: !kinds,
      title: t("picker.fromSource", { part: label, letter }),
      "aria-label": t("picker.fromSource", { part: label, letter }),
      onclick: () => this.pickMany(new Map([[part, kinds]])),
    });
  }

  thumb(kind, edge, title) {
    const picture = make("span", { className: "bst-mini", title });
    picture.style.setProperty("--edge", `${edge}px`);
    if (!kind.part.owner.paint(picture, kind, THUMB)) picture.textContent = kind.label.slice(0, 3);
    return picture;
  }

  showGrid() {
    const part = this.activePart;
    const favourites = this.model.favourites();
    const wanted = plainName(this.search);
    const fits = (kind) => !wanted || `${kind.number}` === wanted || plainName(kind.label).includes(wanted);
    const kinds = (part?.kinds ?? []).filter((kind) => fits(kind) && (!this.onlyFavourites || favourites.has(kind)));
    const marks = new Map((this.linked.get(part)?.kinds ?? []).map(({ kind }) => [kind, "linked"]));
    (this.picks.get(part)?.kinds ?? []).forEach(({ kind }, place) => marks.set(kind, place ? "second" : "first"));
    const label = part ? t("picker.kindsOf", { part: part.name, count: kinds.length }) : t("picker.kinds");
    const emptyText = this.onlyFavourites ? t("picker.noFavourites") : t("picker.noMatch", { text: this.search });
    // the same list again keeps its place
    const same = this.shown?.part === part && this.shown.kinds.length === kinds.length && kinds.every((kind, at) => kind === this.shown.kinds[at]);
    this.shown = { part, kinds: same ? this.shown.kinds : kinds };
    this.grid.show({ kinds: this.shown.kinds, marks, favourites, label, emptyText: part ? emptyText : "" });
  }

  showDetail() {
    const pick = this.picks.get(this.activePart);
    const two = pick?.kinds.length === 2;
    this.detail.hidden = !this.activePart;
    this.weight.input.disabled = !pick;
    this.weight.show(pick?.weight ?? 1);
    this.blend.element.hidden = !two;
    this.hint.hidden = two;
    this.hint.textContent = pick?.kinds.length > 2 ? t("picker.blendOfMany", { count: pick.kinds.length }) : t("picker.blendHint");
    if (!two) return;
    const [first, second] = pick.kinds;
    this.blend.show(second.factor);
    this.blend.input.setAttribute("aria-valuetext", `${first.kind.label} ${first.factor}, ${second.kind.label} ${second.factor}`);
  }

  showStatus(faults) {
    const message = this.model.message();
    const lines = message ? [make("p", { className: "bst-fault", textContent: message })] : [];
    const notice = this.model.notice();
    if (this.asked) lines.push(this.question());
    for (const [part, linked] of this.linked) if (this.picks.has(part)) lines.push(this.doubled(part, linked));
    if (notice && lines.length === 0) lines.push(make("p", { className: "bst-notice", textContent: notice }));
    for (const fault of faults.slice(0, 4)) {
      const right = fault.nearest ?? null;
      const text = t(`fault.${fault.fault}`, { text: fault.wrong ?? fault.mention?.target ?? "" });
      const repair = right && make("button", { type: "button", textContent: t("picker.useNearest", { text: right }), onclick: () => this.model.repair(fault) });
      lines.push(make("p", { className: "bst-fault" }, make("span", { textContent: text }), repair));
    }
    refill(this.status, ...lines);
  }

  /** A linked part was picked: there, here as well, or not at all. */
  question() {
    const { part, kinds } = this.asked;
    const linked = this.linked.get(part);
    const answer = (key, done) =>
      make("button", {
        type: "button",
        textContent: t(`picker.${key}`),
        title: t(`picker.${key}Help`, { part: part.name, title: linked.source.title ?? "" }),
        onclick: () => {
          this.asked = null;
          done?.();
          this.refresh();
        },
      });
    const replace = this.model.canReplace(linked) ? answer("replace", () => this.model.replace(part, linked, kinds)) : null;
    const both = answer("both", () => this.model.write(part, { part, kinds, weight: 1 }));
    const text = t("picker.linkedAsk", { part: part.name, title: linked.source.title ?? "" });
    const line = make("p", { className: "bst-notice bst-question" }, make("span", { textContent: text }));
    line.append(...[replace, both, answer("leave")].filter(Boolean));
    return line;
  }

  /** A part that comes from the text and by link. */
  doubled(part, linked) {
    const text = t("picker.double", { part: part.name, title: linked.source.title ?? "" });
    const keep = make("button", { type: "button", textContent: t("picker.keepLink"), onclick: () => this.model.write(part, null) });
    return make("p", { className: "bst-notice bst-question" }, make("span", { textContent: text }), keep);
  }

  setSearch(text) {
    this.search = text;
    this.showGrid();
  }

  toggleFavourites() {
    this.onlyFavourites = !this.onlyFavourites;
    this.refresh();
  }

  searchKey(event) {
    if (event.key === "ArrowDown") this.grid.element.focus();
    else if (event.key === "Escape" && this.search) this.setSearch((this.searchBox.value = ""));
    else if (event.key === "Enter" && this.grid.kinds.length) this.pick(this.grid.kinds[0]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  partKey(event) {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const parts = this.parts();
    if (!step || !parts.length) return;
    event.preventDefault();
    const place = (parts.indexOf(this.activePart) + step + parts.length) % parts.length;
    this.remember({ part: this.key(parts[place]) });
    this.partList.querySelector('[aria-checked="true"]')?.focus();
  }

  pick(kind) {
    const held = this.picks.get(kind.part);
    if (!held && this.linked.has(kind.part)) {
      this.asked = { part: kind.part, kinds: [{ kind, factor: 1 }] };
      this.refresh();
      return;
    }
    const alone = held?.kinds.length === 1 && held.kinds[0].kind === kind;
    this.model.write(kind.part, alone ? null : { part: kind.part, kinds: [{ kind, factor: 1 }], weight: held?.weight ?? 1 });
  }

  /** A second kind of the same part, half and half; the same one again takes it away. */
  second(kind) {
    const held = this.picks.get(kind.part);
    if (!held || held.kinds[0].kind === kind) return this.pick(kind);
    if (held.kinds[1]?.kind === kind) return this.dropSecond();
    const kinds = [held.kinds[0].kind, kind].map((one) => ({ kind: one, factor: 0.5 }));
    return this.model.write(kind.part, { ...held, kinds });
  }

  dropSecond() {
    const [first] = this.picks.get(this.activePart)?.kinds ?? [];
    if (first) this.change({ kinds: [{ kind: first.kind, factor: 1 }] });
  }

  setBlend(share) {
    const [first, second] = this.picks.get(this.activePart).kinds;
    this.change({ kinds: [{ kind: first.kind, factor: 1 - share }, { kind: second.kind, factor: share }] });
  }

  change(changes) {
    const held = this.picks.get(this.activePart);
    if (held) this.model.write(this.activePart, { ...held, ...changes });
  }

  currentKinds() {
    const linked = [...this.linked].filter(([, { kinds }]) => kinds).map(([part, { kinds }]) => [part, kinds]);
    return new Map([...linked, ...[...this.picks].map(([part, pick]) => [part, pick.kinds])]);
  }

  /** One kind of every part but the background, which stays as it is, as do parts that come by link. */
  randomKinds() {
    const parts = this.parts().filter((part) => !part.background && part.kinds.length && !this.linked.has(part));
    const chosen = this.model.single ? [this.activePart] : parts;
    return new Map(chosen.filter(Boolean).map((part) => [part, [{ kind: part.kinds[Math.floor(Math.random() * part.kinds.length)], factor: 1 }]]));
  }

  pickMany(kinds) {
    this.model.together(() => {
      // what comes by link has its source already
      for (const [part, chosen] of kinds) if (this.picks.has(part) || !this.linked.has(part)) this.model.write(part, { part, kinds: chosen, weight: this.picks.get(part)?.weight ?? 1 });
    });
  }

  clear() {
    this.model.together(() => {
      for (const part of this.picks.keys()) this.model.write(part, null);
    });
  }
}
