/** Following links, both ways, in and out of subgraphs. */

import { app } from "../../../scripts/app.js";

/** The node that feeds an input; out of a subgraph to what feeds the subgraph's own input. */
export function sourceOf(node, slot) {
  // a block that was removed has no links
  const link = node.graph ? node.getInputLink?.(slot) : null;
  if (!link) return null;
  const source = node.graph?.getNodeById(link.origin_id);
  if (source?.subgraph) return insideOf(source.subgraph, link.origin_slot);
  if (source) return source;
  const host = hostOf(node.graph);
  return host ? sourceOf(host, link.origin_slot) : null;
}

/** Whether something is linked to an input of this name. */
export function isFed(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.name === name);
  return slot >= 0 && Boolean(node.isInputConnected?.(slot));
}

/** The inputs that an output feeds, as [{node, slot}]. */
export function targetsOf(node, slot) {
  const links = (node.outputs?.[slot]?.links ?? []).map((id) => linkOf(node.graph, id));
  return links.filter(Boolean).flatMap((link) => endsOf(node.graph, link));
}

function endsOf(graph, link) {
  const target = graph.getNodeById(link.target_id);
  if (target?.subgraph) {
    const inner = target.subgraph;
    const links = (inner.inputs?.[link.target_slot]?.linkIds ?? []).map((id) => linkOf(inner, id));
    return links.filter(Boolean).flatMap((one) => endsOf(inner, one));
  }
  if (target) return [{ node: target, slot: link.target_slot }];
  const host = hostOf(graph);
  return host ? targetsOf(host, link.target_slot) : [];
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}

/** The node whose inside a graph is. */
function hostOf(graph) {
  return (app.graph?.nodes ?? []).find((other) => other.subgraph && other.subgraph === graph) ?? null;
}

/** The node within a subgraph that feeds one of its outputs. */
function insideOf(subgraph, slot) {
  const id = subgraph.outputs?.[slot]?.linkIds?.[0];
  const link = id === undefined ? null : subgraph.getLink?.(id);
  const source = link ? subgraph.getNodeById(link.origin_id) : null;
  return source?.subgraph ? insideOf(source.subgraph, link.origin_slot) : source;
}
