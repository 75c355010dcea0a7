/** Adds the part picker to the blocks that name parts. */

import { app } from "../../../scripts/app.js";
import { addStyle } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { after, debounced, safely } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, watchWidget } from "./host/widgets.mjs";
import { fetchAgain, linkedDictionaries, updateAll } from "./parts/linked.mjs";
import { canReplace, followTitle, linkedParts, replaceLinked } from "./parts/linked_parts.mjs";
import { PickerView } from "./parts/picker_view.mjs";
import { FieldPicks, TextPicks } from "./parts/picks.mjs";

const PROPERTY = "bestiary_picker";
const FAVOURITES = "Bestiary.Favourites";
const HEIGHT = 330;
const SIZE = [470, 620];

/** Blocks with a picker, and where each keeps what is picked. */
const BLOCKS = {
  BestiaryPartPrompt: (node) => new TextPicks(() => findWidget(node, "text")),
  BestiaryPart: (node) =>
    new FieldPicks(() => {
      const [part, kind, weight, blend, amount] = FIELDS.map((name) => findWidget(node, name));
      return { part, kind, weight, blend, amount };
    }),
};
const FIELDS = ["part", "kind", "weight", "blend_with", "blend_amount"];
const pickers = new Set();

/** What a picker of one node knows and keeps; see PickerView. */
class PickerModel {
  constructor(node, picks) {
    this.node = node;
    this.picks = picks;
    this.single = picks instanceof FieldPicks;
    this.linked = linkedDictionaries(node);
    this.quiet = 0;
    this.view = new PickerView(this);
    const { element, tools } = this.view;
    // the prompt itself is what is kept; the picker only shows it
    this.panel = new Panel(node, { name: "picker", widgetName: "picker", property: PROPERTY, element, height: HEIGHT, size: SIZE });
    tools.prepend(this.panel.button);
    this.linked.chosen = () => this.state.file ?? null;
    this.linked.listeners.add(() => this.view.refresh());
    this.linked.listeners.add(() => this.follow());
  }

  get state() {
    return this.panel.state;
  }

  remember(changes) {
    this.panel.remember(changes);
    this.view.refresh();
  }

  set() {
    return this.linked.set;
  }

  read() {
    return this.linked.set.parts.length ? this.picks.read(this.linked.set) : { picks: new Map(), faults: [] };
  }

  /** Parts that come by link, see linked_parts.mjs. */
  linkedParts() {
    return this.single ? new Map() : linkedParts(this.node, this.linked.set);
  }

  canReplace(linked) {
    return canReplace(linked);
  }

  /** Gives a linked part other kinds where it comes from; where that block has no field for it, here in its stead. */
  replace(part, linked, kinds) {
    if (!replaceLinked(linked, this.linked.set, part, kinds)) this.write(part, { part, kinds, weight: linked.weight });
    this.view.refresh();
  }

  /** What the last run had to say of the prompt; gone as soon as the prompt is another. */
  notice() {
    return this.said?.text === this.picks.text ? this.said.words : null;
  }

  /** The title of a block for one part says what is picked. */
  follow() {
    if (!this.single || !this.linked.set.parts.length) return;
    const [pick] = this.read().picks.values();
    const kinds = pick?.kinds.map(({ kind }) => kind.label).join(" + ");
    const title = pick ? t("picker.pieceTitle", { part: pick.part.name, kind: kinds }) : "";
    followTitle(this.node, title, this.state.titled);
    if (title !== (this.state.titled ?? "")) this.panel.remember({ titled: title });
  }

  write(part, pick) {
    this.together(() => this.picks.write(this.linked.set, part, pick));
  }

  repair(fault) {
    this.together(() => this.picks.repair(fault));
  }

  /** Several writes, shown once. */
  together(writes) {
    this.quiet += 1;
    writes();
    this.quiet -= 1;
    if (this.quiet) return;
    this.view.refresh();
    this.follow();
  }

  /** Files to choose from, where no dictionary is linked. */
  chooser() {
    return this.linked.files;
  }

  message() {
    const { set, fault, loading } = this.linked;
    if (fault) return fault;
    if (!set.all.length) return t(loading ? "picker.loading" : "picker.link");
    return set.all.map((one) => one.atlasFault).find(Boolean) ?? null;
  }

  choose(file) {
    this.remember({ file: file || undefined });
    this.linked.update();
  }

  favourites() {
    const names = new Set(readFavourites());
    const kinds = this.linked.set.parts.flatMap((part) => part.kinds);
    return new Set(names.size ? kinds.filter((kind) => names.has(favouriteName(kind))) : []);
  }

  favour(kind) {
    const names = new Set(readFavourites());
    if (!names.delete(favouriteName(kind))) names.add(favouriteName(kind));
    app.extensionManager.setting.set(FAVOURITES, JSON.stringify([...names].sort()));
    for (const picker of pickers) safely(() => picker.view.refresh());
  }
}

function favouriteName(kind) {
  return `${kind.part.owner.file}/${kind.part.number}/${kind.number}`;
}

function readFavourites() {
  try {
    const names = JSON.parse(app.extensionManager.setting.get(FAVOURITES) ?? "[]");
    return Array.isArray(names) ? names : [];
  } catch {
    return [];
  }
}

function addPicker(node) {
  const picks = BLOCKS[node.comfyClass](node);
  const model = new PickerModel(node, picks);
  const shown = debounced(() => {
    if (model.quiet) return;
    model.view.refresh();
    model.follow();
  });
  after(node, "onExecuted", (output) => {
    const [words] = output?.bestiary_notice ?? [];
    model.said = words ? { words, text: picks.text } : null;
    model.view.refresh();
  });
  const watched = (model.single ? FIELDS : ["text"]).map((name) => ownWidget(node, name));
  for (const one of watched.filter(Boolean)) {
    watchWidget(one, shown);
    one.element?.addEventListener("input", shown);
  }
  after(node, "onRemoved", () => pickers.delete(model));
  model.view.element.addEventListener("pointerenter", debounced(() => model.linked.update()));
  pickers.add(model);
  model.view.refresh();
}

app.registerExtension({
  name: "Bestiary.PartPicker",
  settings: [{ id: FAVOURITES, name: "Favourite kinds", type: "hidden", defaultValue: "[]" }],
  async init() {
    addStyle();
    await loadStrings();
  },
  afterConfigureGraph: updateAll,
  refreshComboInNodes: fetchAgain,
  nodeCreated(node) {
    if (node.comfyClass in BLOCKS) addPicker(node);
  },
});
