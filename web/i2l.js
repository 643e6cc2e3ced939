/** ComfyUI-i2L in the front end: cards on nodes, pictures dropped on a node, pictures that templates bring. */

import { app } from "../../scripts/app.js";
import { showKept, showReport, WIDTH } from "./card.js";
import { takeDrops } from "./drop.js";
import { checkAllFiles, checkFile, nameFiles } from "./files.js";
import { listPicture, placePictures } from "./pictures.js";
import { watchRuns } from "./runs.js";
import { showReadable } from "./view.js";

const MODULE = `custom_nodes.${decodeURIComponent(new URL(".", import.meta.url).pathname.split("/").at(-2))}`;

const isOurs = (node) => node.constructor.nodeData?.python_module === MODULE;

function chain(prototype, name, after) {
  const before = prototype[name];
  prototype[name] = function (...args) {
    const result = before?.apply(this, args);
    after(this, ...args);
    return result;
  };
}

app.registerExtension({
  name: "i2l",

  init() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("card.css", import.meta.url).href;
    document.head.append(style);
    watchRuns(isOurs);
  },

  beforeRegisterNodeDef(nodeType, { name, input, python_module: module }) {
    if (module !== MODULE) return;
    chain(nodeType.prototype, "onExecuted", showReport);
    chain(nodeType.prototype, "onConfigure", showKept);
    chain(nodeType.prototype, "onWidgetChanged", checkFile);
    if (name === "ImagesToLoRA") takeDrops(nodeType, input.optional?.images?.[1].template?.max ?? Infinity);
  },

  nodeCreated(node) {
    // titles fit, and a card does not widen it
    if (isOurs(node) && node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
  },

  async beforeConfigureGraph(graph) {
    nameFiles(graph);
    await placePictures(graph);
  },

  afterConfigureGraph: showReadable,

  loadedGraphNode(node) {
    listPicture(node);
    checkFile(node);
  },

  refreshComboInNodes: checkAllFiles,
});
