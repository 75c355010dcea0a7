/** The dictionaries that a node can name, kept up to date while links and files change. */

import { nodeRecords } from "../host/node_records.mjs";
import { safely } from "../host/safely.mjs";
import { DictionarySet, forgetDictionaries, listDictionaries, loadDictionary } from "./dictionaries.mjs";
import { mergeDictionaries } from "./merging.mjs";
import { upstreamDictionaries } from "./upstream.mjs";

const NOTHING = new DictionarySet([]);

/** What is linked to one node; `chosen()` names a file to look at while nothing is. */
class LinkedDictionaries {
  constructor(node) {
    this.node = node;
    this.set = NOTHING;
    this.fault = null;
    /** Files to choose from, while nothing is linked. */
    this.files = null;
    this.asked = null;
    this.listeners = new Set();
    this.chosen = () => null;
  }

  /** Looks again; fetches what is linked where it is something else than before, then calls the listeners. */
  async update() {
    const linked = upstreamDictionaries(this.node);
    const file = this.chosen();
    const wanted = linked.length || !file ? linked : [{ file }];
    const asked = JSON.stringify([wanted, linked.length > 0]);
    if (asked !== this.asked) {
      this.asked = asked;
      try {
        const files = linked.length ? null : await listDictionaries();
        const loaded = await Promise.all(wanted.map(loadEntry));
        // links may have changed meanwhile
        if (asked !== this.asked) return;
        Object.assign(this, { files, fault: null, set: new DictionarySet(loaded) });
      } catch (fault) {
        if (asked !== this.asked) return;
        Object.assign(this, { fault: fault.message, set: NOTHING });
      }
    }
    for (const listener of this.listeners) safely(listener);
  }

  get loading() {
    return this.asked !== null && this.set === NOTHING && !this.fault && !this.files;
  }
}

/** A dictionary of a file, or one merged of two. */
async function loadEntry({ file, merge, called }) {
  if (!merge) return loadDictionary(file, called);
  const [first, second] = await Promise.all(merge.map(loadEntry));
  return mergeDictionaries(first, second, called);
}

const records = nodeRecords((node) => new LinkedDictionaries(node));

/** The one record of a node, made and kept up to date from its first use on. */
export const linkedDictionaries = records.of;

/** Looks again for every node. */
export const updateAll = records.updateAll;

/** Files may have changed: everything is fetched again. */
export function fetchAgain() {
  forgetDictionaries();
  records.fetchAgain();
}
