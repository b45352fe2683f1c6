// What changed and how long it took: the live list, one change as a waterfall, and latency as figures and as a heat map.
import { useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get, live } from "./api.js";
import { ChangeTable, Empty, Id, Loading, Problem, Status, Waterfall, html, ms, useData, useInterval, useTitle } from "./ui.js";

const KEPT = 300;
const RESOURCES = ["port", "network", "subnet", "security_group", "security_group_rule", "host"];

export function Changes({ query }) {
  useTitle("Changes");
  const [changes, set] = useState(null);
  const [error, setError] = useState(null);
  const [paused, pause] = useState(false);
  const stopped = useRef(false);
  stopped.current = paused;
  const resource = query.get("resource") || "", status = query.get("status") || "";
  const slow = Number(query.get("ms")) || 0, from = Number(query.get("from")) || 0, until = Number(query.get("until")) || 0;
  const begun = (change) => (change.stages.length ? change.stages[0].start_us : 0);
  const fits = (change) => (!resource || change.resource.split(" ")[1] === resource) && (!status || change.status === status)
    && change.total_us >= slow * 1000 && (!from || begun(change) >= from * 1e6) && (!until || begun(change) < until * 1e6);
  const load = async () => {
    try {
      const asked = new URLSearchParams({ limit: from ? 1000 : KEPT, min_us: Math.round(slow * 1000) });
      if (resource) asked.set("resource", resource);
      if (status) asked.set("status", status);
      set((await get(`/v2.0/alcor/changes?${asked}`)).changes.filter(fits));
      setError(null);
    } catch (refused) { setError(refused); }
  };
  useEffect(() => {
    set(null);
    load();
    const waiting = [];
    let timer = 0;
    const flush = () => {
      timer = 0;
      const fresh = waiting.splice(0).reverse();
      const known = new Set(fresh.map((change) => change.id));
      set((old) => [...fresh, ...(old || []).filter((change) => !known.has(change.id))].slice(0, KEPT));
    };
    const take = (change) => {
      if (stopped.current || !fits(change)) return;
      waiting.push(change);
      if (waiting.length > KEPT) waiting.shift();
      timer = timer || setTimeout(flush, 200);
    };
    const off = [live.on("change", take), live.on("reload", load)];
    return () => { clearTimeout(timer); off.forEach((end) => end()); };
  }, [resource, status, slow, from, until]);
  const go = (name, value) => { const next = new URLSearchParams(query); if (value) next.set(name, value); else next.delete(name); location.hash = `#/changes?${next}`; };
  return html`<div><div class="bar"><h1>Changes</h1>
      <label class="inline">of <select value=${resource} onChange=${(e) => go("resource", e.target.value)}><option value="">everything</option>${RESOURCES.map((r) => html`<option value=${r}>${r.replaceAll("_", " ")}s</option>`)}</select></label>
      <label class="inline">slower than <select value=${String(slow)} onChange=${(e) => go("ms", e.target.value === "0" ? "" : e.target.value)}>${[...new Set([0, 10, 50, 100, 1000, slow])].map((n) => html`<option value=${String(n)}>${n ? `${n} ms` : "any"}</option>`)}</select></label>
      <label class="inline"><input type="checkbox" checked=${status === "ERROR"} onChange=${(e) => go("status", e.target.checked ? "ERROR" : "")} /> failed</label>
      <button aria-pressed=${paused} onClick=${() => { if (paused) load(); pause(!paused); }}>${paused ? "Resume" : "Pause"}</button></div>
    ${from ? html`<div class="sub">From the heat map: ${new Date(from * 1000).toLocaleTimeString()}, ${slow} ms and more. <a href="#/changes">Show all</a></div>` : ""}
    <${Problem} error=${error} again=${load} />
    ${!changes ? (error ? "" : html`<${Loading} />`) : changes.length ? html`<${ChangeTable} changes=${changes} label="Changes, the newest first" />` : html`<${Empty} title="No changes">${resource || status || slow ? "None of those that are remembered fits." : "Nothing has changed since the API started. What happens appears here at once."}<//>`}
  </div>`;
}

export function Change({ id }) {
  useTitle("Change");
  const { data, error, reload } = useData(`/v2.0/alcor/changes/${id}`, (event) => event.change === id);
  if (error && error.status === 404) return html`<${Empty} title="Not there">Nothing is known of ${id}, or it belongs to another project.<//>`;
  if (!data) return html`<div><${Problem} error=${error} again=${reload} />${error ? "" : html`<${Loading} />`}</div>`;
  const { change } = data;
  const hosts = new Set(change.stages.map((stage) => stage.host).filter(Boolean));
  return html`<div><div class="bar"><h1>${change.resource}</h1><${Status} value=${change.status} /></div>
    <div class="sub mono">${change.id}</div>
    <div class="cards"><div class="card"><b>${ms(change.total_us)}</b><span>from request to the last answer</span></div><div class="card"><b>${hosts.size}</b><span>${hosts.size === 1 ? "host" : "hosts"} answered</span></div><div class="card"><b>${change.count || 1}</b><span>${(change.count || 1) === 1 ? "object" : "objects"}</span></div><div class="card"><b>${change.project_id || "–"}</b><span>project</span></div></div>
    <section><h2>Where the time went</h2><p><span class="key control">control plane</span><span class="key host">hosts</span><span class="key bad">failed</span></p><${Waterfall} change=${change} /></section>
    <section><h2>Change</h2><dl><dt>object</dt><dd>${change.object_id && change.resource.endsWith(" port") ? html`<${Id} kind="ports" id=${change.object_id} />` : html`<span class="mono">${change.object_id || "–"}</span>`}</dd><dt>trace</dt><dd class="mono">${change.trace_id}</dd></dl></section></div>`;
}

