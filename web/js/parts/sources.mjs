/** Two whole creatures to take parts from: "head of A, everything else of B". */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";
import { plainName, readKinds, writtenKinds } from "./mentions.mjs";

export const SLOTS = ["a", "b"];

/** Panel with the sources A and B; `host` provides parts, picks and painting, and receives the new picks. */
export class Sources {
  constructor(host) {
    this.host = host;
    this.cards = Object.fromEntries(SLOTS.map((slot) => [slot, this.card(slot)]));
    this.element = make(
      "div",
      { className: "bst-sources", hidden: true, role: "group", "aria-label": t("picker.sources") },
      ...SLOTS.map((slot) => this.cards[slot].element),
    );
  }

  card(slot) {
    const letter = slot.toUpperCase();
    const strip = make("span", { className: "bst-strip" });
    const choose = make("select", {
      "aria-label": t("picker.sourceNamed", { letter }),
      onchange: () => this.fill(slot, this.named(choose.value)),
    });
    const button = (key, onclick) =>
      make("button", { type: "button", textContent: t(`picker.${key}`), title: t(`picker.${key}Help`, { letter }), onclick });
    const element = make(
      "div",
      { className: "bst-source", role: "group", "aria-label": t("picker.source", { letter }) },
      make("div", { className: "bst-source-head" }, make("b", { className: "bst-letter", textContent: letter }), strip),
      make(
        "div",
        { className: "bst-source-tools" },
        choose,
        button("keep", () => this.fill(slot, this.host.currentKinds())),
        button("draw", () => this.fill(slot, this.host.randomKinds())),
        button("useAll", () => this.useAll(slot)),
      ),
    );
    return { element, strip, choose };
  }

  /** Kind of a part in a source: [{kind, factor}] or null. */
  of(slot, part) {
    const written = this.host.state[slot]?.[this.host.key(part)];
    const { kinds } = written ? readKinds(written) : {};
    const found = kinds?.map(({ text, factor }) => ({ kind: part.find(text), factor }));
    return found?.every(({ kind }) => kind) ? found : null;
  }

  fill(slot, kinds) {
    const entries = [...kinds].map(([part, chosen]) => [
      this.host.key(part),
      writtenKinds(chosen.map(({ kind, factor }) => ({ written: kind.written, factor }))),
    ]);
    this.host.remember({ [slot]: Object.fromEntries(entries) });
  }

  useAll(slot) {
    this.host.pickMany(new Map(this.host.parts().map((part) => [part, this.of(slot, part)]).filter(([, kinds]) => kinds)));
  }

  /** Names that kinds of at least two parts share: whole creatures. */
  names() {
    const counts = new Map();
    for (const part of this.host.parts()) {
      for (const [plain, kind] of part.byName) {
        if (kind) counts.set(plain, [...(counts.get(plain) ?? []), kind.name]);
      }
    }
    return [...counts.values()].filter((names) => names.length > 1).map(([name]) => name).sort();
  }

  named(name) {
    const found = this.host.parts().map((part) => [part, part.byName.get(plainName(name))]);
    return new Map(found.filter(([, kind]) => kind).map(([part, kind]) => [part, [{ kind, factor: 1 }]]));
  }

  show(open) {
    this.element.hidden = !open;
    if (!open) return;
    const names = this.names();
    for (const slot of SLOTS) {
      const { strip, choose } = this.cards[slot];
      choose.hidden = names.length === 0;
      if (choose.options.length !== names.length + 1) {
        choose.replaceChildren(make("option", { value: "", textContent: t("picker.byName") }), ...names.map((name) => make("option", { value: name, textContent: name })));
      }
      const shown = this.host.parts().map((part) => [part, this.of(slot, part)]).filter(([, kinds]) => kinds);
      strip.replaceChildren(...shown.map(([part, kinds]) => this.host.thumb(kinds[0].kind, 24, `${part.name}: ${kinds[0].kind.label}`)));
      if (!shown.length) strip.append(make("span", { className: "bst-hint", textContent: t("picker.sourceEmpty") }));
    }
  }
}
