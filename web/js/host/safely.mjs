/** Running work so that a fault in one widget stays its own: at once, after a method of a node, or when everything under way is done. */

/** Runs `work`. Errors, also of a returned promise, are logged to the console and do not propagate. */
export function safely(work, ...facts) {
  try {
    const result = work(...facts);
    if (typeof result?.catch === "function") result.catch(log);
    return result;
  } catch (fault) {
    log(fault);
    return undefined;
  }
}

/** Runs `work` after a node's own method, if it has one. */
export function after(node, method, work) {
  const before = node[method];
  node[method] = function (...facts) {
    const result = before?.apply(this, facts);
    safely(work, ...facts);
    return result;
  };
}

/** `work` once, as soon as everything that is under way is done. */
export function debounced(work) {
  let planned = false;
  return () => {
    if (planned) return;
    planned = true;
    setTimeout(() => {
      planned = false;
      safely(work);
    }, 30);
  };
}

function log(fault) {
  console.error("[Bestiary]", fault);
}
