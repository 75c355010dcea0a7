/** What is known of each node through its links, kept up to date while links, settings and files change. */

import { api } from "../../../../scripts/api.js";
import { after, debounced, safely } from "./safely.mjs";

/**
 * Records of a kind, one a node: `build(node)` makes one with `update()`, and with `asked`, which is null where the next update
 * fetches anew. Gives {of(node), updateAll(), fetchAgain()}.
 */
export function nodeRecords(build) {
  const known = new Map();

  const updateAll = debounced(() => {
    for (const record of known.values()) safely(() => record.update());
  });

  /** The one record of a node, made and kept up to date from its first use on. */
  function of(node) {
    if (known.has(node)) return known.get(node);
    const record = build(node);
    known.set(node, record);
    const later = debounced(() => record.update());
    after(node, "onConnectionsChange", later);
    after(node, "onConfigure", later);
    after(node, "onRemoved", () => known.delete(node));
    later();
    return record;
  }

  /** Files may have changed. */
  function fetchAgain() {
    for (const record of known.values()) record.asked = null;
    updateAll();
  }

  // a loader upstream may name another file now
  api.addEventListener("graphChanged", updateAll);
  return { of, updateAll, fetchAgain };
}
