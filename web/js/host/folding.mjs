/** Widgets that fold to their first row, and how they are put on a node. What is chosen is kept with the node's properties. */

import { iconButton } from "./elements.mjs";
import { keepMounted } from "./mounting.mjs";
import { after } from "./safely.mjs";
import { t } from "./strings.mjs";

const FOLDED = 46;

/**
 * A panel on a node: `element` has a row of class bst-tools, into which `button` goes and which stays when it is folded. `height` is
 * what the open panel takes at least; one that is `fixed` takes no more.
 */
export class Panel {
  constructor(node, { name, property, element, height, size, widgetName = `bestiary_${name}`, fixed = false }) {
    Object.assign(this, { node, property, element, height });
    this.button = iconButton("fold", t("panel.fold"), () => this.fold(this.open), { className: "bst-icon bst-fold" });
    // Vue nodes draw one widget of a name: it must not be called as an input of the node is
    const widget = node.addDOMWidget(widgetName, `BESTIARY_${name.toUpperCase()}`, element, {
      serialize: false,
      hideOnZoom: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => (this.open ? this.height : FOLDED),
      getMaxHeight: () => (this.open ? (fixed ? this.height : undefined) : FOLDED),
    });
    // it only shows what fields or files hold
    widget.serialize = false;
    this.remember({ open: true });
    after(node, "onConfigure", (saved) => this.configured(saved));
    node.setSize([Math.max(node.size[0], size[0]), Math.max(node.size[1], size[1])]);
    keepMounted(node, element);
    this.show();
  }

  get state() {
    return this.node.properties?.[this.property] ?? {};
  }

  get open() {
    return this.state.open !== false;
  }

  remember(changes) {
    this.node.properties ??= {};
    this.node.properties[this.property] = { ...this.state, ...changes };
  }

  /** A workflow made without the panel keeps its layout. */
  configured(saved) {
    if (saved?.properties && !saved.properties[this.property]) {
      this.remember({ open: true });
      if (saved.size && saved.size[1] + 1 < this.node.computeSize()[1]) this.remember({ open: false });
    }
    this.show();
  }

  fold(folded) {
    const { node } = this;
    const [width, height] = node.size;
    const change = this.height - FOLDED;
    // as high as it was: Vue nodes that were loaded folded give a computed height of their own
    const before = folded ? undefined : this.state.height;
    this.remember({ open: !folded, height: folded ? height : undefined });
    const wanted = Math.max(node.computeSize()[1], folded ? height - change : height + change);
    node.setSize([width, before ? Math.max(before, height) : wanted]);
    node.graph?.setDirtyCanvas(true, true);
    this.show();
  }

  show() {
    this.element.classList.toggle("bst-folded", !this.open);
    this.button.setAttribute("aria-expanded", `${this.open}`);
  }
}
