/** What a training looks like on its block: curves, time left, previews and heat maps, now and after it ended. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addStyle, iconButton, make, ownEvents, slider } from "./host/elements.mjs";
import { Panel } from "./host/folding.mjs";
import { executionIds } from "./host/links.mjs";
import { showPicturesOnce } from "./host/mounting.mjs";
import { after, debounced, safely } from "./host/safely.mjs";
import { loadStrings, t } from "./host/strings.mjs";
import { findWidget, ownWidget, watchWidget } from "./host/widgets.mjs";
import { LossChart, shortNumber } from "./training/loss_chart.mjs";

/** Blocks that train, and what. */
const BLOCKS = { BestiaryTrainParts: "parts", BestiaryTrainInBackground: "parts", BestiaryTrainSpectrum: "spectrum", BestiaryTrainDreamBooth: "dreambooth" };
const EVENT = "bestiary.training";
const HEIGHT = 560;
const SIZE = [440, 1010];
const PAUSE = 900;
/** Groups of curves: single ones by their names, others by the list whose entries they are. */
const SINGLE = ["loss", "noise_loss", "attention_loss", "instance_loss", "prior_loss"];
const LISTS = ["part_attention_loss", "attention_iou", "stage_loss"];
const SHEETS = ["pictures", "attention"];
const shown = new Set();

