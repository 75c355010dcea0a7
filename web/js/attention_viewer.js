/** The heat-map viewer on Show Attention: hover a part to see where it looked, pin parts to compare, scrub through the steps. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { HeatMaps, color, loadImage } from "./attention/heat_maps.mjs";
import { addStyle, make, ownEvents, slider } from "./host/elements.mjs";
import { keepMounted, showPicturesOnce } from "./host/mounting.mjs";
import { after } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";

const HEIGHT = 440;
const SIZE = [420, 760];
const MOST_PINNED = 6;

const percent = (value) => `${(100 * value).toPrecision(2)} %`;

/** What one node shows. */
class AttentionViewer {
  constructor() {
    this.pinned = new Set();
    this.hovered = null;
    this.step = null;
    this.picture = 0;
    this.opacity = 0.75;
    this.stage = make("div", { className: "bst-stage" });
    this.chips = make("div", { className: "bst-chips", role: "group", "aria-label": t("attention.parts") });
    this.status = make("p", { className: "bst-hint", role: "status", textContent: t("attention.empty") });
    this.pictureSelect = make("select", { "aria-label": t("attention.picture"), hidden: true, onchange: () => this.choosePicture() });
    this.scrub = make("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": t("attention.step"), oninput: () => this.setStep() });
    this.stepText = make("output", { textContent: t("attention.allSteps") });
    this.cover = slider(t("attention.opacity"), { min: 0, max: 1, step: 0.05 }, (value) => this.setOpacity(value));
    this.cover.show(this.opacity);
    const scale = make("span", { className: "bst-scale", "aria-hidden": "true" });
    const stops = [0, 0.2, 0.4, 0.6, 0.8, 1].map((weight) => `rgb(${color(weight).join(" ")})`);
    scale.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    const scrubRow = make("label", { className: "bst-scrub" }, make("span", { textContent: t("attention.step") }), this.scrub, this.stepText);
    this.controls = make("div", { className: "bst-controls", hidden: true }, this.pictureSelect, scrubRow, this.cover.element, scale);
    this.element = make("div", { className: "bst-attention", role: "group", "aria-label": t("attention.title") }, this.stage, this.chips, this.controls, this.status);
    ownEvents(this.element);
  }

  async show(facts) {
    try {
      const [maps, ...grounds] = await Promise.all([
        HeatMaps.load(facts, address(facts.sheet)),
        ...facts.grounds.map((ground) => loadImage(address(ground))),
      ]);
      Object.assign(this, { maps, grounds, step: null, picture: Math.min(this.picture, maps.pictures - 1) });
    } catch (fault) {
      this.status.textContent = t("attention.gone", { text: fault.message });
      return;
    }
    this.pinned = new Set([...this.pinned].filter((part) => part < this.maps.parts.length));
    this.scrub.max = this.maps.steps.length;
    this.scrub.value = 0;
    this.controls.hidden = false;
    this.pictureSelect.hidden = this.maps.pictures < 2;
    const pictures = Array.from({ length: this.maps.pictures }, (_, number) => make("option", { value: number, textContent: t("attention.pictureNumber", { number: number + 1 }) }));
    this.pictureSelect.replaceChildren(...pictures);
    this.pictureSelect.value = this.picture;
    this.chips.replaceChildren(...this.maps.parts.map((name, part) => this.chip(name, part)));
    this.setStep();
  }

  chip(name, part) {
    const set = (hovered) => () => {
      this.hovered = hovered;
      this.render();
    };
    return make("button", {
      type: "button",
      className: "bst-chip",
      textContent: name,
      title: t("attention.pin", { part: name }),
      "aria-pressed": "false",
      onpointerenter: set(part),
      onpointerleave: set(null),
      onfocus: set(part),
      onblur: set(null),
      onclick: () => this.pin(part),
    });
  }

  pin(part) {
    if (!this.pinned.delete(part)) this.pinned.add(part);
    if (this.pinned.size > MOST_PINNED) this.pinned.delete([...this.pinned][0]);
    this.hovered = null;
    this.render();
  }

  choosePicture() {
    this.picture = Number(this.pictureSelect.value);
    this.render();
  }

  setOpacity(value) {
    this.opacity = value;
    this.render();
  }

  setStep() {
    const place = Number(this.scrub.value);
    this.step = place ? place - 1 : null;
    const [first, last] = this.maps.steps[this.step ?? 0];
    const said = first === last ? `${first}` : `${first}–${last}`;
    this.stepText.textContent = this.step === null ? t("attention.allSteps") : said;
    this.scrub.setAttribute("aria-valuetext", this.stepText.textContent);
    this.render();
  }

  /** The part under the pointer alone, else those that are pinned, else all. */
  shown() {
    if (this.hovered !== null) return [this.hovered];
    return this.pinned.size ? [...this.pinned].sort((one, other) => one - other) : this.maps.parts.map((_, part) => part).slice(0, MOST_PINNED);
  }

  render() {
    if (!this.maps) return;
    const shown = this.shown();
    const ground = this.grounds[this.picture] ?? null;
    this.weights = new Map(this.maps.parts.map((_, part) => [part, this.maps.map(this.picture, part, this.step)]));
    this.stage.style.setProperty("--columns", Math.min(3, Math.ceil(Math.sqrt(shown.length))));
    this.stage.replaceChildren(...shown.map((part) => this.frame(part, ground)));
    [...this.chips.children].forEach((chip, part) => chip.setAttribute("aria-pressed", `${this.pinned.has(part)}`));
    const facts = shown.map((part) => `${this.maps.parts[part]} ${percent(Math.max(...this.weights.get(part)) * this.maps.peaks[part])}`);
    this.status.textContent = t("attention.peaks", { text: facts.join(", ") });
  }

  frame(part, ground) {
    const canvas = make("canvas", { role: "img", "aria-label": t("attention.map", { part: this.maps.parts[part] }) });
    this.maps.draw(canvas, ground, this.weights.get(part), this.opacity);
    canvas.addEventListener("pointermove", (event) => this.tell(event, canvas), { passive: true });
    canvas.addEventListener("pointerleave", () => this.render(), { passive: true });
    return make("figure", {}, canvas, make("figcaption", { textContent: this.maps.parts[part] }));
  }

  /** Which parts look at the place under the pointer. */
  tell(event, canvas) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    // the drawing is centred in the element and keeps its proportions
    const scale = Math.min(width / canvas.width, height / canvas.height);
    const across = (event.clientX - left - (width - canvas.width * scale) / 2) / (canvas.width * scale);
    const down = (event.clientY - top - (height - canvas.height * scale) / 2) / (canvas.height * scale);
    if (across < 0 || across >= 1 || down < 0 || down >= 1) return;
    const here = this.maps.parts.map((name, part) => ({ name, share: this.maps.at(this.weights.get(part), part, across, down) }));
    here.sort((one, other) => other.share - one.share);
    this.status.textContent = t("attention.here", { text: here.slice(0, 3).map(({ name, share }) => `${name} ${percent(share)}`).join(", ") });
  }
}

function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type })}`);
}

app.registerExtension({
  name: "Bestiary.AttentionViewer",
  async init() {
    addStyle();
    await loadStrings();
  },
  nodeCreated(node) {
    if (node.comfyClass !== "BestiaryShowAttention") return;
    const viewer = new AttentionViewer();
    const widget = node.addDOMWidget("viewer", "BESTIARY_ATTENTION_VIEWER", viewer.element, {
      serialize: false,
      hideOnZoom: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
    after(node, "onExecuted", (output) => {
      const [facts] = output?.bestiary_attention ?? [];
      if (facts) viewer.show(facts);
    });
    showPicturesOnce(node);
    keepMounted(node, viewer.element);
  },
});
