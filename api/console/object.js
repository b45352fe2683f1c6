// One object: what it is, how it stands, what happened to it, and what is near it.
import { useState } from "./vendor/htm-preact.js";
import { ChangeTable, Empty, Id, Loading, Problem, Status, Waterfall, ago, colour, html, ms, useData, useInterval, useTitle } from "./ui.js";
import { Form } from "./forms.js";

const LINKS = { network_id: "networks", subnet_id: "subnets", security_group_id: "security-groups", remote_group_id: "security-groups", "binding:host_id": "hosts" };
const HIDDEN = new Set(["id", "name", "status", "status_reason", "tenant_id", "security_group_rules", "counters", "reasons", "state", "alive"]);

function Value({ name, value }) {
  if (value === null || value === "" || (Array.isArray(value) && !value.length)) return html`<span class="muted">–</span>`;
  if (LINKS[name]) return html`<${Id} kind=${LINKS[name]} id=${value} />`;
  if (name === "subnets") return value.map((id) => html`<div><${Id} kind="subnets" id=${id} /></div>`);
  if (name === "security_groups") return value.map((id) => html`<div><${Id} kind="security-groups" id=${id} /></div>`);
  if (name === "fixed_ips") return value.map((ip) => html`<div><span class="mono">${ip.ip_address}</span> in <${Id} kind="subnets" id=${ip.subnet_id} /></div>`);
  if (name.endsWith("_at") || name.startsWith("last_")) return html`<span title=${value}>${ago(value)}</span>`;
  if (typeof value === "boolean") return value ? "yes" : "no";
  return html`<span class="mono">${typeof value === "object" ? JSON.stringify(value) : String(value)}</span>`;
}

function Fields({ object }) {
  return html`<dl>${Object.entries(object).filter(([name]) => !HIDDEN.has(name)).map(([name, value]) => html`<dt>${name.replaceAll("_", " ")}</dt><dd><${Value} name=${name} value=${value} /></dd>`)}</dl>`;
}

function Head({ kind, object }) {
  const status = object.status || object.state;
  return html`<div class="bar"><h1>${object.name || object.id}</h1>${status && html`<${Status} value=${status} reason=${object.status_reason} />`}</div>
    <div class="sub mono">${object.id || ""}</div>
    ${object.status_reason && html`<div class="problem" role="status">${object.status_reason}</div>`}
    ${(object.reasons || []).map((reason) => html`<div class="problem" role="status">${reason}</div>`)}`;
}

function usePage(path, key, ours) {
  const loaded = useData(path, ours);
  return [loaded.data && loaded.data[key], loaded];
}

// The frame of every object's page: loading, trouble, gone, and then what `children` makes of it.
function Page({ path, one, kind, id, render, poll }) {
  const [object, { error, reload }] = usePage(path, one, (event) => event.id === id || (one === "security_group" && event.resource === "security_group_rule"));
  useTitle(object ? object.name || object.id : id);
  useInterval(() => poll && reload(), poll || 3600000);
  if (error && error.status === 404) return html`<${Empty} title="Not there">No ${one.replaceAll("_", " ")} has the id ${id}, or it belongs to another project.<//>`;
  return html`<div><${Problem} error=${error} again=${reload} />${!object ? (error ? "" : html`<${Loading} />`) : html`<${Head} kind=${kind} object=${object} />${render(object)}`}</div>`;
}

function History({ id }) {
  const { data } = useData(`/v2.0/alcor/changes?limit=20&id=${encodeURIComponent(id)}`, (event) => event.id === id);
  if (!data || !data.changes.length) return null;
  return html`<section><h2>Changes</h2><${ChangeTable} changes=${data.changes} label="Changes of this object" /></section>`;
}