export function Latency() {
  useTitle("Latency");
  const { data, error, reload } = useData("/v2.0/alcor/latency");
  useInterval(reload, 5000);
  const [span, setSpan] = useState("last_minutes");
  const order = ["total", "accept", "validate", "claim", "write", "publish", "receive", "program", "ack", "active"];
  const stages = data ? Object.entries(data[span]).filter(([, s]) => s.count).sort(([a], [b]) => (order.indexOf(a) + 99) % 99 - (order.indexOf(b) + 99) % 99) : [];
  const most = Math.max(1, ...stages.map(([, s]) => s.p99_us));
  return html`<div><div class="bar"><h1>Latency</h1><label class="inline">over <select value=${span} onChange=${(e) => setSpan(e.target.value)}><option value="last_minutes">the last minutes</option><option value="since_start">all since start</option></select></label></div>
    <${Problem} error=${error} again=${reload} />
    <section><h2>Request to last answer, over time</h2><${Heat} /></section>
    <section><h2>By stage</h2>${stages.length ? html`<div class="scroll"><table aria-label="Percentiles by stage"><thead><tr><th>stage</th><th class="number">changes</th><th class="number">p50</th><th class="number">p90</th><th class="number">p99</th><th class="number">longest</th><th>p50 to p99</th></tr></thead>
      <tbody>${stages.map(([name, s]) => html`<tr key=${name}><td>${name === "total" ? html`<strong>whole change</strong>` : name}</td><td class="number">${s.count.toLocaleString()}</td><td class="number">${ms(s.p50_us)}</td><td class="number">${ms(s.p90_us)}</td><td class="number">${ms(s.p99_us)}</td><td class="number">${ms(s.max_us)}</td>
        <td><i class="meter" style=${{ width: `${(180 * s.p50_us) / most}px` }}></i><i class="meter" style=${{ width: `${(180 * Math.max(0, s.p99_us - s.p50_us)) / most}px`, opacity: 0.35 }}></i></td></tr>`)}</tbody></table></div>` : html`<${Empty} title="Nothing measured yet">Each change is measured exactly, without sampling.<//>`}</section></div>`;
}

