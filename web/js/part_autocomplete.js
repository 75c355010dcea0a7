/** Suggests parts, kinds, spectra and stages while a prompt is typed, and underlines those that nothing linked knows. */

import { app } from "../../../scripts/app.js";
import { addStyle, make } from "./host/elements.mjs";
import { Mirror } from "./host/mirror.mjs";
import { after, debounced, safely } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { bodyOf, findField, ownWidget, watchWidget } from "./host/widgets.mjs";
import { linkedDictionaries } from "./parts/linked.mjs";
import { findMentions } from "./parts/mentions.mjs";
import { resolveMention } from "./parts/picks.mjs";
import { BoxNote, plainFaults, plainFields } from "./parts/plain_boxes.mjs";
import { suggestions } from "./parts/suggest.mjs";
import { weighed } from "./parts/weighing.mjs";
import { linkedSpectra } from "./stages/spectra.mjs";
import { STAGED_FIELDS, stagedChoices, stagedFaults } from "./stages/staged_texts.mjs";

/** Blocks whose prompts name parts, and the fields that hold them. */
const PROMPTS = { BestiaryPartPrompt: ["text"], ...STAGED_FIELDS };
const THUMB = 26;
const STEPS = { ArrowUp: 1, ArrowDown: -1 };
const STEP_SETTING = "Comfy.EditAttention.Delta";
const USUAL_STEP = 0.05;
const mirrors = new WeakMap();
const notes = new WeakMap();
const nodes = new Set();

const isStaged = (node) => node.comfyClass in STAGED_FIELDS;
const isPlain = (node) => !(node.comfyClass in PROMPTS);
const fieldsOf = (node) => PROMPTS[node.comfyClass] ?? plainFields(node);

/** The prompts of a node that are on the page, as [{node, name, textarea}], in both kinds of nodes. */
function boxesOf(node) {
  return fieldsOf(node).flatMap((name) => {
    const { node: holder, widget } = findField(node, name);
    if (widget?.element?.isConnected) return [{ node, name, textarea: widget.element }];
    // Vue nodes draw boxes of their own, in the order of the fields
    const boxes = (holder.widgets ?? []).filter((one) => one.type === "customtext");
    const drawn = [...(bodyOf(holder)?.querySelectorAll("textarea") ?? [])];
    const textarea = drawn.length === boxes.length ? drawn[boxes.findIndex((one) => one.name === widget?.name)] : null;
    return textarea && textarea.value === `${widget.value}` ? [{ node, name, textarea }] : [];
  });
}

/** The prompt that a textarea is, null for all others. */
function ownerOf(textarea) {
  if (textarea?.tagName !== "TEXTAREA") return null;
  for (const node of nodes) {
    // without parts a box of ComfyUI is none of ours
    if (isPlain(node) && !linkedDictionaries(node).set.parts.length) continue;
    const box = node.graph && safely(() => boxesOf(node).find((one) => one.textarea === textarea));
    if (box) return box;
  }
  return null;
}

function mirrorOf(textarea) {
  const known = mirrors.get(textarea);
  if (known?.element.isConnected) return known;
  const mirror = new Mirror(textarea);
  mirrors.set(textarea, mirror);
  return mirror;
}

function noteOf(textarea) {
  const known = notes.get(textarea);
  if (known?.element.isConnected) return known;
  const note = new BoxNote(textarea);
  notes.set(textarea, note);
  return note;
}

/** Mentions of a prompt whose part, kind, spectrum or stages are unknown. */
function faultsOf({ node, name, textarea }) {
  if (isPlain(node)) return plainFaults(node, textarea.value).map((fault) => ({ ...fault.mention, malformed: fault.mention.fault, note: fault }));
  if (isStaged(node)) return stagedFaults(node, name, textarea.value).map(({ mention, fault }) => ({ ...mention, malformed: mention.fault, fault }));
  const { set } = linkedDictionaries(node);
  const wrong = (mention) => mention.fault || (set.parts.length > 0 && resolveMention(mention, set).fault);
  return findMentions(textarea.value).filter(wrong).map((mention) => ({ ...mention, malformed: mention.fault }));
}

/** Underlines unknown names in a prompt. */
function underline(box) {
  const { node, name, textarea } = box;
  // what is being typed is not wrong yet
  const cursor = document.activeElement === textarea ? textarea.selectionEnd : -1;
  const typing = ({ start, end, malformed }) => malformed && start < cursor && cursor <= end;
  const faults = faultsOf(box).filter((mention) => !typing(mention));
  if (!faults.length && !mirrors.has(textarea)) return;
  mirrorOf(textarea).mark(textarea.value, faults);
  textarea.setAttribute("aria-invalid", `${faults.length > 0}`);
  // blocks of ours tell it beside the box
  if (isPlain(node)) noteOf(textarea).show(node, name, faults.map(({ note }) => note));
  if (isPlain(node)) mirrorOf(textarea).place();
}

/** The list under the cursor; there is one for the whole page. */
class Suggestions {
  constructor() {
    this.element = make("div", { className: "bst-suggestions", role: "listbox", id: "bst-suggestions", "aria-label": t("complete.list"), hidden: true });
    this.live = make("div", { className: "bst-spoken", role: "status", "aria-live": "polite" });
    // the textarea must keep the focus
    this.element.addEventListener("pointerdown", (event) => event.preventDefault());
    document.body.append(this.element, this.live);
    this.options = [];
  }

  get open() {
    return !this.element.hidden;
  }

