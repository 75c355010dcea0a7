/** One widget's fault stays its own. */

/** Runs `work`; what it throws, at once or later, is told in the console and stops nobody else. */
export function safely(work, ...facts) {
  try {
    const result = work(...facts);
    if (typeof result?.catch === "function") result.catch(tell);
    return result;
  } catch (fault) {
    tell(fault);
    return undefined;
  }
}

function tell(fault) {
  console.error("[Bestiary]", fault);
}
