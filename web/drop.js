/**
 * Pictures dropped on Images to LoRA become its references: each is uploaded, gets a Load Image node to the left,
 * and is wired into the next free socket. All of it is one step for undo.
 */

import { app } from "../../scripts/app.js";
import { uploadPicture } from "./pictures.js";
import { say, tell } from "./words.js";

const SOCKETS = "images.";
const READABLE = /^image\/(png|jpeg|webp|gif|bmp|tiff|avif)$/;
const LOADER = "LoadImage";
const SIZE = [220, 322]; // of a Load Image node with its preview, in either renderer
const GAP = 40;
const COLUMN = 4; // pictures in a column, at least

/** Give a node class the handlers of the front end for files. `most` is how many pictures the node takes. */
export function takeDrops(nodeType, most) {
  nodeType.prototype.onDragOver = (event) => hasFiles(event);
  nodeType.prototype.onDragDrop = async function (event) {
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return false; // something else: the front end knows better
    app.extensionManager.spinner = true;
    try {
      await addReferences(this, files, most);
    } finally {
      app.extensionManager.spinner = false;
    }
    return true;
  };
}

async function addReferences(node, files, most) {
  const limit = app.api.getServerFeature?.("max_upload_size") ?? Infinity;
  const pictures = [];
  const problems = { not_pictures: [], too_large: [], unreadable: [] };
  const free = most - node.inputs.filter((input) => isSocket(input) && input.link != null).length;
  for (const file of files) {
    const problem = await problemOf(file, limit);
    if (problem) problems[problem].push(file.name);
    else pictures.push(file);
  }
  for (const [problem, names] of Object.entries(problems)) {
    if (names.length) complain(problem, { names: listed(names), limit: Math.round(limit / 2 ** 20) });
  }
  if (pictures.length > free) complain("too_many", { most, n: pictures.length - free });

  const names = [];
  for (const file of pictures.slice(0, free)) {
    try {
      names.push(await uploadPicture(file));
    } catch (error) {
      complain("refused", { names: file.name, reason: error.message });
    }
  }
  if (names.length) wire(node, names);
}

/** The key of the sentence that says why a file cannot be a reference; empty when it can. */
async function problemOf(file, limit) {
  if (!READABLE.test(file.type)) return "not_pictures";
  if (file.size > limit) return "too_large";
  if (file.type === "image/tiff") return ""; // ComfyUI reads it, browsers do not
  try {
    (await createImageBitmap(file)).close();
  } catch {
    return "unreadable";
  }
  return "";
}

function wire(node, names) {
  const { graph } = node;
  app.canvas.emitBeforeChange();
  try {
    const loaders = names.map((name) => {
      const loader = LiteGraph.createNode(LOADER);
      loader.size = [...SIZE];
      graph.add(loader);
      const widget = loader.widgets.find((widget) => widget.name === "image");
      if (!widget.options.values.includes(name)) widget.options.values.push(name);
      widget.value = name;
      widget.callback?.(name);
      return loader;
    });
    arrange(node, loaders);
    for (const loader of loaders) loader.connect(0, node, freeSocket(node));
    app.canvas.selectItems(loaders);
  } finally {
    app.canvas.emitAfterChange();
    graph.setDirtyCanvas(true, true);
  }
}

const isSocket = ({ name, type }) => name.startsWith(SOCKETS) && type.split(",").includes("IMAGE");

function freeSocket(node) {
  return node.inputs.findIndex((input) => isSocket(input) && input.link == null);
}

/** A grid in the nearest free place to the left of the node or below that, read column by column. */
function arrange(node, loaders) {
  const title = LiteGraph.NODE_TITLE_HEIGHT;
  const rows = Math.max(Math.min(loaders.length, COLUMN), Math.ceil(Math.sqrt(loaders.length)));
  const columns = Math.ceil(loaders.length / rows);
  const [stepX, stepY] = [SIZE[0] + GAP / 2, SIZE[1] + title + GAP / 2];
  const [width, height] = [columns * stepX - GAP / 2, rows * stepY - GAP / 2];
  const others = node.graph.nodes.filter((other) => !loaders.includes(other));
  const start = [node.pos[0] - GAP - width, node.pos[1] - title];
  const [left, top] = freePlace(others.map((other) => other.getBounding()), start, width, height);
  loaders.forEach((loader, i) => {
    loader.pos = [left + Math.floor(i / rows) * stepX, top + title + (i % rows) * stepY];
  });
}

/** The place nearest to `start` that no box covers; whatever covers one is passed on its left or below it. */
function freePlace(boxes, start, width, height) {
  const places = [start];
  const distance = ([x, y]) => Math.hypot(x - start[0], y - start[1]);
  for (;;) {
    const [x, y] = places.sort((a, b) => distance(a) - distance(b)).shift();
    const box = boxes.find(
      ([left, top, w, h]) =>
        left < x + width + GAP / 2 && left + w > x - GAP / 2 && top < y + height + GAP / 2 && top + h > y - GAP / 2,
    );
    if (!box) return [x, y];
    places.push([box[0] - GAP - width, y], [x, box[1] + box[3] + GAP]);
  }
}

function hasFiles(event) {
  return [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
}

function listed(names) {
  return names.length > 3 ? `${names.slice(0, 3).join(", ")} + ${names.length - 3}` : names.join(", ");
}

function complain(key, values) {
  tell("error", say("dropped"), say(key, values));
}
