/**
 * Pictures that come with a workflow of this pack. The template browser brings the graph alone, so a Load Image
 * node of a template names its picture in its properties,
 *
 *     "i2l_picture": "references/neon_1.png"        a path in workflows/
 *
 * and when such a graph is opened, the picture is put into ComfyUI's input folder. The server keeps what is there:
 * an equal file is used again, and a different one of the same name is left alone, and ours gets a number.
 */

import { app } from "../../scripts/app.js";
import { savedNodes } from "./graph.js";
import { say, tell } from "./words.js";

const PROPERTY = "i2l_picture";
const SHIPPED = /^references\/[\w-]+\.(png|jpg|webp)$/; // a workflow may come from anywhere
const PACK = new URL(".", import.meta.url).pathname.split("/").at(-2); // the folder in custom_nodes, URL-encoded

const placed = new Map(); // path -> promise of the name in the input folder, one request per picture and page
const names = new Set(); // all of these names

/** Before a graph is built: make sure that its pictures are there, and that its nodes name them as they are. */
export async function placePictures(graph) {
  const ours = savedNodes(graph).filter(isUntouched);
  const found = await Promise.allSettled(ours.map((node) => place(node.properties[PROPERTY])));
  const failed = found.flatMap(({ reason }, i) => (reason ? [{ name: ours[i].widgets_values[0], reason }] : []));
  if (failed.length) {
    const missing = failed.map(({ name }) => name).join(", ");
    tell("warn", say("template"), say("template_missing", { names: missing, reason: failed[0].reason.message }));
  }
  found.forEach(({ value }, i) => {
    if (!value) return;
    ours[i].widgets_values[0] = value;
    names.add(value);
  });
}

/** After a node is built: its list of files was read before the picture was there. */
export function listPicture(node) {
  const widget = node.properties?.[PROPERTY] && node.widgets?.find(({ name }) => name === "image");
  const values = widget?.options?.values;
  if (names.has(widget?.value) && !values.includes(widget.value)) values.push(widget.value);
}

/** Whether the node still shows the picture that the template gave it. */
function isUntouched(node) {
  const path = node.properties?.[PROPERTY];
  return SHIPPED.test(path) && node.widgets_values?.[0] === fileName(path);
}

function place(path) {
  if (!placed.has(path)) {
    const name = upload(path);
    placed.set(path, name);
    name.catch(() => placed.delete(path)); // try again when the graph is opened again
  }
  return placed.get(path);
}

async function upload(path) {
  const url = path.split("/").map(encodeURIComponent).join("/");
  const response = await app.api.fetchApi(`/workflow_templates/${PACK}/${url}`);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  return uploadPicture(new File([await response.blob()], fileName(path)));
}

/** Put a file into ComfyUI's input folder; the name it has there, as Load Image lists it. */
export async function uploadPicture(file) {
  const body = new FormData();
  body.append("image", file);
  const response = await app.api.fetchApi("/upload/image", { method: "POST", body });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const { name, subfolder } = await response.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

function fileName(path) {
  return path.split("/").at(-1);
}
