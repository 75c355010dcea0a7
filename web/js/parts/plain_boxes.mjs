/** Text boxes of ComfyUI's own blocks whose CLIP has learned parts: the server understands mentions there, and this tells of those it cannot. */

import { make, ownEvents } from "../host/elements.mjs";
import { refill } from "../host/pressed.mjs";
import { t } from "../host/strings.mjs";
import { findWidget, setWidget } from "../host/widgets.mjs";
import { linkedDictionaries } from "./linked.mjs";
import { findMentions } from "./mentions.mjs";
import { resolveMention } from "./picks.mjs";
import { hasUnknownDictionary } from "./upstream.mjs";

/** Where blocks of ComfyUI itself come from. */
const CORE = /^(nodes$|comfy_extras\b)/;
/** Such text means no part, so the server leaves it as it is. */
const PLAIN_TEXT = new Set(["unclosed", "noColon", "noPart"]);
const MOST = 2;

/** Fields of a block of ComfyUI that encodes texts, empty for all other blocks. */
export function plainFields(node) {
  const isCore = CORE.test(node.constructor.nodeData?.python_module ?? "");
  if (!isCore || !node.inputs?.some(({ type }) => type === "CLIP")) return [];
  return (node.widgets ?? []).filter((widget) => widget.type === "customtext").map(({ name }) => name);
}

/** Mentions of such a text that name nothing, as [{mention, fault, wrong, nearest}]; none where only the run knows all parts. */
export function plainFaults(node, text) {
  const { set } = linkedDictionaries(node);
  if (!set.parts.length || hasUnknownDictionary(node)) return [];
  return findMentions(text)
    .filter(({ fault }) => !PLAIN_TEXT.has(fault))
    .map((mention) => ({ mention, ...resolveMention(mention, set) }))
    .filter(({ fault }) => fault);
}

/** The words below a text, over the last lines of its box: what is wrong, and a button that puts it right. */
export class BoxNote {
  constructor(textarea) {
    this.textarea = textarea;
    this.element = make("div", { className: "bst-box-note bst-status", role: "status", "aria-live": "polite" });
    ownEvents(this.element);
    textarea.after(this.element);
    new ResizeObserver(() => this.place()).observe(textarea);
  }

  show(node, name, faults) {
    const rows = faults.slice(0, MOST).map(({ mention, fault, wrong, nearest }) => {
      const use = () => {
        const widget = findWidget(node, name);
        const text = `${widget.value}`;
        setWidget(widget, text.slice(0, mention.start) + nearest + text.slice(mention.end));
      };
      const repair = nearest ? make("button", { type: "button", textContent: t("picker.useNearest", { text: nearest }), onclick: use }) : null;
      return make("p", { className: "bst-fault" }, make("span", { textContent: t(`fault.${fault}`, { text: wrong ?? mention.target }) }), repair);
    });
    refill(this.element, ...rows);
    this.place();
  }

  place() {
    const { textarea, element } = this;
    element.style.left = `${textarea.offsetLeft}px`;
    element.style.width = `${textarea.clientWidth}px`;
    element.style.top = `${textarea.offsetTop + textarea.offsetHeight - element.offsetHeight}px`;
    // so that the last line can be scrolled above it
    textarea.style.paddingBottom = element.offsetHeight ? `${element.offsetHeight + 4}px` : "";
  }
}
