// Lists of resources: what they show, and the page that loads, searches and sorts them.
import { useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { get, live } from "./api.js";
import { Empty, Id, Loading, Problem, Status, ago, html, useInterval, useTitle } from "./ui.js";
import { Form } from "./forms.js";

const PAGE = 200;
const text = (value) => (value == null || value === "" ? "–" : String(value));
const named = (kind) => (o) => html`<${Id} kind=${kind} id=${o.id} name=${o.name} />`;

// Columns: [heading, cell, sort key]. `shows`: the API's path and key of what is listed.
export const KINDS = {
  networks: {
    title: "Networks", one: "network", path: "networks", key: "networks", form: "network",
    columns: [["name", named("networks"), "name"], ["project", (o) => o.project_id], ["subnets", (o) => o.subnets.length], ["VNI", (o) => o["provider:segmentation_id"]], ["MTU", (o) => o.mtu], ["status", (o) => html`<${Status} value=${o.status} />`], ["created", (o) => ago(o.created_at), "created_at"]],
    words: (o) => `${o.name} ${o.id} ${o.project_id} ${o["provider:segmentation_id"]}`,
  },
  subnets: {
    title: "Subnets", one: "subnet", path: "subnets", key: "subnets",
    columns: [["name", named("subnets"), "name"], ["range", (o) => html`<span class="mono">${o.cidr}</span>`, "cidr"], ["gateway", (o) => html`<span class="mono">${text(o.gateway_ip)}</span>`], ["network", (o) => html`<${Id} kind="networks" id=${o.network_id} />`], ["project", (o) => o.project_id], ["created", (o) => ago(o.created_at), "created_at"]],
    words: (o) => `${o.name} ${o.id} ${o.cidr} ${o.project_id}`,
  },
  ports: {
    title: "Ports", one: "port", path: "ports", key: "ports", form: "port",
    columns: [["name", named("ports"), "name"], ["addresses", (o) => html`<span class="mono">${o.fixed_ips.map((ip) => ip.ip_address).join(", ") || "–"}</span>`], ["MAC", (o) => html`<span class="mono">${o.mac_address}</span>`, "mac_address"], ["host", (o) => (o["binding:host_id"] ? html`<a href="#/hosts/${o["binding:host_id"]}">${o["binding:host_id"]}</a>` : "–"), "binding:host_id"], ["project", (o) => o.project_id], ["status", (o) => html`<${Status} value=${o.status} reason=${o.status_reason} />`, "status"], ["reason", (o) => html`<span class="muted" title=${o.status_reason}>${o.status_reason}</span>`]],
    words: (o) => `${o.name} ${o.id} ${o.mac_address} ${o["binding:host_id"]} ${o.project_id} ${o.status} ${o.fixed_ips.map((ip) => ip.ip_address).join(" ")}`,
  },
  "security-groups": {
    title: "Security groups", one: "security_group", path: "security-groups", key: "security_groups", form: "security_group",
    columns: [["name", named("security-groups"), "name"], ["rules", (o) => o.security_group_rules.length], ["stateful", (o) => (o.stateful ? "yes" : "no")], ["project", (o) => o.project_id], ["description", (o) => text(o.description)], ["created", (o) => ago(o.created_at), "created_at"]],
    words: (o) => `${o.name} ${o.id} ${o.project_id} ${o.description}`,
  },
  hosts: {
    title: "Hosts", one: "host", path: "alcor/hosts", key: "hosts", poll: 1000,
    columns: [["name", (o) => html`<${Id} kind="hosts" id=${o.name} name=${o.name} />`, "name"], ["state", (o) => html`<${Status} value=${o.state} reason=${o.reasons.join(" ")} />`, "state"], ["underlay", (o) => html`<span class="mono">${text(o.underlay_address)}</span>`], ["ports", (o) => o.ports, "ports"], ["last beat", (o) => ago(o.last_beat), "last_beat"], ["last sync", (o) => ago(o.last_sync), "last_sync"], ["repaired", (o) => repaired(o)], ["version", (o) => text(o.version)], ["reasons", (o) => html`<span title=${o.reasons.join(" ")}>${o.reasons.join(" ") || "–"}</span>`]],
    words: (o) => `${o.name} ${o.state} ${o.underlay_address}`,
  },
};

function repaired(host) {
  return Object.entries(host.counters).filter(([name]) => name.startsWith("repaired")).reduce((sum, [, n]) => sum + n, 0);
}

const keyOf = (object) => object.id || object.name;

export function List({ kind, query }) {
  const what = KINDS[kind];
  useTitle(what.title);
  const [objects, setObjects] = useState([]);
  const [more, setMore] = useState(false);
  const [state, setState] = useState({ loaded: false, busy: false, error: null });
  const [search, setSearch] = useState(query.get("q") || "");
  const [form, setForm] = useState(query.has("new"));
  const [fresh, setFresh] = useState(new Set());
  const sort = query.get("sort") || "", down = query.get("dir") === "desc";
  const shown = useRef(PAGE);
  const turn = useRef(0);

  const load = async () => {
    const mine = ++turn.current;
    setState((old) => ({ ...old, busy: true }));
    try {
      const asked = new URLSearchParams({ limit: shown.current });
      if (sort) { asked.set("sort_key", sort); asked.set("sort_dir", down ? "desc" : "asc"); }
      const answer = await get(`/v2.0/${what.path}?${asked}`);
      if (mine !== turn.current) return;
      setObjects(answer[what.key]);
      setMore((answer[`${what.key}_links`] || []).some((link) => link.rel === "next"));
      setState({ loaded: true, busy: false, error: null });
    } catch (error) {
      if (mine === turn.current) setState((old) => ({ ...old, busy: false, error }));
    }
  };
  const soon = useRef(0);
  useEffect(() => {
    setObjects([]); setState({ loaded: false, busy: true, error: null }); shown.current = PAGE;
    load();
    const follow = (event) => {
      if (event.resource !== what.one && !(what.one === "security_group" && event.resource === "security_group_rule")) return;
      setFresh((old) => new Set([...old, event.id].slice(-50)));
      if (!soon.current) soon.current = setTimeout(() => { soon.current = 0; load(); }, 250);
    };
    const off = [live.on("event", follow), live.on("reload", () => load())];
    return () => { turn.current++; clearTimeout(soon.current); soon.current = 0; off.forEach((end) => end()); };
  }, [kind, sort, down]);
  useInterval(() => what.poll && load(), what.poll || 3600000);

  const visible = useMemo(() => {
    const words = search.toLowerCase().split(/\s+/).filter(Boolean);
    return words.length ? objects.filter((object) => { const own = what.words(object).toLowerCase(); return words.every((word) => own.includes(word)); }) : objects;
  }, [objects, search]);
  const go = (changes) => {
    const next = new URLSearchParams(query);
    next.delete("new");
    for (const [name, value] of Object.entries(changes)) if (value) next.set(name, value); else next.delete(name);
    history.replaceState(null, "", `#/${kind}${next.size ? `?${next}` : ""}`);
  };
  const order = (by) => { go({ sort: by, dir: sort === by && !down ? "desc" : "" }); dispatchEvent(new HashChangeEvent("hashchange")); };
  return html`<div>
    <div class="bar"><h1>${what.title}</h1>
      <input type="search" data-search aria-label="Search ${what.title.toLowerCase()}" placeholder="Search" value=${search} onInput=${(e) => { setSearch(e.target.value); go({ q: e.target.value }); }} />
      ${what.form && html`<button class="primary" onClick=${() => setForm(true)}>New ${what.one.replaceAll("_", " ")}</button>`}</div>
    <${Problem} error=${state.error} again=${() => load()} />
    ${!state.loaded && !state.error ? html`<${Loading} />` : ""}
    ${state.loaded && !visible.length ? html`<${Empty} title=${search ? "Nothing matches" : `No ${what.title.toLowerCase()} yet`}>${search ? `None of the ${objects.length} that are loaded contains “${search}”.` : what.form ? "Create the first one, here or with the API." : "They appear here as they come."}<//>` : ""}
    ${visible.length > 0 && html`<div class="scroll"><table aria-label=${what.title} onKeyDown=${arrows}>
      <thead><tr>${what.columns.map(([name, , by]) => html`<th aria-sort=${by && by === sort ? (down ? "descending" : "ascending") : undefined}>${by ? html`<button onClick=${() => order(by)}>${name}${by === sort ? (down ? " ↓" : " ↑") : ""}</button>` : name}</th>`)}</tr></thead>
      <tbody>${visible.map((object) => html`<tr key=${keyOf(object)} class=${fresh.has(keyOf(object)) ? "fresh" : ""} data-id=${keyOf(object)}>${what.columns.map(([, cell]) => html`<td>${cell(object)}</td>`)}</tr>`)}</tbody></table></div>`}
    ${more && search ? html`<div class="sub">Only the ${objects.length} that are loaded were searched.</div>` : ""}
    ${more && html`<div class="more"><button disabled=${state.busy} onClick=${() => { shown.current += PAGE; load(); }}>${state.busy ? "Loading…" : `Load more (${objects.length} so far)`}</button></div>`}
    ${form && html`<${Form} kind=${what.form} close=${(made) => { setForm(false); if (made) location.hash = `#/${made}`; else go({}); }} />`}
  </div>`;
}

// Up and down go from row to row.
export function arrows(e) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[e.key];
  const row = step && e.target.closest("tbody tr");
  const next = row && row[step];
  const link = next && next.querySelector("a");
  if (link) { e.preventDefault(); link.focus(); }
}
