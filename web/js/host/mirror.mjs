/** A copy of a textarea's text in exactly the same places: for underlines, and to know where a character stands. */

import { make } from "./elements.mjs";

const COPIED = [
  ...["fontFamily", "fontSize", "fontWeight", "fontStyle", "fontVariantLigatures", "letterSpacing", "lineHeight", "textIndent", "tabSize"],
  ...["paddingTop", "paddingRight", "paddingBottom", "paddingLeft", "borderTopWidth", "borderRightWidth", "borderBottomWidth"],
  ...["borderLeftWidth", "textTransform", "wordSpacing", "direction"],
];

/** An element that lies over a textarea and shows nothing but what is marked. */
export class Mirror {
  constructor(textarea) {
    this.textarea = textarea;
    this.element = make("div", { className: "bst-mirror", "aria-hidden": "true" });
    textarea.after(this.element);
    textarea.addEventListener("scroll", () => this.follow(), { passive: true });
    new ResizeObserver(() => this.place()).observe(textarea);
    this.place();
  }

  place() {
    const { textarea, element } = this;
    const style = getComputedStyle(textarea);
    for (const name of COPIED) element.style[name] = style[name];
    element.style.left = `${textarea.offsetLeft}px`;
    element.style.top = `${textarea.offsetTop}px`;
    // without the scroll bar, so that lines break where they break in the textarea
    const borders = parseFloat(style.borderLeftWidth) + parseFloat(style.borderRightWidth);
    element.style.width = `${textarea.clientWidth + borders}px`;
    element.style.height = `${textarea.offsetHeight}px`;
    this.follow();
  }

  follow() {
    this.element.scrollTop = this.textarea.scrollTop;
    this.element.scrollLeft = this.textarea.scrollLeft;
  }

  /** Underlines ranges [{start, end}] of the text. */
  mark(text, ranges) {
    const pieces = [];
    let place = 0;
    for (const { start, end } of ranges) {
      pieces.push(text.slice(place, start), make("u", { textContent: text.slice(start, end) }));
      place = end;
    }
    // a last line break is shown only if something follows it
    pieces.push(`${text.slice(place)}\u200b`);
    this.element.replaceChildren(...pieces);
    this.place();
  }

  /** Where a character stands on the screen: {left, top, bottom} in pixels of the window. */
  locate(place) {
    const { value } = this.textarea;
    const spot = make("span", { textContent: "\u200b" });
    const before = [...this.element.childNodes];
    this.element.replaceChildren(value.slice(0, place), spot, value.slice(place));
    this.follow();
    const { left, top, bottom } = spot.getBoundingClientRect();
    this.element.replaceChildren(...before);
    this.follow();
    return { left, top, bottom };
  }
}
