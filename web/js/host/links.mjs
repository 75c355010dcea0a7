/**
 * Following links both ways: in and out of subgraphs, past reroutes, Get and Set nodes (KJNodes, Easy-Use) and bypassed blocks.
 *
 * A subgraph that stands in a workflow several times is followed out of the block it was entered by, else out of the first that is
 * linked.
 */

import { app } from "../../../../scripts/app.js";

const MOST_FOLLOWED = 300;
const GETTER = /^(easy )?getnode$/i;
const SETTER = /^(easy )?setnode$/i;
const REROUTE = /^reroute\b/i;
const BYPASSED = 4;

/** The node that feeds an input; out of a subgraph to what feeds the subgraph's own input. */
export function sourceOf(node, slot) {
  const feed = feedOf(node, slot);
  return feed && !feed.widget ? feed.node : null;
}

/** What feeds an input: {node, slot} of an output, {node, widget} where a subgraph's block offers the field as its own, or null. */
export function feedOf(node, slot) {
  return fed(node, slot, [], MOST_FOLLOWED);
}

/** Whether an input of this name is linked; a field that a subgraph's node shows as its own widget does not count as a link. */
export function isFed(node, name) {
  const slot = (node.inputs ?? []).findIndex((input) => input.name === name);
  if (slot < 0 || !node.isInputConnected?.(slot)) return false;
  const feed = feedOf(node, slot);
  // within a subgraph the socket outside may be empty
  return feed ? !feed.widget : !isSubgraph(node.graph);
}

/** The inputs that an output feeds, as [{node, slot}]. */
export function targetsOf(node, slot) {
  return targets(node, slot, [], MOST_FOLLOWED);
}

/** The blocks whose inside a graph is. */
export function hostsOf(graph) {
  return isSubgraph(graph) ? everyGraph().flatMap((other) => (other.nodes ?? []).filter((node) => node.subgraph === graph)) : [];
}

/** How the server calls a node: its number, behind those of the blocks around it; several where its subgraph stands several times. */
export function executionIds(node, left = MOST_FOLLOWED) {
  if (!isSubgraph(node.graph) || left <= 0) return [`${node.id}`];
  return hostsOf(node.graph).flatMap((host) => executionIds(host, left - 1).map((place) => `${place}:${node.id}`));
}

const kindOf = (node) => node.comfyClass ?? node.type;
const rootGraph = () => app.rootGraph ?? app.graph;
const isSubgraph = (graph) => Boolean(graph) && graph !== rootGraph();

function everyGraph() {
  const root = rootGraph();
  return root ? [root, ...(root.subgraphs?.values() ?? [])] : [];
}

function linkOf(graph, id) {
  return graph?.getLink?.(id) ?? graph?.links?.get?.(id) ?? graph?.links?.[id] ?? null;
}

/** The link that ends at an input. */
function linkInto(node, slot) {
  // a block that was removed has no links
  if (!node.graph) return null;
  // subgraph blocks answer with a link of their inside
  return (node.subgraph ? LiteGraph.LGraphNode.prototype : node).getInputLink?.call(node, slot) ?? null;
}

function fed(node, slot, path, left) {
  const link = left > 0 ? linkInto(node, slot) : null;
  return link ? originOf(node.graph, link, path, left) : null;
}

function originOf(graph, link, path, left) {
  const source = graph.getNodeById(link.origin_id);
  if (source) return outputOf(source, link.origin_slot, path, left);
  for (const host of around(graph, path)) {
    const found = fed(host, link.origin_slot, path.slice(0, -1), left - 1) ?? ownField(host, link.origin_slot);
    if (found) return found;
  }
  return null;
}

/** What an output carries: the node's own, or what merely passes through it. */
function outputOf(node, slot, path, left) {
  const kind = kindOf(node);
  if (node.mode === BYPASSED) {
    const passed = passedSlot(node, slot);
    return passed < 0 ? null : fed(node, passed, path, left - 1);
  }
  if (node.subgraph) {
    const link = linkOf(node.subgraph, node.subgraph.outputs?.[slot]?.linkIds?.[0]);
    return link && left > 0 ? originOf(node.subgraph, link, [...path, node], left - 1) : null;
  }
  if (REROUTE.test(kind)) return fed(node, 0, path, left - 1);
  if (GETTER.test(kind)) {
    const found = setterOf(node, path);
    return found ? fed(found.setter, 0, found.path, left - 1) : null;
  }
  if (SETTER.test(kind)) return fed(node, 0, path, left - 1);
  return { node, slot };
}

/** The input that a bypassed block hands on: one of the same type, the one beside the output first. */
function passedSlot(node, slot) {
  const type = node.outputs?.[slot]?.type;
  const inputs = node.inputs ?? [];
  return inputs[slot]?.type === type ? slot : inputs.findIndex((input) => input.type === type);
}

/** Field of a subgraph's block that stands for an input inside. */
function ownField(host, slot) {
  const input = host.inputs?.[slot];
  const widget = input && (host.getWidgetFromSlot?.(input) ?? input._widget);
  return widget ? { node: host, widget } : null;
}

/** Blocks around a graph: the one that was passed on the way in, else all. */
function around(graph, path) {
  const entered = path.at(-1);
  return entered?.subgraph === graph ? [entered] : hostsOf(graph);
}

const nameOf = (node) => node.widgets?.[0]?.value;

/** The Set node of a Get node's name: of its own graph, else of those around it. */
function setterOf(getter, path) {
  const setterIn = (graph) => (graph?.nodes ?? []).find((node) => SETTER.test(kindOf(node)) && nameOf(node) === nameOf(getter));
  let graph = getter.graph;
  for (let left = MOST_FOLLOWED; graph && left > 0; left -= 1) {
    const setter = setterIn(graph);
    if (setter) return { setter, path };
    const [host] = around(graph, path);
    path = path.slice(0, -1);
    graph = host?.graph;
  }
  return null;
}

/** Get nodes of a Set node's name, in its own graph and within. */
function gettersOf(setter) {
  const within = (graph, left) =>
    (graph?.nodes ?? []).flatMap((node) => {
      if (node.subgraph) return left > 0 ? within(node.subgraph, left - 1) : [];
      return GETTER.test(kindOf(node)) && nameOf(node) === nameOf(setter) ? [node] : [];
    });
  return [...new Set(within(setter.graph, 20))];
}

function targets(node, slot, path, left) {
  if (left <= 0 || !node.graph) return [];
  const links = (node.outputs?.[slot]?.links ?? []).map((id) => linkOf(node.graph, id));
  return links.filter(Boolean).flatMap((link) => endsOf(node.graph, link, path, left - 1));
}

function endsOf(graph, link, path, left) {
  const target = graph.getNodeById(link.target_id);
  if (!target) return around(graph, path).flatMap((host) => targets(host, link.target_slot, path.slice(0, -1), left));
  if (target.subgraph) {
    const inner = target.subgraph;
    const links = (inner.inputs?.[link.target_slot]?.linkIds ?? []).map((id) => linkOf(inner, id));
    return left > 0 ? links.filter(Boolean).flatMap((one) => endsOf(inner, one, [...path, target], left - 1)) : [];
  }
  if (SETTER.test(kindOf(target))) return [...targets(target, 0, path, left), ...gettersOf(target).flatMap((getter) => targets(getter, 0, [], left))];
  if (REROUTE.test(kindOf(target))) return targets(target, 0, path, left);
  return [{ node: target, slot: link.target_slot }];
}
