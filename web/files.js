/** A file that a workflow names and that is not there. The host refuses to run the node, and does not say what to do. */

import { app } from "../../scripts/app.js";
import { showProblem } from "./card.js";
import { everyNode } from "./graph.js";
import { say } from "./words.js";

/** Widgets that name files, and the folder these belong in. */
const FILES = {
  LoadI2LPredictor: { predictor_name: "models/i2l" },
  LoadLoRAFile: { lora_name: "models/loras" },
};

/** Say on a node which of its files is missing, or take that away. */
export function checkFiles(node) {
  if (!(node.type in FILES)) return;
  const missing = Object.entries(FILES[node.type]).flatMap(([name, folder]) => {
    const widget = node.widgets?.find((widget) => widget.name === name);
    const there = widget?.options.values?.includes?.(widget.value) ?? true;
    return there ? [] : [say("missing", { name: widget.value, folder })];
  });
  showProblem(node, missing.join(" "));
}

/** The lists of files were read again. */
export function checkAllFiles() {
  everyNode(app.rootGraph).forEach(checkFiles);
}
