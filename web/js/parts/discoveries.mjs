/** What the server keeps of discoveries: which a block made last, and what edits make of its parts. */

import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { executionIds } from "../host/links.mjs";
import { t } from "../host/strings.mjs";

/** Longer edits travel compressed: an address has about 8,000 characters at most. */
const LONGEST_PLAIN = 3000;
const PATIENCE = 60_000;

async function packed(text) {
  const squeezed = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(squeezed).arrayBuffer());
  const base64 = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return base64.replaceAll("+", "-").replaceAll("/", "_");
}

async function asked(text) {
  const plain = `${new URLSearchParams({ edits: text })}`;
  return plain.length <= LONGEST_PLAIN ? plain : `${new URLSearchParams({ packed: await packed(text) })}`;
}

const fetched = (route) => api.fetchApi(route, { signal: AbortSignal.timeout(PATIENCE) });

/** The parts of a discovery after the edits of a text; {gone} where it is not kept any more, {error} where nothing can be said. */
export async function describeDiscovery(key, text) {
  try {
    const answer = await fetched(`/bestiary/discovered/${encodeURIComponent(key)}?${await asked(text)}`);
    if (answer.status === 404) return { gone: true };
    // a server that cannot read so long an address answers in words of its own
    const plain = answer.headers.get("Content-Type")?.startsWith("application/json");
    return plain ? await answer.json() : { error: t("parts.tooLong") };
  } catch (fault) {
    return { error: fault.message };
  }
}

/** Key of the newest discovery of a block in this page, null where none is kept. */
export async function newestDiscovery(node) {
  try {
    const root = node.graph?.rootGraph ?? app.graph;
    // of a subgraph that stands several times any of them will do
    const places = executionIds(node);
    const place = places.length === 1 ? places[0] : `:${node.id}`;
    const query = new URLSearchParams({ workflow: root?.id ?? "", client: api.clientId ?? "" });
    const answer = await fetched(`/bestiary/newest_discovery/${encodeURIComponent(place)}?${query}`);
    return (await answer.json()).key ?? null;
  } catch {
    return null;
  }
}

/** Address of a picture of a discovery, or of its labels. */
export function discoveredPicture(key, what, number) {
  return api.apiURL(`/bestiary/discovered/${encodeURIComponent(key)}/${what}?${new URLSearchParams({ number })}`);
}
