/** Nodes of a graph and of the subgraphs in it. */

/** Every node, however deep. */
export function everyNode(graph) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...everyNode(node.subgraph)]);
}

/** Every node of a workflow as it is saved. */
export function savedNodes(workflow) {
  return [workflow, ...(workflow?.definitions?.subgraphs ?? [])].flatMap(({ nodes }) => nodes ?? []);
}

/** The node of an id of the server: "12", or "5:12" for node 12 in the subgraph that node 5 is. */
export function nodeAt(graph, id) {
  return String(id)
    .split(":")
    .reduce((place, part) => (place?.subgraph ?? place)?.getNodeById?.(part), graph);
}
