/** Show a workflow of the pack, which nobody has moved yet, so large that it can be read. */

import { app } from "../../scripts/app.js";

const READABLE = 0.6; // below 0.57 the classic renderer draws no text
const EDGE = { left: 80, top: 95, right: 30, bottom: 60 }; // pixels of the canvas under bars and menus

/** All of it where it can be read then, else its beginning. The front end itself fits a template into three quarters. */
export function showReadable() {
  const { ds, i2l_view: shipped } = app.graph.extra ?? {};
  const restores = app.ui.settings.getSettingValue("Comfy.EnableWorkflowViewRestore");
  if (!restores || !shipped || !same(ds, shipped)) return;
  const boxes = [...app.graph.nodes.map((node) => node.getBounding()), ...app.graph.groups.map((g) => g.boundingRect)];
  if (!boxes.length) return;
  const [left, top] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [right, bottom] = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])));
  const { clientWidth, clientHeight } = app.canvas.canvas;
  const [wide, high] = [clientWidth - EDGE.left - EDGE.right, clientHeight - EDGE.top - EDGE.bottom];
  const whole = Math.min(wide / (right - left), high / (bottom - top), 1);
  const scale = Math.max(whole, READABLE);
  const spare = (room, size) => Math.max(0, room - size * scale) / 2;
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = (EDGE.left + spare(wide, right - left)) / scale - left;
  app.canvas.ds.offset[1] = (EDGE.top + spare(high, bottom - top)) / scale - top;
  app.canvas.setDirty(true, true);
}

const same = (one, other) =>
  one?.scale === other.scale && [0, 1].every((axis) => one.offset?.[axis] === other.offset[axis]);
