// The picture of the mesh: where hosts and instances stand, and how they are drawn. Pure but for the canvas it is given;
// knows neither the API nor the page.
import { colour } from "./ui.js";

const CARD = { width: 196, head: 30, gap: 44, line: 17, dot: 12.9, columns: 13, pad: 13, label: 62 };
const FAR = 0.45; // below this zoom a host is a tile
const READABLE = 60; // a tile this wide on the screen has room for its host's name
const LINES = 300;
const NAMED = 8; // with more networks than this a host shows dots only
const WHOLE = 12; // with fewer hosts than this all tunnels are shown

// Few hosts stand around their tunnels; many in a grid of about 3:2, each as tall as its instances need.
export function layout(hosts, instances) {
  const by = new Map(hosts.map((host) => [host.name, []]));
  for (const instance of instances.values()) by.get(instance.host)?.push(instance);
  return hosts.length > 2 && hosts.length <= WHOLE ? ring(hosts, by) : grid(hosts, by);
}

function ring(hosts, by) {
  const rx = Math.max(CARD.width + 40, hosts.length * 62);
  const cards = new Map(hosts.map((host) => [host.name, arrange(host, by.get(host.name))]));
  const tallest = Math.max(...[...cards.values()].map((card) => card.height));
  const ry = Math.max(tallest * 0.85 + 40, rx * 0.5);
  [...cards.values()].forEach((card, n) => {
    const angle = (2 * Math.PI * n) / cards.size - Math.PI / 2;
    card.x = Math.cos(angle) * rx - card.width / 2;
    card.y = Math.sin(angle) * ry - card.height / 2;
  });
  const left = Math.min(...[...cards.values()].map((card) => card.x)), top = Math.min(...[...cards.values()].map((card) => card.y));
  let width = 1, height = 1;
  for (const card of cards.values()) {
    card.x -= left;
    card.y -= top;
    width = Math.max(width, card.x + card.width);
    height = Math.max(height, card.y + card.height);
  }
  return { cards, width, height };
}

function grid(hosts, by) {
  const columns = Math.max(1, Math.ceil(Math.sqrt(hosts.length * 1.3)));
  const cards = new Map();
  let y = 0;
  for (let start = 0; start < hosts.length; start += columns) {
    const row = hosts.slice(start, start + columns);
    let tallest = 0;
    row.forEach((host, column) => {
      const card = arrange(host, by.get(host.name));
      cards.set(host.name, Object.assign(card, { x: column * (CARD.width + CARD.gap), y }));
      tallest = Math.max(tallest, card.height);
    });
    y += tallest + CARD.gap;
  }
  return { cards, width: columns * (CARD.width + CARD.gap) - CARD.gap, height: Math.max(1, y - CARD.gap) };
}

// Where each instance stands in its host's card: a line for each network, or all in one field where there are many.
function arrange(host, here) {
  here.sort((a, b) => (a.network < b.network ? -1 : a.network > b.network ? 1 : a.id < b.id ? -1 : 1));
  const networks = [...new Set(here.map((each) => each.network))];
  const named = networks.length <= NAMED;
  const columns = named ? CARD.columns - 4 : CARD.columns;
  const left = named ? CARD.pad + CARD.label : CARD.pad + 4;
  const labels = [];
  let line = 0, column = 0, last = null;
  for (const instance of here) {
    if (column === columns || (named && last !== null && last !== instance.network)) { line += 1; column = 0; }
    if (named && last !== instance.network) labels.push({ network: instance.network, dy: CARD.head + line * CARD.line + 8 });
    instance.dx = left + column * CARD.dot;
    instance.dy = CARD.head + line * CARD.line + 8;
    column += 1;
    last = instance.network;
  }
  return { host, here, labels, width: CARD.width, height: CARD.head + Math.max(2, line + 1) * CARD.line + CARD.pad - 4 };
}

// Hosts that a network joins, the fullest first.
export function hostsOf(cards, network) {
  return [...cards.values()].filter((card) => card.here.some((i) => i.network === network)).map((card) => card.host.name);
}