  show({ node, name, textarea }) {
    const { set } = linkedDictionaries(node);
    const staged = isStaged(node) ? stagedChoices(node, name) : null;
    const found = textarea.selectionStart === textarea.selectionEnd ? suggestions(textarea.value, textarea.selectionStart, set, staged) : null;
    if (!found?.options.length) return this.hide();
    Object.assign(this, found, { textarea, active: 0 });
    this.element.replaceChildren(...found.options.map((option, place) => this.row(option, place)));
    this.element.hidden = false;
    this.place();
    textarea.setAttribute("aria-autocomplete", "list");
    textarea.setAttribute("aria-controls", this.element.id);
    this.live.textContent = t(found.options.length === 1 ? "complete.one" : "complete.many", { count: found.options.length });
    return this.mark(0);
  }

  row(option, place) {
    const picture = make("span", { className: "bst-mini" });
    picture.style.setProperty("--edge", `${THUMB}px`);
    if (option.kind) option.kind.part.owner.paint(picture, option.kind, THUMB);
    return make(
      "div",
      { role: "option", id: `bst-suggestion-${place}`, className: "bst-suggestion", onclick: () => this.take(place) },
      picture,
      make("span", { className: "bst-name", textContent: option.label }),
      make("small", { textContent: option.detail }),
    );
  }

  place() {
    const spot = mirrorOf(this.textarea).locate(this.from);
    const { offsetWidth, offsetHeight, style } = this.element;
    const below = spot.bottom + 4 + offsetHeight <= innerHeight;
    style.left = `${Math.max(4, Math.min(spot.left, innerWidth - offsetWidth - 4))}px`;
    style.top = `${below ? spot.bottom + 4 : Math.max(4, spot.top - 4 - offsetHeight)}px`;
  }

  mark(place) {
    const rows = this.element.children;
    rows[this.active]?.setAttribute("aria-selected", "false");
    this.active = (place + rows.length) % rows.length;
    rows[this.active].setAttribute("aria-selected", "true");
    rows[this.active].scrollIntoView({ block: "nearest" });
    this.textarea.setAttribute("aria-activedescendant", rows[this.active].id);
  }

  take(place) {
    const { textarea, from, to, options } = this;
    const { insert, closes } = options[place];
    textarea.focus();
    textarea.setRangeText(insert, from, to, "end");
    if (closes && textarea.value[textarea.selectionEnd] === ">") textarea.setSelectionRange(textarea.selectionEnd + 1, textarea.selectionEnd + 1);
    this.hide();
    // ComfyUI takes it as typed; a part asks for its kinds next
    textarea.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertReplacementText" }));
  }

  hide() {
    if (!this.open) return;
    this.element.hidden = true;
    this.live.textContent = "";
    this.textarea?.removeAttribute("aria-activedescendant");
  }

  keyed(event) {
    if (!this.open || event.target !== this.textarea || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.key === "ArrowDown") this.mark(this.active + 1);
    else if (event.key === "ArrowUp") this.mark(this.active - 1);
    else if (event.key === "Enter" || event.key === "Tab") this.take(this.active);
    else if (event.key === "Escape") this.hide();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Ctrl+Up and Ctrl+Down at a mention: ComfyUI's own would weigh a piece of it, or take its kind for a weight. */
function weigh(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey || !(event.key in STEPS)) return;
  const box = ownerOf(event.target);
  if (!box) return;
  const { textarea } = box;
  const step = Number(app.extensionManager.setting.get(STEP_SETTING) ?? USUAL_STEP) || USUAL_STEP;
  const change = weighed(textarea.value, textarea.selectionStart, textarea.selectionEnd, STEPS[event.key] * step, isStaged(box.node));
  if (!change) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const { from, to, insert, selected } = change;
  textarea.setRangeText(insert, from, to);
  textarea.setSelectionRange(...selected);
  textarea.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertReplacementText" }));
}

function listen() {
  const list = new Suggestions();
  document.addEventListener("input", (event) => {
    const box = ownerOf(event.target);
    if (!box) return;
    underline(box);
    if (document.activeElement === event.target) list.show(box);
  });
  document.addEventListener("keydown", (event) => list.keyed(event), { capture: true });
  // before ComfyUI, which listens to the window
  window.addEventListener("keydown", weigh, { capture: true });
  document.addEventListener("focusout", (event) => event.target === list.textarea && list.hide());
  document.addEventListener("focusin", (event) => {
    const box = ownerOf(event.target);
    if (box) underline(box);
  });
  // where the cursor goes without typing, the list no longer belongs
  document.addEventListener("pointerdown", (event) => list.element.contains(event.target) || list.hide(), { capture: true });
  document.addEventListener("wheel", (event) => list.element.contains(event.target) || list.hide(), { capture: true, passive: true });
}

app.registerExtension({
  name: "Bestiary.PartAutocomplete",
  async init() {
    addStyle();
    await loadStrings();
    listen();
  },
  nodeCreated(node) {
    const fields = fieldsOf(node);
    if (!fields.length) return;
    nodes.add(node);
    const again = debounced(() => boxesOf(node).forEach(underline));
    linkedDictionaries(node).listeners.add(again);
    if (isStaged(node)) linkedSpectra(node).listeners.add(again);
    for (const name of [...fields, "presets"]) {
      const widget = ownWidget(node, name);
      if (widget) watchWidget(widget, again);
    }
    after(node, "onRemoved", () => nodes.delete(node));
  },
});
