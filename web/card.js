/**
 * The card on a node of the pack: what it said about itself after its last run (see i2l_core/card.py), and what is
 * wrong with it.
 *
 * The card is a DOM widget, which the classic and the Vue node renderer both show. It is there only while it has
 * something to say. The report is kept in the node's properties, so it is saved with the workflow, but not with
 * pictures: what a run writes into them was put together before the run, and its cards are those of the run before.
 * Thumbnails of somebody's references do not belong there: the browser remembers them, for as long as the tab is open.
 */

import { app } from "../../scripts/app.js";
import { savedNodes } from "./graph.js";
import { say } from "./words.js";

const NAME = "i2l_card"; // of the widget, of the property, and of what nodes report

export const WIDTH = 240; // of a node, at least, that has a card
const MOST_LINES = 200; // kept with the workflow
const STORE = "i2l_thumbnails";
const MOST_REMEMBERED = 20;

const shown = new WeakMap(); // node -> { report, problem }

/** A run has ended: show what the node reported, and keep it. `output` is the `ui` of the node. */
export function showReport(node, output) {
  const report = joined(output?.[NAME] ?? []);
  if (!report) return;
  show(node, { report, problem: "" });
  const { thumbnails, ...kept } = report;
  if (thumbnails) remember(report.id, thumbnails);
  if (JSON.stringify(node.properties[NAME]) === JSON.stringify(kept)) return;
  node.properties[NAME] = kept;
  settle(node); // at once: a run that finds all in the cache ends before the front end has looked at the graph
  afterLayout(() => settle(node));
}

/** A workflow was loaded: show what was kept. It may come from anywhere, and must load whatever it holds. */
export function showKept(node) {
  const report = node.properties?.[NAME];
  if (!report) return;
  try {
    show(node, { report: { ...report, thumbnails: new Map(remembered()).get(report.id) } });
  } catch (error) {
    console.info(`i2L: what ${node.type} ${node.id} kept of its last run cannot be shown`, error);
    delete node.properties[NAME];
    show(node, { report: undefined });
  }
}

/** A run is put together: take the cards of the run before out of the workflow that its pictures will carry. */
export function dropKept(workflow) {
  for (const node of savedNodes(workflow)) {
    if (!node.properties?.[NAME]) continue;
    node.properties = { ...node.properties };
    delete node.properties[NAME];
  }
}

/** Show one sentence about what is wrong with the node; "" takes it away. */
export function showProblem(node, problem) {
  if (problem || shown.get(node)?.problem) show(node, { problem });
}

function show(node, change) {
  const state = { ...shown.get(node), ...change };
  shown.set(node, state);
  const fitted = Math.abs(node.size[1] - node.computeSize()[1]) < 2; // as high as what is in it
  let widget = node.widgets?.find(({ name }) => name === NAME);
  const parts = draw(state);
  if (parts.length) {
    widget ??= addWidget(node);
    if (node.size[0] < WIDTH) node.setSize([WIDTH, node.size[1]]);
    widget.element.replaceChildren(...parts);
    widget.measure();
  } else if (widget) {
    node.removeWidget(widget);
  }
  const height = node.computeSize()[1];
  if (fitted || height > node.size[1]) node.setSize([node.size[0], height]);
  node.graph?.setDirtyCanvas(true, true);
}

/** A node that runs for each entry of a list reports as often: the last report, with what any of them says. */
function joined(reports) {
  const last = reports.at(-1);
  const said = [...new Set(reports.flatMap(({ lines }) => lines ?? []))];
  const lines = said.slice(0, MOST_LINES);
  if (said.length > MOST_LINES) lines.push(`… + ${said.length - MOST_LINES}`);
  return last && { ...last, lines, ...(reports.length > 1 && { runs: reports.length }) };
}

function addWidget(node) {
  const element = make("div", "i2l-card");
  passOn(element);
  let height = 0;
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => height,
    getMaxHeight: () => height,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // not among the values of the saved workflow either
  widget.measure = () => {
    height = heightOf(element, node.size[0] - 2 * widget.margin) + 2 * widget.margin;
  };
  widget.options.afterResize = widget.measure;
  return widget;
}

/** What is not for the card is for the canvas. Vue nodes see to that themselves. */
function passOn(element) {
  element.addEventListener("wheel", (event) => {
    if (LiteGraph.vueNodesMode || (isScrolled(event.target) && !event.ctrlKey)) return;
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  });
  const drag = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
  for (const [type, process] of Object.entries(drag)) {
    element.addEventListener(type, (event) => {
      if (LiteGraph.vueNodesMode) {
        if (isScrolled(event.target)) event.stopPropagation(); // its bar is dragged, not the node
      } else if (event.button === 1 || event.buttons & 4) {
        app.canvas[process](event); // the middle button moves the view
      }
    });
  }
}

