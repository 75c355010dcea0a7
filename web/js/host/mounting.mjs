/**
 * Frontends whose Vue nodes came before DOM widgets (1.27, switched off there unless asked for) leave widgets of extensions out:
 * there the element is put into the node's body by hand.
 */

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { safely } from "./safely.mjs";

const LATER = [200, 800, 2000, 5000];
const WIDTH = "430px";
const HEIGHT = "460px";
const mounted = new Map();

/** Sees to it that the element of a widget is on the page wherever its node is. */
export function keepMounted(node, element) {
  mounted.set(element, node);
  listen();
  for (const pause of LATER) setTimeout(mountAll, pause);
}

/** Keeps ComfyUI from drawing a node's pictures below a widget that shows them already. */
export function showPicturesOnce(node) {
  // Vue nodes ask for this word, canvas nodes draw what stands in imgs
  node.hideOutputImages = true;
  Object.defineProperty(node, "imgs", { configurable: true, get: () => undefined, set: () => {} });
}

let heard = null;

/** Subgraphs are drawn only while they are open. */
function listen() {
  const { canvas } = app.canvas ?? {};
  if (!canvas || heard === canvas) return;
  heard = canvas;
  canvas.addEventListener("litegraph:set-graph", () => {
    for (const pause of LATER) setTimeout(mountAll, pause);
  });
}

function mountAll() {
  for (const [element, node] of mounted) {
    if (!node.graph || node.graph.getNodeById?.(node.id) !== node) mounted.delete(element);
    else if (node.graph === app.canvas?.graph && !element.isConnected) safely(mount, node, element);
  }
}

function mount(node, element) {
  const body = document.querySelector(`[data-testid="node-body-${CSS.escape(`${node.id}`)}"]`);
  // later frontends mount widgets themselves, into a place of their own
  if (!body || body.querySelector(".lg-node-widget, .lg-node-widgets .dom-widget")) return;
  Object.assign(element.style, { minWidth: WIDTH, height: HEIGHT });
  // what an earlier workflow or another subgraph left in a node of the same number goes
  for (const old of body.querySelectorAll(":scope > .bst-mounted")) old.remove();
  element.classList.add("bst-mounted");
  body.append(element);
}

api.addEventListener("graphChanged", () => setTimeout(mountAll, 50));
