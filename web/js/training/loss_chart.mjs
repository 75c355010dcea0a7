/** Curves over steps as a drawing that follows the theme: linear or logarithmic, smoothed, with a reading under the pointer. */

import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";

const MARGIN = { left: 44, right: 10, top: 8, bottom: 20 };
const COLORS = 10;
const FEW = 3;

function drawn(tag, facts, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(facts)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A value with three digits that count. */
export function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  return Number(value.toPrecision(3)).toString();
}

/** Running mean with weight `share` on what was before, corrected at its beginning; gaps stay gaps. */
export function smoothed(values, share) {
  if (!share) return values;
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = share * mean + (1 - share) * value;
    weight = share * weight + (1 - share);
    return mean / weight;
  });
}

/** Round numbers between two limits, about `count` of them. */
export function ticks(least, most, count = 4) {
  const rough = (most - least) / count;
  if (!(rough > 0)) return [least];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough) ?? 10 * power;
  const found = [];
  for (let value = Math.ceil(least / step) * step; value <= most + step / 1e6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** 1, 2 and 5 of every power of ten between two limits; of many powers only the 1. */
export function logTicks(least, most) {
  const [first, last] = [Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))];
  const factors = most > 300 * least ? [1] : [1, 2, 5];
  const found = [];
  for (let power = first; power <= last; power += 1) for (const factor of factors) found.push(factor * 10 ** power);
  const inside = found.filter((value) => value >= least * 0.999 && value <= most * 1.001);
  return inside.length ? inside : [least, most];
}

/** The drawing; `show` gives it curves [{label, color, values}] over steps. */
export class LossChart {
  constructor(tell) {
    this.tell = tell;
    this.steps = [];
    this.curves = [];
    this.place = null;
    this.svg = drawn("svg", { "aria-hidden": "true" });
    this.element = make("div", { className: "bst-chart", role: "img", tabIndex: 0, onkeydown: (event) => this.keyed(event) }, this.svg);
    this.element.addEventListener("pointermove", (event) => this.point(event), { passive: true });
    this.element.addEventListener("pointerleave", () => this.read(null), { passive: true });
    this.element.addEventListener("blur", () => this.read(null));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  show(steps, curves, { log, share }) {
    Object.assign(this, { steps, log });
    this.curves = curves.map((curve) => ({ ...curve, smooth: smoothed(curve.values, share) }));
    if (this.place !== null) this.place = Math.min(this.place, steps.length - 1);
    this.element.setAttribute("aria-label", this.spoken());
    this.draw();
  }

  spoken() {
    const facts = this.curves.map(({ label, smooth }) => `${label} ${shortNumber(smooth.at(-1))}`);
    return t("training.chart", { text: facts.join(", ") });
  }

  /** Least and most value that is shown, null without any. */
  limits() {
    const values = this.curves.flatMap(({ smooth }) => smooth).filter((value) => value !== null && (!this.log || value > 0));
    if (!values.length) return null;
    const least = values.reduce((one, other) => Math.min(one, other));
    const most = values.reduce((one, other) => Math.max(one, other));
    if (this.log) return [least * 0.93, most * 1.07];
    const room = (most - least || Math.abs(most) || 1) * 0.06;
    return [least >= 0 ? Math.max(0, least - room) : least - room, most + room];
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const limits = this.limits();
    if (!width || !height) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.cursor = null;
    if (!limits) {
      this.svg.replaceChildren();
      return;
    }
    const [least, most] = limits;
    const scale = (value) => (this.log ? Math.log(value) : value);
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    const reach = last - first || 1;
    this.x = (step) => MARGIN.left + ((step - first) / reach) * (width - MARGIN.left - MARGIN.right);
    this.y = (value) => height - MARGIN.bottom - ((scale(value) - scale(least)) / (scale(most) - scale(least) || 1)) * (height - MARGIN.top - MARGIN.bottom);
    const marks = [];
    for (const value of this.log ? logTicks(least, most) : ticks(least, most)) {
      const y = this.y(value);
      marks.push(drawn("line", { class: "bst-gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      marks.push(drawn("text", { class: "bst-tick", x: MARGIN.left - 5, y: y + 3.5, "text-anchor": "end" }, shortNumber(value)));
    }
    for (const step of ticks(first, last, Math.max(2, Math.floor(width / 90))).filter(Number.isInteger)) {
      marks.push(drawn("text", { class: "bst-tick", x: this.x(step), y: height - 5, "text-anchor": step === last ? "end" : "middle" }, `${step}`));
    }
    const faint = this.curves.length <= FEW ? this.curves.filter(({ values, smooth }) => values !== smooth).map((curve) => this.line(curve, curve.values, "bst-line bst-faint")) : [];
    this.svg.replaceChildren(...marks, ...faint, ...this.curves.map((curve) => this.line(curve, curve.smooth, "bst-line")));
    if (this.place !== null) this.mark();
  }

  line({ color }, values, className) {
    let path = "";
    let pen = "M";
    values.forEach((value, at) => {
      if (value === null || (this.log && value <= 0)) return;
      path += `${pen}${this.x(this.steps[at]).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = "L";
    });
    // one point alone is a dot
    if (path && !path.includes("L")) path += "h0.01";
    return drawn("path", { class: className, d: path, "data-color": color % COLORS });
  }

  point(event) {
    if (!this.steps.length || !this.x) return;
    const { left, width } = this.element.getBoundingClientRect();
    const across = ((event.clientX - left) / width) * this.element.clientWidth;
    let best = 0;
    this.steps.forEach((step, place) => {
      if (Math.abs(this.x(step) - across) < Math.abs(this.x(this.steps[best]) - across)) best = place;
    });
    this.read(best);
  }

  keyed(event) {
    const last = this.steps.length - 1;
    const at = this.place ?? last;
    const places = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last };
    if (!(event.key in places) || last < 0) return;
    this.read(Math.min(last, Math.max(0, places[event.key])));
    event.preventDefault();
    event.stopPropagation();
  }

  /** Tells the values at a place, or none. */
  read(place) {
    this.place = place;
    this.mark();
    if (place === null) return this.tell("");
    const facts = this.curves.map(({ label, smooth }) => `${label} ${shortNumber(smooth[place])}`);
    return this.tell(t("training.reading", { step: this.steps[place], text: facts.join(", ") }));
  }

  mark() {
    this.cursor?.remove();
    this.cursor = null;
    if (this.place === null || !this.x) return;
    const x = this.x(this.steps[this.place]);
    this.cursor = drawn("line", { class: "bst-cursor", x1: x, x2: x, y1: MARGIN.top, y2: this.element.clientHeight - MARGIN.bottom });
    this.svg.append(this.cursor);
  }
}
