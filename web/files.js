/** A file that a workflow names and that is not there. The host refuses to run the node, and does not say what to do. */

import { app } from "../../scripts/app.js";
import { showProblem } from "./card.js";
import { everyNode, savedNodes } from "./graph.js";
import { say } from "./words.js";

/** The first widget of these nodes names a file, or a folder, in a folder. */
const FOLDERS = {
  LoadI2LPredictor: "models/i2l",
  LoadLoRAFile: "models/loras",
  ImagesFromFolder: "input",
  LoadInfinity: "models/diffusion_models",
  LoadInfinityTextEncoder: "models/text_encoders",
  LoadInfinityVAE: "models/vae",
};

/** Before a graph is built: Windows writes style\\ink where others write style/ink; name files as they are listed here. */
export function nameFiles(graph) {
  for (const { type, widgets_values: values } of savedNodes(graph)) {
    if (!(type in FOLDERS) || typeof values?.[0] !== "string") continue;
    const { required } = LiteGraph.registered_node_types[type]?.nodeData?.input ?? {};
    const [, { options: files } = {}] = Object.values(required ?? {})[0] ?? [];
    values[0] = files?.find((file) => slashes(file) === slashes(values[0])) ?? values[0];
  }
}

const slashes = (name) => name.replaceAll("\\", "/");

/** Say on a node that its file is missing, or take that away. */
export function checkFile(node) {
  if (!(node.type in FOLDERS)) return;
  const [widget] = node.widgets ?? [];
  const there = widget?.options?.values?.includes?.(widget.value) ?? true;
  showProblem(node, there ? "" : say("missing", { name: widget.value, folder: FOLDERS[node.type] }));
}

/** The lists of files were read again. */
export function checkAllFiles() {
  everyNode(app.rootGraph).forEach(checkFile);
}
