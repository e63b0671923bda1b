// A map on a canvas: drawn, moved, zoomed, pointed at. Maps share a state: `active` and `hovered` (ids or null),
// `chosen` (a set of ids or null), `lasso`, and the functions draw(), activate(id), choose(ids), describe(map, i).
class MapView {
  constructor(canvas, tip, state) {
    Object.assign(this, { canvas, tip, state, size: [0, 0] });
    this.reset();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(map) {
    this.map = map;
    this.shown = null; // or, by item, whether the filter leaves it
    this.places = new Map(map.ids.map((id, i) => [id, i]));
  }

  reset() {
    this.zoom = 1;
    this.dx = this.dy = 0;
  }

  // Takes the colour of each item; items are drawn colour by colour, which is quicker.
  paint(colour) {
    this.colour = colour;
    this.order = colour.map((_, i) => i).sort((a, b) => (colour[a] < colour[b] ? -1 : colour[a] > colour[b] ? 1 : a - b));
  }

  // Where an item lies on the canvas; the map is 0 to 1000 each way.
  place(i) {
    const [w, h] = this.size, side = (Math.min(w, h) - 24) * this.zoom;
    return [w / 2 + this.dx + (this.map.x[i] / 1000 - 0.5) * side, h / 2 + this.dy + (this.map.y[i] / 1000 - 0.5) * side];
  }

  visible(i) {
    return (!this.shown || this.shown[i]) && (!this.state.chosen || this.state.chosen.has(this.map.ids[i]));
  }

  draw() {
    const [w, h] = (this.size = [this.canvas.clientWidth, this.canvas.clientHeight]);
    const ratio = devicePixelRatio || 1, pen = this.canvas.getContext("2d");
    if (!w || !this.order) return;
    if (this.canvas.width !== Math.round(w * ratio)) this.canvas.width = w * ratio;
    if (this.canvas.height !== Math.round(h * ratio)) this.canvas.height = h * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    const side = (this.map.ids.length > 3000 ? 3 : 5) * Math.min(2, Math.sqrt(this.zoom));
    for (const strong of [false, true]) {
      pen.globalAlpha = strong ? 0.9 : 0.12;
      let last = "";
      for (const i of this.order) {
        if (this.visible(i) !== strong) continue;
        const [x, y] = this.place(i);
        if (this.colour[i] !== last) pen.fillStyle = last = this.colour[i];
        pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(this.canvas).color;
    this.mark(pen);
  }

  // Draws the item that is asked about with lines to its neighbours, and the lasso.
  mark(pen) {
    const stroke = (draw, width) => { pen.lineWidth = width; pen.beginPath(); draw(); pen.stroke(); };
    const of = this.places.get(this.state.active);
    if (of !== undefined) for (const other of this.map.near[of]) stroke(() => { pen.moveTo(...this.place(of)); pen.lineTo(...this.place(other)); }, 1);
    for (const id of [this.state.active, this.state.hovered]) if (this.places.has(id)) stroke(() => pen.arc(...this.place(this.places.get(id)), 8, 0, 7), 2);
    if (this.path) stroke(() => this.path.forEach((point) => pen.lineTo(...point)), 1.5);
  }

  nearest([x, y]) {
    let best = -1, least = 144;
    for (let i = 0; i < this.map.ids.length; i++) {
      const [px, py] = this.place(i), far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least && this.visible(i)) [least, best] = [far, i];
    }
    return best;
  }

  inside(path) {
    return new Set(this.map.ids.filter((_, i) => {
      const [x, y] = this.place(i);
      let odd = false;
      for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
        const [ax, ay] = path[a], [bx, by] = path[b];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
      }
      return odd && this.visible(i);
    }));
  }

  // Zooms around a point of the canvas, by default its middle.
  scale(by, [x, y] = this.size.map((side) => side / 2)) {
    const [w, h] = this.size, zoom = Math.min(40, Math.max(0.5, this.zoom * by));
    by = zoom / this.zoom;
    this.zoom = zoom;
    this.dx = (this.dx - (x - w / 2)) * by + (x - w / 2);
    this.dy = (this.dy - (y - h / 2)) * by + (y - h / 2);
    this.draw();
  }

  hover(i, [x, y]) {
    const id = i < 0 ? null : this.map.ids[i];
    this.tip.hidden = id === null;
    if (id !== null) {
      this.tip.replaceChildren(...this.state.describe(this.map, i));
      this.tip.style.left = Math.max(0, Math.min(x + 12, this.size[0] - 230)) + "px";
      this.tip.style.top = this.canvas.offsetTop + y + 14 + "px";
    }
    if (id === this.state.hovered) return;
    this.state.hovered = id;
    this.state.draw();
  }

  listen() {
    const { canvas, state } = this, where = (event) => [event.offsetX, event.offsetY];
    let from = null, moved = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      [from, moved] = [where(event), false];
      this.path = state.lasso || event.shiftKey ? [from] : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = where(event);
      if (!from) return this.hover(this.nearest([x, y]), [x, y]);
      moved = moved || Math.hypot(x - from[0], y - from[1]) > 4;
      if (this.path) this.path.push([x, y]);
      else if (moved) [this.dx, this.dy] = [this.dx + event.movementX, this.dy + event.movementY];
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      const path = this.path, i = moved ? -1 : this.nearest(where(event));
      from = this.path = null;
      if (path && moved) state.choose(this.inside(path));
      else if (!moved) state.activate(i < 0 ? null : this.map.ids[i]);
      this.draw();
    });
    canvas.addEventListener("pointerleave", () => this.hover(-1, [0, 0]));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls on
      event.preventDefault();
      this.scale(Math.exp(-event.deltaY / 300), where(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      const by = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
      if (!step && !by) return;
      event.preventDefault();
      if (step) [this.dx, this.dy] = [this.dx + step[0], this.dy + step[1]];
      this.scale(by || 1);
    });
  }
}
