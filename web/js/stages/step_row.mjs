/** The steps of each stage, for the sampler that a node is linked to: a row below a stage strip. */

import { api } from "../../../../scripts/api.js";
import { make } from "../host/elements.mjs";
import { t } from "../host/strings.mjs";
import { samplingsOf } from "./sampling.mjs";
import { linkedSpectra } from "./spectra.mjs";

const KEPT = 60;
const asked = new Map();

/** Counts of steps per stage, as {counts, free, total} or {error}; asked once for each walk. */
function stepCounts(walk, count, clock, shift) {
  const { sampler, scheduler, steps, denoise, first, last } = walk;
  const query = new URLSearchParams({ sampler, scheduler, steps, denoise, first, last, stages: count, clock, shift: shift ?? "" });
  const route = `/bestiary/stage_steps?${query}`;
  if (!asked.has(route)) {
    const answer = api.fetchApi(route).then((found) => found.json());
    answer.catch(() => asked.delete(route));
    asked.set(route, answer);
    if (asked.size > KEPT) asked.delete(asked.keys().next().value);
  }
  return asked.get(route);
}

/** Row of cells, one per stage; `update(count, clock)` looks at the links again. */
export class StepRow {
  constructor(node) {
    this.node = node;
    this.cells = make("div", { className: "bst-cells bst-steps", role: "img" });
    this.element = make("div", { className: "bst-track bst-step-row" }, make("b", { textContent: "#", title: t("stages.steps") }), this.cells);
    this.note = make("p", { className: "bst-hint bst-step-note", role: "status" });
  }

  async update(count, clock = "timesteps") {
    const walks = samplingsOf(this.node);
    const walk = walks.find(({ unknown }) => !unknown);
    // stages keep the noise levels they were learned at, those of a flow if their file says so
    const shift = linkedSpectra(this.node).all.find((one) => one.shift)?.shift ?? walk?.shift ?? null;
    const asking = walk ? JSON.stringify([count, clock, shift, { ...walk, node: walk.node.id }]) : `${walks.length}/${count}`;
    if (asking === this.asking) return;
    this.asking = asking;
    if (!walk || (walk.unsure && !shift)) {
      this.show(Array(count).fill(null), t(walks.length ? "stages.stepsUnknown" : "stages.stepsUnlinked"));
      return;
    }
    let found;
    try {
      found = await stepCounts(walk, count, clock, shift);
    } catch {
      // the server did not answer: asked again at the next look
      found = { error: t("stages.stepsUnknown") };
      if (asking === this.asking) this.asking = null;
    }
    // links may have changed meanwhile
    if (this.asking !== null && asking !== this.asking) return;
    if (found.error) this.show(Array(count).fill(null), found.error);
    else this.tell(found, walk, walks.length, shift);
  }

  tell({ counts, free, total }, walk, several, shift) {
    const said = [t("stages.stepsOf", { steps: total, scheduler: walk.scheduler, title: walk.node.title ?? "" })];
    const missed = counts.map((steps, stage) => (steps ? 0 : stage + 1)).filter(Boolean);
    if (shift) said.push(t("stages.flow", { shift: Number(shift.toFixed(2)) }));
    if (missed.length) said.push(t("stages.unreached", { stages: missed.join(", ") }));
    if (free) said.push(t("stages.free", { count: free }));
    if (several > 1) said.push(t("stages.otherSamplers", { count: several - 1 }));
    this.show(counts, said.join(" "));
  }

  show(counts, words) {
    const cells = counts.map((steps, stage) => {
      const cell = make("span", { className: "bst-cell", textContent: steps === null ? "?" : steps || "!", title: t("stages.stageSteps", { stage: stage + 1, count: steps ?? "?" }) });
      cell.dataset.steps = steps ?? "unknown";
      return cell;
    });
    this.cells.replaceChildren(...cells);
    this.cells.setAttribute("aria-label", `${t("stages.steps")}: ${counts.map((steps) => steps ?? "?").join(" ")}`);
    this.element.classList.toggle("bst-dim", counts.includes(null));
    this.note.textContent = words;
    this.note.classList.toggle("bst-warning", counts.includes(0));
  }
}