export function Port({ id }) {
  return html`<${Page} path="/v2.0/ports/${id}" one="port" kind="ports" id=${id} render=${(port) => html`<div class="two">
      <section><h2>Port</h2><${Fields} object=${port} /></section>
      <div><${Last} id=${id} /><${Neighbours} port=${port} /><section><h2>Effective rules</h2>${port.port_security_enabled ? (port.security_groups.length ? port.security_groups.map((group) => html`<${Rules} key=${group} group=${group} brief=${true} />`) : html`<div class="muted">No group: nothing is let through.</div>`) : html`<div class="muted">Port security is off: everything is let through.</div>`}</section></div>
    </div><${History} id=${id} />`} />`;
}

function Last({ id }) {
  const { data, error } = useData(`/v2.0/alcor/changes/${id}`, (event) => event.id === id);
  if (!data) return error ? html`<section><h2>Last change</h2><div class="muted">Its trace is no longer kept.</div></section>` : null;
  return html`<section><h2>Last change <span class="muted">${data.change.resource}, ${ms(data.change.total_us)}</span></h2><${Waterfall} change=${data.change} /></section>`;
}

function Neighbours({ port }) {
  const host = port["binding:host_id"];
  const { data } = useData(host ? `/v2.0/ports?limit=20&network_id=${port.network_id}&binding:host_id=${encodeURIComponent(host)}&fields=id,name,status,fixed_ips` : null, (event) => event.network_id === port.network_id);
  const others = data ? data.ports.filter((other) => other.id !== port.id) : [];
  if (!others.length) return null;
  return html`<section><h2>Beside it on ${host}</h2><div class="scroll"><table aria-label="Ports of the same network on this host"><tbody>${others.map((other) => html`<tr key=${other.id}><td><${Id} kind="ports" id=${other.id} name=${other.name} /></td><td class="mono">${other.fixed_ips.map((ip) => ip.ip_address).join(", ")}</td><td><${Status} value=${other.status} /></td></tr>`)}</tbody></table></div></section>`;
}

function Rules({ group, brief }) {
  const { data } = useData(`/v2.0/security-groups/${group}`, (event) => event.id === group || event.resource === "security_group_rule");
  if (!data) return null;
  const { name, security_group_rules: rules } = data.security_group;
  const range = (rule) => (rule.port_range_min == null ? "all" : rule.port_range_min === rule.port_range_max ? rule.port_range_min : `${rule.port_range_min}–${rule.port_range_max}`);
  return html`${brief && html`<div class="sub"><${Id} kind="security-groups" id=${group} name=${name} /></div>`}
    <div class="scroll"><table aria-label="Rules of ${name}"><thead><tr><th>direction</th><th>ethertype</th><th>protocol</th><th>ports</th><th>remote</th></tr></thead>
    <tbody>${rules.map((rule) => html`<tr key=${rule.id}><td>${rule.direction}</td><td>${rule.ethertype}</td><td>${rule.protocol || "any"}</td><td>${range(rule)}</td><td>${rule.remote_group_id ? html`<${Id} kind="security-groups" id=${rule.remote_group_id} />` : html`<span class="mono">${rule.remote_ip_prefix || "any"}</span>`}</td></tr>`)}</tbody></table></div>`;
}

export function Group({ id }) {
  const [form, setForm] = useState(false);
  return html`<${Page} path="/v2.0/security-groups/${id}" one="security_group" kind="security-groups" id=${id} render=${(group) => html`
    <section><div class="bar"><h2>Rules</h2><button class="primary" onClick=${() => setForm(true)}>New rule</button></div><${Rules} group=${id} /></section>
    <section><h2>Security group</h2><${Fields} object=${group} /></section><${History} id=${id} />
    ${form && html`<${Form} kind="rule" given=${{ security_group_id: id }} close=${() => setForm(false)} />`}`} />`;
}

export function Network({ id }) {
  return html`<${Page} path="/v2.0/networks/${id}" one="network" kind="networks" id=${id} render=${(network) => html`<div class="two">
    <section><h2>Network</h2><${Fields} object=${network} /></section><${Spread} id=${id} /></div><${History} id=${id} />`} />`;
}

