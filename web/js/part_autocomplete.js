/** Suggests parts and kinds while a prompt is typed, and underlines those that no dictionary knows. */

import { app } from "../../../scripts/app.js";
import { addStyle, make } from "./elements.mjs";
import { debounced, linkedDictionaries } from "./linked.mjs";
import { findMentions } from "./mentions.mjs";
import { Mirror } from "./mirror.mjs";
import { resolveMention } from "./picks.mjs";
import { loadStrings, t } from "./strings.mjs";
import { suggestions } from "./suggest.mjs";
import { findWidget, watchWidget } from "./upstream.mjs";

/** Blocks whose prompt names parts, and the widget that holds it. */
const PROMPTS = { BestiaryPartPrompt: "text" };
const THUMB = 26;
const mirrors = new WeakMap();
const nodes = new Set();

/** The node and widget that a textarea belongs to, in both kinds of nodes; null for all others. */
function ownerOf(textarea) {
  if (textarea?.tagName !== "TEXTAREA") return null;
  for (const node of nodes) {
    if (node.graph && findWidget(node, PROMPTS[node.comfyClass])?.element === textarea) return node;
  }
  const id = textarea.closest("[data-node-id]")?.dataset.nodeId;
  const node = id === undefined ? null : [...nodes].find((one) => `${one.id}` === id && one.graph === app.canvas.graph);
  return node && textarea.value === `${findWidget(node, PROMPTS[node.comfyClass]).value}` ? node : null;
}

function textareaOf(node) {
  const { element } = findWidget(node, PROMPTS[node.comfyClass]);
  if (element?.isConnected) return element;
  const body = document.querySelector(`[data-node-id="${CSS.escape(`${node.id}`)}"]`);
  return body?.querySelector("textarea") ?? null;
}

function mirrorOf(textarea) {
  const known = mirrors.get(textarea);
  if (known?.element.isConnected) return known;
  const mirror = new Mirror(textarea);
  mirrors.set(textarea, mirror);
  return mirror;
}

/** Underlines what a node's prompt names in vain. */
function underline(node) {
  const textarea = textareaOf(node);
  const { set } = linkedDictionaries(node);
  if (!textarea) return;
  const text = textarea.value;
  // what is being typed is not wrong yet
  const cursor = document.activeElement === textarea ? textarea.selectionEnd : -1;
  const typing = ({ start, end, fault }) => fault && start < cursor && cursor <= end;
  const wrong = (mention) => mention.fault || (set.parts.length > 0 && resolveMention(mention, set).fault);
  const faults = findMentions(text).filter((mention) => !typing(mention) && wrong(mention));
  if (!faults.length && !mirrors.has(textarea)) return;
  mirrorOf(textarea).mark(text, faults);
  textarea.setAttribute("aria-invalid", `${faults.length > 0}`);
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

  show(textarea, node) {
    const { set } = linkedDictionaries(node);
    const found = textarea.selectionStart === textarea.selectionEnd ? suggestions(textarea.value, textarea.selectionStart, set) : null;
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

function listen() {
  const list = new Suggestions();
  document.addEventListener("input", (event) => {
    const node = ownerOf(event.target);
    if (!node) return;
    underline(node);
    if (document.activeElement === event.target) list.show(event.target, node);
  });
  document.addEventListener("keydown", (event) => list.keyed(event), { capture: true });
  document.addEventListener("focusout", (event) => event.target === list.textarea && list.hide());
  document.addEventListener("focusin", (event) => {
    const node = ownerOf(event.target);
    if (node) underline(node);
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
    if (!(node.comfyClass in PROMPTS)) return;
    nodes.add(node);
    const linked = linkedDictionaries(node);
    const again = debounced(() => underline(node));
    linked.listeners.add(again);
    watchWidget(findWidget(node, PROMPTS[node.comfyClass]), again);
    const { onRemoved } = node;
    node.onRemoved = function (...facts) {
      onRemoved?.apply(this, facts);
      nodes.delete(node);
    };
  },
});
