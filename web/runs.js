/**
 * Follows the runs. The front end says that a node failed, and hides why behind two clicks; our errors are one
 * sentence for the artist, so it belongs on the node. Of a run that a restart of the server took away, the front end
 * says nothing at all.
 */

import { app } from "../../scripts/app.js";
import { dropKept, showProblem } from "./card.js";
import { everyNode, nodeAt } from "./graph.js";
import { say, tell } from "./words.js";

let running = ""; // the id of the run that has started and not ended

/** `isOurs` tells the nodes of this pack from others. */
export function watchRuns(isOurs) {
  const ourNodes = () => everyNode(app.rootGraph).filter(isOurs);
  const on = (type, act) => app.api.addEventListener(type, ({ detail }) => act(detail));

  const { graphToPrompt } = app;
  app.graphToPrompt = async function (...args) {
    const prompt = await graphToPrompt.apply(this, args);
    dropKept(prompt?.workflow);
    return prompt;
  };

  on("execution_start", ({ prompt_id: id }) => {
    running = id;
    ourNodes().forEach((node) => showProblem(node, ""));
  });
  on("execution_success", () => (running = ""));
  on("execution_interrupted", () => (running = ""));
  on("execution_error", ({ node_id: id, node_type: type, exception_type: kind, exception_message: message }) => {
    running = "";
    if (!kind?.endsWith(".I2LError")) return;
    const node = nodeAt(app.rootGraph, id);
    if (node && isOurs(node)) showProblem(node, message.trim());
    else tell("error", node?.title ?? type, message.trim());
  });
  on("reconnected", async () => {
    const lost = running;
    running = "";
    if (lost && ourNodes().length && !(await isKnown(lost))) tell("warn", say("lost"), say("lost_detail"));
  });
}

/** Whether the server still has a run: in its queue, or finished. */
async function isKnown(id) {
  const { queue_running: going, queue_pending: waiting } = await read("/queue");
  return [...going, ...waiting].some(([, other]) => other === id) || id in (await read(`/history/${id}`));
}

async function read(path) {
  return (await app.api.fetchApi(path)).json();
}