function Spread({ id }) {
  const { data } = useData(`/v2.0/ports?limit=1000&network_id=${id}&fields=id,name,status,binding:host_id,fixed_ips`, (event) => event.network_id === id);
  if (!data) return html`<${Loading} />`;
  const by = new Map();
  for (const port of data.ports) by.set(port["binding:host_id"] || "", [...(by.get(port["binding:host_id"] || "") || []), port]);
  const most = Math.max(1, ...[...by.values()].map((ports) => ports.length));
  return html`<section><h2>Ports per host <span class="muted">${data.ports.length}${data.ports.length === 1000 ? " or more" : ""}</span></h2>
    ${by.size ? html`<div class="scroll"><table aria-label="Ports per host"><tbody>${[...by].sort((a, b) => b[1].length - a[1].length).slice(0, 50).map(([host, ports]) => html`<tr key=${host}><td>${host ? html`<a href="#/hosts/${host}">${host}</a>` : html`<span class="muted">no host</span>`}</td><td class="number">${ports.length}</td><td><i class="meter" style=${{ width: `${(160 * ports.length) / most}px`, background: colour(id) }}></i></td><td class="muted">${ports.filter((p) => p.status === "ERROR").length || ""}</td></tr>`)}</tbody></table></div>` : html`<${Empty} title="No ports">Nothing is attached to this network.<//>`}</section>`;
}

export const Subnet = ({ id }) => html`<${Page} path="/v2.0/subnets/${id}" one="subnet" kind="subnets" id=${id} render=${(subnet) => html`<section><${Fields} object=${subnet} /></section><${History} id=${id} />`} />`;

export function Host({ id }) {
  return html`<${Page} path="/v2.0/alcor/hosts/${encodeURIComponent(id)}" one="host" kind="hosts" id=${id} poll=${1000} render=${(host) => html`
    <div class="cards"><div class="card"><b>${host.ports}</b><span>ports programmed</span></div><div class="card"><b>${ago(host.last_beat)}</b><span>last beat</span></div><div class="card"><b>${ago(host.last_sync)}</b><span>last sync</span></div><div class="card"><b>${sum(host, "repaired")}</b><span>repaired in its kernel</span></div><div class="card"><b>${sum(host, "dropped")}</b><span>packets refused</span></div></div>
    <div class="two"><section><h2>Host</h2><${Fields} object=${host} /></section><${Counters} host=${host} /></div><${Here} name=${id} />`} />`;
}

const sum = (host, start) => Object.entries(host.counters).filter(([name]) => name.startsWith(start)).reduce((all, [, n]) => all + n, 0);

function Counters({ host }) {
  const rows = Object.entries(host.counters).sort();
  if (!rows.length) return null;
  return html`<section><h2>Counters</h2><div class="scroll"><table aria-label="Counters of this host"><tbody>${rows.map(([name, n]) => html`<tr key=${name}><td>${name.replaceAll("_", " ")}</td><td class="number">${n.toLocaleString()}</td></tr>`)}</tbody></table></div></section>`;
}

function Here({ name }) {
  const { data } = useData(`/v2.0/ports?limit=200&binding:host_id=${encodeURIComponent(name)}`, (event) => event.host === name);
  if (!data || !data.ports.length) return null;
  return html`<section><h2>Ports here <span class="muted">${data.ports.length}${data.ports.length === 200 ? " or more" : ""}</span></h2><div class="scroll"><table aria-label="Ports on this host"><thead><tr><th>name</th><th>addresses</th><th>network</th><th>project</th><th>status</th></tr></thead><tbody>${data.ports.map((port) => html`<tr key=${port.id}><td><${Id} kind="ports" id=${port.id} name=${port.name} /></td><td class="mono">${port.fixed_ips.map((ip) => ip.ip_address).join(", ")}</td><td><${Id} kind="networks" id=${port.network_id} /></td><td>${port.project_id}</td><td><${Status} value=${port.status} reason=${port.status_reason} /></td></tr>`)}</tbody></table></div></section>`;
}