/** Seconds as 1:05 or 1:02:05. */
function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const pair = (number) => `${number}`.padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${pair(minutes)}:${pair(whole % 60)}` : `${minutes}:${pair(whole % 60)}`;
}

/** What one node shows; curves and pictures come from the run's folder. */
class TrainingPreview {
  constructor(node) {
    this.node = node;
    this.listing = null;
    this.live = null;
    this.hidden = new Set();
    this.sheet = SHEETS[0];
    this.pinned = null;
    this.build();
    ownEvents(this.element);
    this.panel = new Panel(node, { name: "training", property: "bestiary_training", element: this.element, height: HEIGHT, size: SIZE });
    this.tools.prepend(this.panel.button);
    this.log.checked = Boolean(this.panel.state.log);
    this.smooth.show(this.share);
  }

  build() {
    this.title = make("b", { className: "bst-run" });
    this.status = make("span", { className: "bst-progress-text", role: "status" });
    this.bar = make("progress", { className: "bst-bar", max: 1, value: 0, "aria-label": t("training.progress") });
    this.tools = make("div", { className: "bst-tools" }, this.title, this.status);
    this.group = make("select", { "aria-label": t("training.curves"), onchange: () => this.keep({ group: this.group.value }) });
    this.log = make("input", { type: "checkbox", onchange: () => this.keep({ log: this.log.checked }) });
    this.smooth = slider(t("training.smooth"), { min: 0, max: 0.98, step: 0.02 }, (value) => this.keep({ smooth: value }));
    const options = make("div", { className: "bst-options" }, this.group, make("label", { className: "bst-check" }, this.log, t("training.log")), this.smooth.element);
    this.chart = new LossChart((text) => this.tell(text));
    this.legend = make("div", { className: "bst-chips bst-legend", role: "group", "aria-label": t("training.legend") });
    this.picture = make("img", { className: "bst-sheet", decoding: "async" });
    this.frame = make("a", { className: "bst-sheet-frame", target: "_blank", rel: "noopener", title: t("training.open") }, this.picture);
    this.tabs = SHEETS.map((sheet) => make("button", { type: "button", className: "bst-chip", textContent: t(`training.${sheet}`), onclick: () => this.choose(sheet) }));
    this.scrub = make("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": t("training.preview"), oninput: () => this.goBack() });
    this.scrubText = make("output", {});
    this.newest = iconButton("newest", t("training.newest"), () => this.goBack(null));
    const scrubRow = make("label", { className: "bst-scrub" }, this.scrub, this.scrubText);
    this.previews = make(
      "div",
      { className: "bst-previews", role: "group", "aria-label": t("training.previews") },
      make("div", { className: "bst-preview-tools" }, ...this.tabs, scrubRow, this.newest),
      this.frame,
    );
    this.hint = make("p", { className: "bst-hint", textContent: t("training.empty") });
    this.element = make("div", { className: "bst-picker bst-training", role: "group", "aria-label": t("training.title") }, this.tools, this.bar, options, this.chart.element, this.legend, this.hint, this.previews);
  }

  get share() {
    return this.panel.state.smooth ?? 0.6;
  }

  keep(changes) {
    this.panel.remember(changes);
    this.showCurves();
  }

  tell(text) {
    this.hint.textContent = text || this.resting;
  }

  /** How far the training is; curves and pictures follow a little later. */
  hear({ run, step, total, passed, left }) {
    this.live = step < total ? { run, step, total, passed, left } : null;
    this.showProgress();
    this.later();
  }

  /** The training ended, by itself or not. */
  rest() {
    this.live = null;
    this.refresh();
  }

  /** Fetches soon, and only so often. */
  later() {
    this.planned ??= setTimeout(() => {
      this.planned = null;
      this.refresh();
    }, Math.max(0, PAUSE - (Date.now() - (this.fetched ?? 0))));
  }

  async refresh() {
    // a block that was removed shows nothing
    if (!this.node.graph) return;
    this.fetched = Date.now();
    const name = `${findWidget(this.node, "name")?.value ?? ""}`.trim();
    const newest = `/bestiary/newest_run/${encodeURIComponent(name || "-")}?kind=${BLOCKS[this.node.comfyClass]}`;
    const route = this.live?.run ? `/bestiary/run/${encodeURIComponent(this.live.run)}` : newest;
    try {
      const answer = await api.fetchApi(route);
      const listing = await answer.json();
      if (!answer.ok) throw new Error(listing.error ?? `${answer.status}`);
      // of another run the newest preview is wanted first
      if (listing.run !== this.listing?.run) this.pinned = null;
      this.listing = listing.run === null ? null : listing;
      this.fault = null;
    } catch (fault) {
      this.fault = fault.message;
    }
    this.render();
  }

  render() {
    this.showProgress();
    this.showCurves();
    this.showPreviews();
  }

  showProgress() {
    const { listing, live } = this;
    const facts = live ?? (listing ? { step: listing.step, total: listing.total } : null);
    this.title.textContent = live?.run ?? listing?.run ?? t("training.title");
    this.title.title = this.title.textContent;
    const parts = facts ? [t("training.step", { step: facts.step, total: facts.total ?? "?" })] : [];
    if (live) parts.push(t("training.left", { passed: duration(live.passed), left: duration(live.left) }));
    else if (listing?.rate) parts.push(t("training.rate", { rate: shortNumber(listing.rate) }));
    this.status.textContent = parts.join(" · ");
    this.bar.hidden = !facts?.total;
    if (facts?.total) this.bar.value = facts.step / facts.total;
    this.element.classList.toggle("bst-live", Boolean(live));
    const left = listing?.stopped && !live && !(listing.step >= listing.total) ? listing : null;
    const rest = left && t("training.stopped", { step: left.step, file: left.stopped, run: left.run });
    this.resting = this.fault ?? rest ?? (listing ? t("training.read") : t("training.empty"));
    this.hint.classList.toggle("bst-notice", Boolean(rest) && !this.fault);
    this.tell("");
  }

  /** Curves by group: name of the group -> [{label, key}], only those that were logged. */
  groups() {
    const { curves, labels } = this.listing;
    const groups = new Map();
    const single = SINGLE.filter((key) => key in curves);
    if (single.length) groups.set("loss", single.map((key) => ({ key, label: t(`training.${key}`) })));
    for (const list of LISTS) {
      const keys = Object.keys(curves).filter((key) => key.startsWith(`${list}/`)).sort((one, other) => entry(one) - entry(other));
      const label = (key) => labels[list]?.[entry(key)] ?? `${entry(key) + 1}`;
      if (keys.length) groups.set(list, keys.map((key) => ({ key, label: label(key) })));
    }
    return groups;
  }

  showCurves() {
    const groups = this.listing ? this.groups() : new Map();
    this.group.hidden = groups.size < 2;
    const names = [...groups.keys()];
    if (this.group.dataset.names !== `${names}`) {
      this.group.dataset.names = `${names}`;
      this.group.replaceChildren(...names.map((name) => make("option", { value: name, textContent: t(`training.group.${name}`) })));
    }
    const chosen = groups.has(this.panel.state.group) ? this.panel.state.group : names[0];
    this.group.value = chosen ?? "";
    const entries = (groups.get(chosen) ?? []).map((one, color) => ({ ...one, color, values: this.listing.curves[one.key] }));
    const visible = entries.filter(({ key }) => !this.hidden.has(key));
    this.chart.show(this.listing?.steps ?? [], visible, { log: this.log.checked, share: this.share });
    this.legend.replaceChildren(...entries.map((one) => this.chip(one)));
    this.element.classList.toggle("bst-without-curves", !entries.length);
  }

  chip({ key, label, color, values }) {
    const swatch = make("span", { className: "bst-swatch", "aria-hidden": "true" });
    swatch.dataset.color = color % 10;
    const last = values.findLast((value) => value !== null);
    return make(
      "button",
      { type: "button", className: "bst-chip", "aria-pressed": `${!this.hidden.has(key)}`, title: t("training.hide", { curve: label }), onclick: () => this.hide(key) },
      swatch,
      make("span", { textContent: label }),
      make("small", { textContent: shortNumber(last) }),
    );
  }

  hide(key) {
    if (!this.hidden.delete(key)) this.hidden.add(key);
    const place = [...this.legend.children].indexOf(document.activeElement);
    this.showCurves();
    if (place >= 0) this.legend.children[place]?.focus();
  }

  choose(sheet) {
    this.sheet = sheet;
    this.showPreviews();
  }

  /** Shows the preview under the slider, or with null the newest and those that follow. */
  goBack(place = Number(this.scrub.value)) {
    const steps = this.steps();
    this.pinned = place === null || place >= steps.length - 1 ? null : steps[place];
    this.showPreviews();
  }

  steps() {
    return this.listing?.previews?.[this.sheet] ?? [];
  }

  showPreviews() {
    const all = this.listing?.previews ?? {};
    if (!all[this.sheet]?.length) this.sheet = SHEETS.find((sheet) => all[sheet]?.length) ?? SHEETS[0];
    const steps = this.steps();
    this.previews.hidden = !steps.length;
    this.tabs.forEach((tab, place) => {
      tab.hidden = !all[SHEETS[place]]?.length;
      tab.setAttribute("aria-pressed", `${SHEETS[place] === this.sheet}`);
    });
    if (!steps.length) return;
    const place = this.pinned === null ? steps.length - 1 : Math.max(0, steps.findLastIndex((step) => step <= this.pinned));
    this.scrub.max = steps.length - 1;
    this.scrub.value = place;
    this.scrub.disabled = steps.length < 2;
    this.newest.hidden = this.pinned === null;
    this.scrubText.textContent = t("training.atStep", { step: steps[place] });
    this.scrub.setAttribute("aria-valuetext", this.scrubText.textContent);
    const route = `/bestiary/run_picture/${encodeURIComponent(this.listing.run)}?${new URLSearchParams({ step: steps[place], sheet: this.sheet })}`;
    const address = api.apiURL(route);
    if (this.picture.getAttribute("src") === address) return;
    this.picture.src = address;
    this.picture.alt = t("training.pictureAlt", { kind: t(`training.${this.sheet}`), step: steps[place] });
    this.frame.href = address;
  }
}

const entry = (key) => Number(key.split("/").pop());

/** The preview of the block that the server calls so; blocks within others have a path of numbers. */
function previewOf(id) {
  return [...shown].find(({ node }) => node.graph && executionIds(node).includes(`${id}`));
}

app.registerExtension({
  name: "Bestiary.TrainingPreview",
  async init() {
    addStyle();
    await loadStrings();
    api.addEventListener(EVENT, ({ detail }) => previewOf(detail.node)?.hear(detail));
    for (const name of ["execution_interrupted", "execution_error", "execution_success"]) {
      api.addEventListener(name, () => [...shown].filter(({ live }) => live).forEach((preview) => safely(() => preview.rest())));
    }
  },
  nodeCreated(node) {
    if (!(node.comfyClass in BLOCKS)) return;
    const preview = new TrainingPreview(node);
    shown.add(preview);
    showPicturesOnce(node);
    const again = debounced(() => preview.refresh());
    watchWidget(ownWidget(node, "name"), again);
    after(node, "onConfigure", () => {
      preview.log.checked = Boolean(preview.panel.state.log);
      preview.smooth.show(preview.share);
      again();
    });
    after(node, "onExecuted", () => preview.rest());
    after(node, "onRemoved", () => shown.delete(preview));
    again();
  },
});