export class Picture {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.ctx = canvas.getContext("2d");
    this.view = { x: 0, y: 0, scale: 1 };
    this.placed = { cards: new Map(), width: 1, height: 1 };
    this.networks = new Map();
    this.selected = { host: "", network: "" };
    this.pulses = new Map();
    this.frames = { count: 0, longest: 0 };
    this.touched = false;
    this.pending = false;
    this.changed = changed;
    this.watch();
  }

  watch() {
    const c = this.canvas;
    const pointers = new Map();
    let moved = 0;
    c.addEventListener("pointerdown", (e) => { c.setPointerCapture(e.pointerId); pointers.set(e.pointerId, [e.offsetX, e.offsetY]); moved = 0; });
    c.addEventListener("pointermove", (e) => {
      const last = pointers.get(e.pointerId);
      if (!last) return;
      const dx = e.offsetX - last[0], dy = e.offsetY - last[1];
      moved += Math.abs(dx) + Math.abs(dy);
      if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
        const before = Math.hypot(last[0] - other[0], last[1] - other[1]), now = Math.hypot(e.offsetX - other[0], e.offsetY - other[1]);
        if (before > 0) this.zoom(now / before, other[0], other[1]);
      } else this.pan(dx, dy);
      pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
    });
    const up = (e) => {
      pointers.delete(e.pointerId);
      if (e.type === "pointerup" && moved < 5) this.changed(this.at(e.offsetX, e.offsetY));
    };
    c.addEventListener("pointerup", up);
    c.addEventListener("pointercancel", up);
    c.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(Math.exp(-e.deltaY * 0.0015), e.offsetX, e.offsetY); }, { passive: false });
    c.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[e.key];
      if (step) this.pan(...step);
      else if (e.key === "+" || e.key === "=") this.zoom(1.25);
      else if (e.key === "-") this.zoom(0.8);
      else if (e.key === "0") this.fit();
      else return;
      e.preventDefault();
    });
    this.resized = new ResizeObserver(() => { this.size(); if (!this.touched) this.fit(); else this.draw(); });
    this.resized.observe(c);
  }

  close() { this.resized.disconnect(); this.closed = true; }

  size() {
    const ratio = window.devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.ratio = ratio;
  }

  show(hosts, instances, networks) {
    this.networks = networks;
    this.placed = layout(hosts, instances);
    if (this.touched) this.draw(); else this.fit();
  }

  fit() {
    if (!this.width) this.size();
    const top = 64, margin = 28;
    const scale = Math.min(1.6, (this.width - 2 * margin) / this.placed.width, (this.height - top - margin) / this.placed.height);
    this.view.scale = Math.max(0.02, scale);
    this.view.x = (this.width - this.placed.width * this.view.scale) / 2;
    this.view.y = top + Math.max(0, (this.height - top - margin - this.placed.height * this.view.scale) / 2);
    this.touched = false;
    this.draw();
  }

  pan(dx, dy) { this.view.x += dx; this.view.y += dy; this.touched = true; this.draw(); }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(6, Math.max(0.02, this.view.scale * factor));
    const real = scale / this.view.scale;
    this.view.x = x - (x - this.view.x) * real;
    this.view.y = y - (y - this.view.y) * real;
    this.view.scale = scale;
    this.touched = true;
    this.draw();
  }

  focus(name) {
    const card = this.placed.cards.get(name);
    if (!card) return;
    this.view.scale = Math.max(this.view.scale, 1);
    this.view.x = this.width / 2 - (card.x + card.width / 2) * this.view.scale;
    this.view.y = this.height / 2 - (card.y + card.height / 2) * this.view.scale;
    this.touched = true;
    this.draw();
  }

  // What is under a point: a host, and an instance of it where dots are drawn.
  at(px, py) {
    const x = (px - this.view.x) / this.view.scale, y = (py - this.view.y) / this.view.scale;
    for (const card of this.placed.cards.values()) {
      if (x < card.x || y < card.y || x > card.x + card.width || y > card.y + card.height) continue;
      const near = this.view.scale < FAR ? null : card.here.find((i) => Math.hypot(card.x + i.dx - x, card.y + i.dy - y) < 7);
      return { host: card.host.name, instance: near ? near.id : "" };
    }
    return { host: "", instance: "" };
  }

  pulse(id) { this.pulses.set(id, performance.now()); this.draw(); }

  select(selected) { this.selected = selected; this.draw(); }

  draw() {
    if (this.pending || this.closed) return;
    this.pending = true;
    requestAnimationFrame((now) => { this.pending = false; if (!this.closed) this.paint(now); });
  }

  paint(now) {
    const began = performance.now();
    const { ctx, view } = this;
    const style = getComputedStyle(this.canvas);
    this.ink = Object.fromEntries(["panel", "line", "text", "muted", "bad", "busy", "off", "accent"].map((n) => [n, style.getPropertyValue(`--${n}`)]));
    ctx.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    ctx.clearRect(0, 0, this.width, this.height);
    ctx.setTransform(this.ratio * view.scale, 0, 0, this.ratio * view.scale, this.ratio * view.x, this.ratio * view.y);
    const left = -view.x / view.scale, top = -view.y / view.scale;
    const right = left + this.width / view.scale, bottom = top + this.height / view.scale;
    this.tunnels();
    for (const card of this.placed.cards.values()) {
      if (card.x > right || card.y > bottom || card.x + card.width < left || card.y + card.height < top) continue;
      if (view.scale < FAR) this.tile(card); else this.card(card, now);
    }
    for (const [id, since] of this.pulses) if (now - since > 1600) this.pulses.delete(id);
    if (this.pulses.size) this.draw();
    this.frames.count++;
    this.frames.longest = Math.max(this.frames.longest, performance.now() - began);
  }

  // Hosts that share a network with what is selected are joined by its tunnels.
  tunnels() {
    const { host, network } = this.selected;
    const whole = !host && !network && this.placed.cards.size <= WHOLE;
    const here = whole ? [...this.placed.cards.values()].flatMap((card) => card.here) : this.placed.cards.get(host)?.here || [];
    const networks = network ? [network] : [...new Set(here.map((i) => i.network))].slice(0, 12);
    let lines = 0;
    for (const [n, each] of networks.entries()) {
      const names = hostsOf(this.placed.cards, each);
      const hub = host && names.includes(host) ? host : names[0];
      const pairs = host || names.length > 12 ? names.filter((n) => n !== hub).map((n) => [hub, n]) : names.flatMap((a, i) => names.slice(i + 1).map((b) => [a, b]));
      this.ctx.strokeStyle = colour(each);
      this.ctx.globalAlpha = whole ? 0.4 : 0.75;
      this.ctx.lineWidth = Math.max(1.3, 1.3 / this.view.scale);
      for (const [a, b] of pairs) {
        if (++lines > LINES) break;
        const [px, py] = middle(this.placed.cards.get(a)), [qx, qy] = middle(this.placed.cards.get(b));
        const far = Math.hypot(px - qx, py - qy) || 1;
        const bow = (n % 2 ? -1 : 1) * (0.16 * far + 9 * n); // networks beside each other, half of them on either side
        this.ctx.beginPath();
        this.ctx.moveTo(px, py);
        this.ctx.quadraticCurveTo((px + qx) / 2 + (bow * (qy - py)) / far, (py + qy) / 2 - (bow * (qx - px)) / far, qx, qy);
        this.ctx.stroke();
      }
      this.ctx.globalAlpha = 1;
    }
  }

  dim(instance) { return this.selected.network && instance.network !== this.selected.network; }

  tile(card) {
    const { ctx } = this;
    ctx.fillStyle = this.ink.panel;
    ctx.fillRect(card.x, card.y, card.width, card.height);
    const counts = new Map();
    for (const i of card.here) if (!this.dim(i)) counts.set(i.network, (counts.get(i.network) || 0) + 1);
    const total = card.here.length || 1;
    let x = card.x;
    for (const [network, n] of counts) {
      const width = (card.width * n) / total;
      ctx.fillStyle = colour(network);
      ctx.fillRect(x, card.y, width, card.height);
      x += width;
    }
    if (card.here.some((i) => i.status === "ERROR")) { ctx.fillStyle = this.ink.bad; ctx.fillRect(card.x, card.y + card.height - 12, card.width, 12); }
    if (card.width * this.view.scale > READABLE) this.name(card);
    ctx.lineWidth = card.host.name === this.selected.host ? 10 : 4;
    ctx.strokeStyle = lost(card.host) ? this.ink.bad : card.host.name === this.selected.host ? this.ink.accent : this.ink.line;
    ctx.strokeRect(card.x, card.y, card.width, card.height);
  }

  // As large on the screen at any zoom.
  name(card) {
    const { ctx } = this;
    const size = 11 / this.view.scale;
    ctx.fillStyle = this.ink.panel;
    ctx.fillRect(card.x, card.y, card.width, 1.5 * size);
    ctx.font = `600 ${size}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    ctx.fillStyle = lost(card.host) ? this.ink.bad : this.ink.text;
    ctx.fillText(short(card.host.name, 9), card.x + 0.5 * size, card.y + 0.8 * size);
  }

  card(card, now) {
    const { ctx, ink } = this;
    const chosen = card.host.name === this.selected.host;
    ctx.beginPath();
    ctx.roundRect(card.x, card.y, card.width, card.height, 9);
    ctx.fillStyle = ink.panel;
    ctx.fill();
    ctx.lineWidth = chosen ? 2 : 1;
    ctx.strokeStyle = lost(card.host) ? ink.bad : chosen ? ink.accent : ink.line;
    ctx.stroke();
    ctx.textBaseline = "middle";
    ctx.font = "600 12.5px system-ui, sans-serif";
    ctx.fillStyle = ink.text;
    ctx.fillText(short(card.host.name, 17), card.x + CARD.pad, card.y + 16);
    ctx.font = "11px system-ui, sans-serif";
    ctx.fillStyle = lost(card.host) ? ink.bad : ink.muted;
    ctx.textAlign = "right";
    ctx.fillText(card.host.state === "up" ? String(card.here.length) : `${card.host.state} ${card.here.length}`, card.x + card.width - CARD.pad, card.y + 16);
    ctx.textAlign = "left";
    ctx.font = "10.5px system-ui, sans-serif";
    for (const { network, dy } of card.labels) {
      ctx.globalAlpha = this.dim({ network }) ? 0.3 : 1;
      ctx.fillStyle = ink.muted;
      ctx.fillText(short(this.networks.get(network)?.name || network, 9), card.x + CARD.pad, card.y + dy);
    }
    ctx.globalAlpha = 1;
    for (const instance of card.here) this.dot(card, instance, now);
  }

  dot(card, instance, now) {
    const { ctx, ink } = this;
    const x = card.x + instance.dx, y = card.y + instance.dy;
    ctx.globalAlpha = this.dim(instance) ? 0.15 : 1;
    ctx.beginPath();
    ctx.arc(x, y, 4.2, 0, 6.2832);
    if (instance.status === "ACTIVE") { ctx.fillStyle = colour(instance.network); ctx.fill(); }
    else {
      ctx.lineWidth = 1.8;
      ctx.strokeStyle = instance.status === "ERROR" ? ink.bad : instance.status === "BUILD" ? ink.busy : ink.off;
      ctx.stroke();
      if (instance.status === "ERROR") { ctx.fillStyle = ink.bad; ctx.fillRect(x - 1, y - 3, 2, 6); }
    }
    const since = this.pulses.get(instance.id);
    if (since !== undefined) {
      const age = Math.min(1, Math.max(0, (now - since) / 1500));
      ctx.globalAlpha = 1 - age;
      ctx.beginPath();
      ctx.arc(x, y, 4 + age * 14, 0, 6.2832);
      ctx.lineWidth = 1.6;
      ctx.strokeStyle = colour(instance.network);
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
  }
}

const lost = (host) => host.state === "silent" || host.state === "fenced";
const middle = (card) => [card.x + card.width / 2, card.y + card.height / 2];
const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