// Columns are slots of time, rows are durations, the deeper the colour the more changes.
function Heat() {
  const canvas = useRef(null);
  const { data, error, reload } = useData("/v2.0/alcor/latency/history?stage=total");
  useInterval(reload, 5000);
  const [at, move] = useState(null); // the cell under the keyboard: {slot, bound}
  const rows = data ? trimmed(data) : null;
  const column = at && rows ? rows.slots.findIndex((slot) => slot.at === at.slot) : -1;
  const row = at && rows ? rows.bounds.indexOf(at.bound) : -1;
  useEffect(() => { if (rows) paint(canvas.current, rows, column, row); });
  if (error && error.status !== 0) return html`<div class="muted">${error.message}</div>`;
  const go = (column, row) => {
    const slot = rows.slots[column];
    if (slot) location.hash = `#/changes?from=${slot.at}&until=${slot.at + rows.seconds}&ms=${(rows.bounds[row - 1] || 0) / 1000}`;
  };
  const pick = (e) => {
    if (!rows) return;
    const box = canvas.current.getBoundingClientRect();
    go(Math.floor(((e.clientX - box.left) / box.width) * rows.slots.length), rows.bounds.length - 1 - Math.floor(((e.clientY - box.top) / box.height) * rows.bounds.length));
  };
  const step = (e) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[e.key];
    if (!rows || (!by && e.key !== "Enter")) return;
    e.preventDefault();
    if (!by) { if (column >= 0 && row >= 0) go(column, row); return; }
    const within = (n, most) => Math.max(0, Math.min(most - 1, n));
    const x = column < 0 ? rows.slots.length - 1 : within(column + by[0], rows.slots.length), y = row < 0 ? 0 : within(row + by[1], rows.bounds.length);
    move({ slot: rows.slots[x].at, bound: rows.bounds[y] });
  };
  const cell = column >= 0 && row >= 0 ? `${new Date(at.slot * 1000).toLocaleTimeString()}, up to ${ms(Math.round(at.bound))}: ${rows.slots[column].counts[row]} changes; Enter shows them` : "";
  const steps = rows ? [0, Math.floor(rows.bounds.length / 3), Math.floor((2 * rows.bounds.length) / 3), rows.bounds.length - 1] : [];
  return html`<div class="heat"><canvas ref=${canvas} tabindex="0" role="application" aria-label="Heat map of how long changes took over the last minutes. Arrows choose a cell." aria-describedby="heat-cell" onClick=${pick} onKeyDown=${step}></canvas>
    <div class="y" aria-hidden="true">${steps.map((n) => html`<i style=${{ top: `${100 - ((n + 0.5) * 100) / rows.bounds.length}%` }}>${ms(Math.round(rows.bounds[n]))}</i>`)}</div>
    <div class="x" aria-hidden="true">${rows ? html`<span>${Math.round((rows.slots.length * rows.seconds) / 60)} min ago</span><span>${rows.all ? `${rows.all.toLocaleString()} changes; click for those of a cell` : "no changes in this time"}</span><span>now</span>` : ""}</div></div>
    <p id="heat-cell" class="sub" role="status">${cell}</p>`;
}

// Only the rows between the fastest and the slowest that happened, and two around them.
function trimmed({ slot_seconds: seconds, bounds_us: bounds, slots }) {
  let low = bounds.length, high = 0, all = 0;
  for (const slot of slots) slot.counts.forEach((n, i) => { if (n) { low = Math.min(low, i); high = Math.max(high, i); all += n; } });
  if (!all) { low = 4; high = 20; }
  low = Math.max(0, low - 2);
  high = Math.min(bounds.length - 1, high + 2);
  return { seconds, all, bounds: bounds.slice(low, high + 1), slots: slots.map((slot) => ({ at: slot.at, counts: slot.counts.slice(low, high + 1) })) };
}

function paint(canvas, { bounds, slots }, column, row) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const ctx = canvas.getContext("2d");
  const w = canvas.width / slots.length, h = canvas.height / bounds.length;
  const most = Math.max(1, ...slots.flatMap((slot) => slot.counts));
  ctx.fillStyle = getComputedStyle(canvas).getPropertyValue("--off-soft");
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.fillStyle = getComputedStyle(canvas).getPropertyValue("--accent");
  slots.forEach((slot, x) => slot.counts.forEach((n, y) => {
    if (!n) return;
    ctx.globalAlpha = 0.25 + 0.75 * (Math.log1p(n) / Math.log1p(most));
    ctx.fillRect(x * w, canvas.height - (y + 1) * h, Math.max(1, w - 1), Math.max(1, h - 1));
  }));
  ctx.globalAlpha = 1;
  if (column < 0 || row < 0) return;
  ctx.strokeStyle = getComputedStyle(canvas).color;
  ctx.lineWidth = 2 * ratio;
  ctx.strokeRect(column * w, canvas.height - (row + 1) * h, Math.max(w, 4), h);
}
