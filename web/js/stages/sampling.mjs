/** How what a node gives will be sampled: found by following its links to the samplers. */

import { sourceOf, targetsOf } from "../host/links.mjs";
import { findWidget, widgetValue } from "../host/widgets.mjs";

const FOLLOWED = new Set(["CONDITIONING", "BESTIARY_SPECTRUM", "GUIDER", "*"]);
/** Changes of a model's noise that the server does not know of. */
const OTHER_NOISE = /^ModelSampling/;
/** Loads transformers mostly, whose noise the graph does not say. */
const UNSURE = "UNETLoader";
/** Shift of the included transformer; of other loaders the graph does not say what they load. */
const DEMO_SHIFT = 3;
const MOST_FOLLOWED = 400;

/**
 * Walks of all samplers behind a node: {node, sampler, scheduler, steps, denoise, first, last, shift of a flow or null,
 * unsure: whether the model may well be no Stable Diffusion}, or {node, unknown: true} where
 * one cannot be told from the graph. Empty where none is linked.
 */
export function samplingsOf(node) {
  const seen = new Set([node]);
  const found = new Map();
  const waiting = [node];
  while (waiting.length && seen.size < MOST_FOLLOWED) {
    const one = waiting.shift();
    (one.outputs ?? []).forEach(({ type }, slot) => {
      if (!FOLLOWED.has(type)) return;
      for (const { node: target } of targetsOf(one, slot)) {
        if (seen.has(target)) continue;
        seen.add(target);
        const walk = walkOf(target);
        if (walk) found.set(target, walk);
        else waiting.push(target);
      }
    });
  }
  return [...found.values()];
}

const kindOf = (node) => node.comfyClass ?? node.type;

/** The walk of a sampler, null for other nodes. */
function walkOf(node) {
  const sigmas = inputSlot(node, "sigmas");
  const own = findWidget(node, "steps") && findWidget(node, "scheduler");
  if (sigmas < 0 && !own) return null;
  const linked = sigmas >= 0 ? sourceOf(node, sigmas) : null;
  const isSampler = own || (node.outputs ?? []).some(({ type }) => type === "LATENT");
  if (!isSampler) return null;
  const source = linked ?? (own ? node : null);
  if (!source || !(findWidget(source, "steps") && findWidget(source, "scheduler")) || hasOtherNoise(source) || hasOtherNoise(node)) {
    return { node, unknown: true };
  }
  // a scheduler of its own has the steps of any sampler that leaves none out
  const names = ["sampler_name", "sampler"].filter((name) => findWidget(source, name));
  const facts = {
    sampler: names.length ? widgetValue(source, names[0]) : "euler",
    scheduler: widgetValue(source, "scheduler"),
    steps: widgetValue(source, "steps"),
    denoise: findWidget(source, "denoise") ? widgetValue(source, "denoise") : 1,
    first: findWidget(source, "start_at_step") ? widgetValue(source, "start_at_step") : 0,
    last: findWidget(source, "end_at_step") ? widgetValue(source, "end_at_step") : 10000,
  };
  return Object.values(facts).some((value) => value === undefined) ? { node, unknown: true } : { node, ...facts, shift: shiftOf(node) ?? shiftOf(source), unsure: [node, source].some((one) => kindOf(modelChain(one).at(-1) ?? {}) === UNSURE) };
}

function inputSlot(node, name) {
  return (node.inputs ?? []).findIndex((input) => input.name === name);
}

/** The nodes that a MODEL comes through, from the one linked to a node to its loader. */
function modelChain(node) {
  const chain = [];
  const linked = (one, slot) => (slot < 0 ? null : sourceOf(one, slot));
  let model = linked(node, inputSlot(node, "model"));
  while (model && chain.length < MOST_FOLLOWED) {
    chain.push(model);
    model = linked(model, (model.inputs ?? []).findIndex((input) => input.type === "MODEL"));
  }
  return chain;
}

const hasOtherNoise = (node) => modelChain(node).some((model) => OTHER_NOISE.test(kindOf(model)));

function shiftOf(node) {
  const loader = modelChain(node).at(-1);
  return loader && kindOf(loader) === "BestiaryDemoModel" && widgetValue(loader, "shape") === "dit" ? DEMO_SHIFT : null;
}
