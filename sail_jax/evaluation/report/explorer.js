// What stands around the maps: their task, colours, filter, list of items; and what two runs differ in.
(() => {
const source = document.getElementById("map-data");
if (!source) return;
const { maps, colours, grey, tile, sheet, across } = JSON.parse(source.textContent), MOST = 100;
const at = (id) => document.getElementById("map-" + id);
const make = (tag, kind, text) => {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  if (text !== undefined) node.textContent = text;
  return node;
};
const option = (value, text) => Object.assign(make("option", "", text), { value });
const labelsOf = (map, i) => map.labels[i].map((number) => map.names[number]);
const state = { active: null, hovered: null, chosen: null, lasso: false, draw, activate, choose, describe };
const playing = new Audio();
let views = [], changed = new Map(); // changed: id -> share of its neighbours that the other run does not have

function picture(map, i, side) {
  const uri = map.has[i].includes("V") && map.sheets[Math.floor(i / sheet)], node = make("span", uri ? "pic" : "pic none");
  node.style.width = node.style.height = side + "px";
  if (!uri) return node;
  const place = i % sheet;
  node.style.backgroundImage = `url(${uri})`;
  node.style.backgroundSize = across * side + "px";
  node.style.backgroundPosition = `${-(place % across) * side}px ${-Math.floor(place / across) * side}px`;
  return node;
}

function describe(map, i) {
  return [picture(map, i, 72), make("span", "", [map.captions[i] || map.ids[i], labelsOf(map, i).join(", ")].filter(Boolean).join(" · "))];
}

function addView(map, found, place) {
  const box = make("div", "view"), canvas = make("canvas"), tip = make("div", "tip");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map of ${map.ids.length} items, ${map.run}; arrow keys move it, plus and minus zoom. The list has the same items.`);
  tip.hidden = true;
  const view = new MapView(canvas, tip, state), head = make("div", "run", map.run);
  view.show(map);
  if (found.length > 2) {
    const runs = make("select");
    runs.setAttribute("aria-label", place ? "Run on the right" : "Run on the left");
    runs.append(...found.map((other, n) => option(n, other.run)));
    runs.value = found.indexOf(map);
    runs.addEventListener("change", () => { view.show(found[runs.value]); compare(); filter(); recolour(); });
    head.replaceChildren(runs);
  }
  box.append(...(found.length > 1 ? [head] : []), canvas, tip);
  at("views").append(box);
  return view;
}

function setTask() {
  const found = maps.filter((map) => map.task === at("task").value), counts = new Map();
  state.active = state.hovered = state.chosen = null;
  at("views").replaceChildren();
  views = found.slice(0, 2).map((map, place) => addView(map, found, place));
  compare();
  for (const { map } of views) for (const of of map.labels) for (const n of of) counts.set(map.names[n], (counts.get(map.names[n]) || 0) + 1);
  const frequent = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 40).map(([name]) => name);
  at("colour").replaceChildren(
    ...(frequent.length ? [option("first", "first label")] : []), option("has", "modalities"),
    ...(views.length > 1 ? [option("changed", "neighbours that changed")] : []), ...frequent.map((name) => option("=" + name, "label " + name)));
  recolour();
}

function compare() {
  changed = new Map();
  if (views.length < 2) return;
  const near = (view, i) => view.map.near[i].map((j) => view.map.ids[j]);
  for (const [id, i] of views[0].places) {
    const j = views[1].places.get(id), before = near(views[0], i);
    if (j === undefined || !before.length) continue;
    const after = new Set(near(views[1], j));
    changed.set(id, before.filter((other) => !after.has(other)).length / before.length);
  }
}

function kindOf(map, i) {
  const by = at("colour").value;
  if (by === "first") return map.labels[i].length ? map.names[map.labels[i][0]] : "";
  if (by === "has") return map.has[i];
  if (by === "changed") return changed.has(map.ids[i]) ? String(Math.round(4 * changed.get(map.ids[i]))) : "";
  return labelsOf(map, i).includes(by.slice(1)) ? by.slice(1) : "";
}

function recolour() {
  const ramp = at("colour").value === "changed", counts = new Map();
  for (const { map } of views) map.ids.forEach((_, i) => counts.set(kindOf(map, i), (counts.get(kindOf(map, i)) || 0) + 1));
  counts.delete("");
  const frequent = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, colours.length);
  const names = ramp ? ["0", "1", "2", "3", "4"] : frequent.map(([name]) => name);
  const colour = new Map(names.map((name, n) => [name, ramp ? `hsl(${210 - 45 * n} 70% 52%)` : colours[n]]));
  for (const view of views) view.paint(view.map.ids.map((_, i) => colour.get(kindOf(view.map, i)) || grey));
  at("legend").replaceChildren(...names.map((name) => {
    const chip = make(ramp ? "span" : "button", "chip", ramp ? `${25 * name} % changed` : name), dot = make("i");
    dot.style.background = colour.get(name);
    chip.prepend(dot);
    if (ramp) return chip;
    chip.type = "button";
    chip.title = "Show only these";
    chip.addEventListener("click", () => { at("filter").value = name; filter(); });
    return chip;
  }));
  draw();
  list();
}

function filter() {
  const text = at("filter").value.trim().toLowerCase();
  const words = (map, i) => [map.ids[i], map.captions[i], map.has[i], ...labelsOf(map, i)].join("\n").toLowerCase();
  for (const view of views) view.shown = text ? view.map.ids.map((_, i) => words(view.map, i).includes(text)) : null;
  choose(new Set());
}

function draw() { for (const view of views) view.draw(); }
function activate(id) { state.active = id; draw(); list(); }
function choose(ids) { state.chosen = ids.size ? ids : null; activate(null); }

function entry(view, i, note) {
  const button = make("button", "entry"), line = make("li");
  button.type = "button";
  button.append(picture(view.map, i, 40), make("span", "", view.map.captions[i] || view.map.ids[i]));
  if (note) button.append(make("b", "", note));
  button.addEventListener("click", () => activate(view.map.ids[i]));
  line.append(button);
  if (view.map.sounds[i]) {
    const play = make("button", "play", "▶");
    play.type = "button";
    play.setAttribute("aria-label", "Play the sound of " + view.map.ids[i]);
    play.addEventListener("click", () => { playing.src = view.map.sounds[i]; playing.play(); });
    line.append(play);
  }
  return line;
}

function neighbours(view, other) {
  const i = view.places.get(state.active), there = other ? other.places.get(state.active) : undefined;
  const head = other ? [make("li", "run", view.map.run)] : [];
  if (i === undefined) return [...head, make("li", "run", "not on this map")];
  const shared = there === undefined ? null : new Set(other.map.near[there].map((j) => other.map.ids[j]));
  const note = (j) => (shared && !shared.has(view.map.ids[j]) ? "only here" : "");
  return [...head, entry(view, i, "item"), ...view.map.near[i].map((j) => entry(view, j, note(j)))];
}

function list() {
  if (state.active !== null) {
    at("title").textContent = "An item and its nearest neighbours";
    at("list").replaceChildren(...views.flatMap((view, n) => neighbours(view, views[1 - n])));
    return;
  }
  const [view] = views, ranked = at("colour").value === "changed", share = (i) => changed.get(view.map.ids[i]) || 0;
  const found = view.map.ids.map((_, i) => i).filter((i) => view.visible(i));
  if (ranked) found.sort((a, b) => share(b) - share(a));
  const order = ranked ? ", most changed first" : "", cut = found.length > MOST ? `, ${MOST} of them listed` : "";
  at("title").textContent = `${found.length.toLocaleString("en")} items${cut}${order}`;
  at("list").replaceChildren(...found.slice(0, MOST).map((i) => entry(view, i, ranked ? Math.round(100 * share(i)) + " %" : "")));
}

function saveValues() {
  const cell = (value) => `"${String(value).replaceAll('"', '""')}"`, rows = ["run,id,x,y,modalities,labels,text"];
  for (const { map } of views) map.ids.forEach((id, i) => rows.push([map.run, id, map.x[i], map.y[i], map.has[i], labelsOf(map, i).join("|"), map.captions[i]].map(cell).join(",")));
  sailSave(new Blob([rows.join("\n")], { type: "text/csv" }), "map.csv");
}

at("task").append(...[...new Set(maps.map((map) => map.task))].map((task) => option(task, task)));
at("task").addEventListener("change", setTask);
at("colour").addEventListener("change", recolour);
at("filter").addEventListener("input", filter);
at("lasso").addEventListener("click", () => { state.lasso = !state.lasso; at("lasso").setAttribute("aria-pressed", state.lasso); });
at("in").addEventListener("click", () => views.forEach((view) => view.scale(1.4)));
at("out").addEventListener("click", () => views.forEach((view) => view.scale(1 / 1.4)));
at("reset").addEventListener("click", () => { at("filter").value = ""; views.forEach((view) => view.reset()); filter(); });
at("png").addEventListener("click", () => views.forEach((view) => view.canvas.toBlob((blob) => sailSave(blob, `map-${view.map.task}.png`))));
at("csv").addEventListener("click", saveValues);
document.getElementById("explorer").hidden = false;
setTask();
})();
