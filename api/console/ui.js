// Small parts that all pages share: links, badges, times, banners, and the hooks that load and follow data.
import { html, useCallback, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get, live } from "./api.js";

export { html };

// What a path answers. What was there stays while it is asked again, and when it fails. `follow(event)` says which
// events make it worth asking again; many at once are one question.
export function useData(path, follow = null) {
  const [state, set] = useState({ data: null, error: null, path: null });
  const latest = useRef(0);
  const timer = useRef(0);
  const load = useCallback(async () => {
    if (!path) return;
    const turn = ++latest.current;
    try {
      const data = await get(path);
      if (turn === latest.current) set({ data, error: null, path });
    } catch (error) {
      if (turn === latest.current) set((old) => ({ data: old.path === path ? old.data : null, error, path }));
    }
  }, [path]);
  const soon = useCallback(() => {
    if (timer.current) return;
    timer.current = setTimeout(() => { timer.current = 0; load(); }, 250);
  }, [load]);
  useEffect(() => {
    load();
    const off = [live.on("reload", load)];
    if (follow) off.push(live.on("event", (event) => follow(event) && soon()));
    return () => { latest.current++; clearTimeout(timer.current); timer.current = 0; off.forEach((end) => end()); };
  }, [load]);
  return { ...(state.path === path ? state : { data: null, error: null }), reload: load };
}

export function useInterval(work, ms) {
  const latest = useRef(work);
  latest.current = work;
  useEffect(() => {
    const timer = setInterval(() => document.hidden || latest.current(), ms);
    return () => clearInterval(timer);
  }, [ms]);
}

const TONES = {
  ACTIVE: "good", up: "good", true: "good", BUILD: "busy", planned: "busy", late: "busy", ERROR: "bad", fenced: "bad", silent: "bad", DOWN: "off",
};

export function Status({ value, reason }) {
  return html`<span class="status ${TONES[value] || "off"}" title=${reason || ""}>${String(value || "–")}</span>`;
}

export const Id = ({ kind, id, name }) =>
  html`<a href="#/${kind}/${encodeURIComponent(id)}" class=${name ? "" : "mono"} title=${id}>${name || id}</a>`;

export function Problem({ error, again }) {
  if (!error) return null;
  return html`<div class="problem" role="alert"><span>${error.message}</span>${again && html`<button onClick=${again}>Try again</button>`}</div>`;
}

export const Empty = ({ title, children }) => html`<div class="empty"><strong>${title}</strong><p>${children}</p></div>`;
export const Loading = () => html`<div class="loading" aria-busy="true">Loading…</div>`;

export function ms(us) {
  if (us == null) return "–";
  if (us < 1000) return `${us} µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 1e4 ? 2 : 1)} ms`;
  return `${(us / 1e6).toFixed(2)} s`;
}

export function clock(us) {
  return us ? new Date(us / 1000).toLocaleTimeString([], { hour12: false }) : "–";
}

export function ago(text, now = Date.now()) {
  if (!text) return "never";
  const s = Math.max(0, Math.round((now - Date.parse(text)) / 1000));
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(text).toLocaleDateString();
}

const PALETTE = ["#4f6bed", "#0e9f8e", "#d9772b", "#a855c9", "#3b9ddb", "#c2417c", "#7a9a01", "#b8860b", "#6d6ae0", "#20a05a"];

const given = new Map();

// Neighbours in age get different colours; an id keeps its own as long as the page is open.
export function colour(id) {
  if (!given.has(id)) given.set(id, PALETTE[given.size % PALETTE.length]);
  return given.get(id);
}

// One change: a row for each stage on each host, placed by its time.
export function Waterfall({ change }) {
  const stages = [...change.stages].sort((a, b) => a.start_us - b.start_us || a.duration_us - b.duration_us);
  if (!stages.length) return html`<${Empty} title="No stages">This change was recorded without any.<//>`;
  const begin = stages[0].start_us;
  const whole = Math.max(1, ...stages.map((s) => s.start_us + s.duration_us - begin));
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  return html`<div class="waterfall" role="table" aria-label="Stages of the change">
    <div class="ticks" aria-hidden="true"><span></span><span></span><span class="axis">${ticks.map((t) => html`<i style=${{ left: `${t * 100}%` }}>${ms(Math.round(whole * t))}</i>`)}</span></div>
    ${stages.map((s) => {
      const left = ((s.start_us - begin) / whole) * 100;
      const width = Math.max(0.4, (s.duration_us / whole) * 100);
      return html`<div class="stage ${s.error ? "bad" : s.host ? "host" : "control"}" role="row">
        <span role="cell">${s.name}</span>
        <span role="cell" class="where">${s.host ? html`<a href="#/hosts/${s.host}">${s.host}</a>` : "control"}</span>
        <span role="cell" class="track"><b style=${{ left: `${Math.min(left, 99.6)}%`, width: `${Math.min(width, 100 - Math.min(left, 99.6))}%` }}></b>
          <em style=${left + width > 75 ? { right: `${100 - left + 0.6}%` } : { left: `${left + width + 0.6}%` }}>${ms(s.duration_us)}${s.error ? ` – ${s.error}` : ""}</em></span>
      </div>`;
    })}
  </div>`;
}

export function ChangeRow({ change }) {
  const kinds = { port: "ports", network: "networks", subnet: "subnets", security_group: "security-groups", host: "hosts" };
  const [verb, resource] = change.resource.split(" ");
  const kind = kinds[resource];
  return html`<tr>
    <td class="mono muted">${clock(change.stages.length ? change.stages[0].start_us : 0)}</td>
    <td><a href="#/changes/${change.id}">${verb} ${(resource || "").replaceAll("_", " ")}</a>${change.count > 1 ? html` <span class="muted">× ${change.count}</span>` : ""}</td>
    <td>${kind && change.object_id && verb !== "delete" ? html`<${Id} kind=${kind} id=${change.object_id} />` : html`<span class="mono">${change.object_id || ""}</span>`}</td>
    <td>${change.project_id || "–"}</td>
    <td>${[...new Set(change.stages.map((s) => s.host).filter(Boolean))].slice(0, 3).join(", ") || "–"}</td>
    <td><${Status} value=${change.status} reason=${(change.stages.find((s) => s.error) || {}).error} /></td>
    <td class="number">${ms(change.total_us)}</td>
  </tr>`;
}

export const ChangeTable = ({ changes, label }) => html`<div class="scroll"><table aria-label=${label}>
  <thead><tr><th>at</th><th>change</th><th>object</th><th>project</th><th>hosts</th><th>status</th><th class="number">took</th></tr></thead>
  <tbody>${changes.map((change) => html`<${ChangeRow} key=${change.id} change=${change} />`)}</tbody></table></div>`;

export function useTitle(text) {
  useEffect(() => { document.title = `${text} · Alcor Mesh`; }, [text]);
}
