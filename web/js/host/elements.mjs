/** Making elements from plain values. Text is only ever set as text, so a name can hold anything. */

const ICONS = {
  fold: "M7.4 8.6 12 13.2l4.6-4.6L18 10l-6 6-6-6z",
  search: "M10.5 3a7.5 7.5 0 1 0 4.7 13.3l4.3 4.2 1.4-1.4-4.2-4.3A7.5 7.5 0 0 0 10.5 3m0 2a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11",
  star: "M12 2.6l2.9 6 6.6.9-4.8 4.6 1.2 6.6L12 17.5l-5.9 3.2 1.2-6.6L2.5 9.5l6.6-.9z",
  dice: "M5 3h14a2 2 0 0 1 2 2v14a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V5c0-1.1.9-2 2-2m3 3.4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2m8 0a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2m-4 4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2m-4 4a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2m8 0a1.6 1.6 0 1 0 0 3.2 1.6 1.6 0 0 0 0-3.2",
  clear: "M6.2 4.8 12 10.6l5.8-5.8 1.4 1.4-5.8 5.8 5.8 5.8-1.4 1.4-5.8-5.8-5.8 5.8-1.4-1.4 5.8-5.8-5.8-5.8z",
  add: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
  newest: "M5 5.5 12.5 12 5 18.5zm8 0L20.5 12 13 18.5zM20.6 5.5H22v13h-1.4z",
  mix: "M4 5h5.2l2.9 4.1-1.3 1.7L8.2 7H4zm16 0v2h-2.2l-7.6 10.7L9.2 19H4v-2h4.2L16.8 5zm0 12v2h-3.2l-2.7-3.9 1.2-1.8 2.5 3.7z",
};

/** An element; `facts` are properties, or attributes where their name has a dash or is `role`; null facts are left out. */
export function make(tag, facts = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A button with a picture, and its meaning for those who do not see it. */
export function iconButton(icon, label, onclick, facts = {}) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[icon]);
  picture.append(path);
  return make("button", { type: "button", className: "bst-icon", title: label, "aria-label": label, onclick, ...facts }, picture);
}

/** A labelled slider that shows its value; `changed` is called with the number while it is dragged. */
export function slider(label, { min, max, step }, changed) {
  const shown = make("output", { className: "bst-value" });
  const input = make("input", { type: "range", min, max, step, "aria-label": label });
  const show = (value) => {
    input.value = value;
    shown.textContent = Number(value).toFixed(2);
  };
  input.addEventListener("input", () => {
    shown.textContent = Number(input.value).toFixed(2);
    changed(Number(input.value));
  });
  const element = make("label", { className: "bst-slider" }, make("span", { textContent: label }), input, shown);
  return { element, input, show };
}

/** Keeps wheel, pointer and key events of a widget from moving, selecting or running the graph below it. */
export function ownEvents(element) {
  element.setAttribute("data-capture-wheel", "true");
  for (const name of ["wheel", "pointerdown", "pointermove", "pointerup", "dblclick", "contextmenu", "copy", "paste", "cut"]) {
    element.addEventListener(name, (event) => event.stopPropagation(), { passive: true });
  }
  element.addEventListener("keydown", (event) => {
    // Ctrl+Enter, Ctrl+S and their like stay ComfyUI's
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });
}

/** Adds the stylesheet once. */
export function addStyle() {
  const address = new URL("../../css/bestiary.css", import.meta.url).href;
  if (document.querySelector(`link[href="${address}"]`)) return;
  document.head.append(make("link", { rel: "stylesheet", href: address }));
}