function isScrolled(target) {
  const box = target.closest(".i2l-lines");
  return box && box.scrollHeight > box.clientHeight;
}

/** Pixels that a copy of the card takes at a width. The card itself may not be on the page. */
function heightOf(element, width) {
  const copy = element.cloneNode(true);
  copy.style.cssText = `position: fixed; visibility: hidden; width: ${width}px; height: auto`;
  document.body.append(copy);
  const height = copy.offsetHeight;
  copy.remove();
  return height;
}

/**
 * Put the node, with its report, into the state that undo compares with, too: it is no step of the artist's that undo
 * should take back. The whole node, because a front end saves more of a node that has a card (from 1.51 on its empty
 * values). Then tell the front end, which marks the workflow as changed and stores its draft.
 */
function settle(node) {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  const state = tracker?.activeState;
  const graphs = state ? [state, ...(state.definitions?.subgraphs ?? [])] : [];
  const nodes = graphs.find(({ id }) => id === node.graph?.id)?.nodes ?? [];
  const at = nodes.findIndex(({ id }) => String(id) === String(node.id));
  if (at < 0) return;
  nodes[at] = JSON.parse(JSON.stringify(node.serialize()));
  tracker.updateModified?.();
}

/** Thumbnails by id, the newest first. */
function remembered() {
  return JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
}

function remember(id, thumbnails) {
  const others = remembered().filter(([other]) => other !== id);
  try {
    sessionStorage.setItem(STORE, JSON.stringify([[id, thumbnails], ...others].slice(0, MOST_REMEMBERED)));
  } catch {
    sessionStorage.removeItem(STORE); // no room: they are decoration
  }
}

function afterLayout(action) {
  requestAnimationFrame(() => requestAnimationFrame(action));
}

function draw({ report = {}, problem }) {
  const loras = report.loras ?? [];
  const said = (report.lines ?? []).map((text) => make("div", "", String(text)));
  if (loras.length && report.runs > 1) said.unshift(make("div", "", say("last_of", { n: report.runs })));
  const warnings = report.warnings?.map((one) => make("div", "i2l-warning", say(one.id, one, one.text))) ?? [];
  return [
    problem && make("div", "i2l-problem", problem),
    report.thumbnails?.length && thumbnails(report),
    ...loras.map((lora) => (lora.landed === undefined ? predicted(report, lora) : applied(lora))),
    said.length && lines(said),
    ...warnings,
  ].filter(Boolean);
}

/** Lines of text; more of them than fit are scrolled. */
function lines(said) {
  const box = make("div", "i2l-lines", ...said);
  box.dataset.captureWheel = "true"; // a Vue node leaves the wheel to it, once it was clicked
  box.tabIndex = -1;
  return box;
}

function thumbnails({ thumbnails, references }) {
  const row = make("div", "i2l-thumbnails");
  for (const source of thumbnails) {
    if (!source.startsWith("data:image/")) continue;
    const picture = make("img");
    picture.src = source;
    picture.draggable = false;
    row.append(picture);
  }
  const more = references - thumbnails.length;
  if (more > 0) row.append(make("span", "i2l-more", `+${more}`));
  return row;
}

function predicted({ references }, lora) {
  const count = references === 1 ? say("reference") : say("references", { n: references });
  const facts = [count, say("rank", { n: lora.rank }), say("layers", { n: lora.layers })];
  return make("div", "i2l-lora", line(lora, facts), bars(lora));
}

function applied(lora) {
  const facts = [
    `× ${lora.strength.toFixed(2)}`,
    say("landed", lora),
    say(lora.side ?? lora.mode),
  ];
  return make("div", "i2l-lora", line(lora, facts), bars(lora));
}

function line({ role }, facts) {
  const chip = make("span", `i2l-chip i2l-${role}`, say(role));
  return make("div", "i2l-line", chip, ` ${facts.join(" · ")}`);
}

/** One bar per block, as high as its change is large (the norm: the root of its energy); a gap between kinds. */
function bars({ blocks, role }) {
  const largest = Math.max(...blocks.map(([, , share]) => share), 1e-9);
  const row = make("div", `i2l-bars i2l-${role}`);
  let last = "";
  for (const [section, index, share] of blocks) {
    const bar = make("i", last && section !== last ? "i2l-first" : "");
    bar.style.height = `${Math.max(6, 100 * Math.sqrt(share / largest))}%`;
    bar.title = say("energy", { block: `${section} ${index}`, percent: (100 * share).toFixed(1) });
    row.append(bar);
    last = section;
  }
  return row;
}

/** An element with a class and children; strings become text, never markup. */
function make(tag, kind = "", ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.append(...children);
  return element;
}
