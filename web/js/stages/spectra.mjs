/** The spectra that a node's texts can name, found through its links, with their stages and attributes. */

import { api } from "../../../../scripts/api.js";
import { sourceOf } from "../host/links.mjs";
import { nodeRecords } from "../host/node_records.mjs";
import { safely } from "../host/safely.mjs";
import { widgetValue } from "../host/widgets.mjs";
import { nameOfFile } from "../parts/dictionaries.mjs";
import { findMentions, sameNamed } from "../parts/mentions.mjs";

const fetched = new Map();

/** Spectra linked to a node, as [{called, file or null}], in the order of its inputs. */
export function upstreamSpectra(node) {
  const found = [];
  (node.inputs ?? []).forEach(({ type }, slot) => {
    if (type !== "BESTIARY_SPECTRUM") return;
    const source = sourceOf(node, slot);
    const name = `${widgetValue(source ?? {}, "name") ?? ""}`.trim();
    const file = source?.comfyClass === "BestiaryLoadSpectrum" ? `${widgetValue(source, "file") ?? ""}` : "";
    const called = name || (file ? nameOfFile(file) : "");
    if (called) found.push({ called, file: file || fileBehind(source) });
  });
  return found;
}

/** A mixture has the stages and attributes of its first reference. */
function fileBehind(node) {
  return upstreamSpectra(node ?? {}).find(({ file }) => file)?.file ?? null;
}

function factsOf(file) {
  if (!file) return Promise.resolve(null);
  if (!fetched.has(file)) {
    const asked = api.fetchApi(`/bestiary/spectrum/${encodeURIComponent(file)}`).then((answer) => (answer.ok ? answer.json() : null));
    fetched.set(file, asked.catch(() => null));
  }
  return fetched.get(file);
}

/** What is linked to one node, kept up to date. */
class LinkedSpectra {
  constructor(node) {
    this.node = node;
    this.all = [];
    this.listeners = new Set();
  }

  async update() {
    const linked = upstreamSpectra(this.node);
    const asked = JSON.stringify(linked.map(({ called, file }) => [called, file]));
    if (asked !== this.asked) {
      this.asked = asked;
      const facts = await Promise.all(linked.map(({ file }) => factsOf(file)));
      // links may have changed meanwhile
      if (asked !== this.asked) return;
      this.all = linked.map(({ called }, place) => ({ called, ...facts[place] }));
    }
    for (const listener of this.listeners) safely(listener);
  }

  find(name) {
    return sameNamed(name, this.all, ({ called }) => called) ?? null;
  }

  /** The first spectrum that a text names: its stages count. */
  firstNamed(text) {
    const names = findMentions(text, true).flatMap(({ spectrum }) => (spectrum === undefined ? [] : [spectrum]));
    return names.map((name) => this.find(name)).find(Boolean) ?? null;
  }
}

const records = nodeRecords((node) => new LinkedSpectra(node));

/** The one record of a node, made and kept up to date from its first use on. */
export const linkedSpectra = records.of;

/** Files may have changed: everything is fetched again. */
export function fetchSpectraAgain() {
  fetched.clear();
  records.fetchAgain();
}
