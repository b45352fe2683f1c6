// The first page: the mesh as it is now.
import { useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { all, live, operator } from "./api.js";
import { Picture } from "./mesh.js";
import { Empty, Id, Problem, Status, clock, colour, html, ms, useInterval, useTitle } from "./ui.js";

const HOST_FIELDS = "name,alive,state,ports,underlay_address";
const PORT_FIELDS = "id,name,network_id,binding:host_id,status,status_reason,device_owner";
const FEED = 40;

const instance = (port) => ({
  id: port.id, name: port.name, network: port.network_id, host: port["binding:host_id"], status: port.status, reason: port.status_reason,
});

// Tenants are not told about hosts; they see those that their instances are on.
const hostsOf = (ports) => [...new Set(ports.map((port) => port["binding:host_id"] || port.host))].filter(Boolean).sort().map((name) => ({ name, alive: true, state: "up", ports: 0, underlay_address: "" }));
const readHosts = () => all("hosts", { fields: HOST_FIELDS }, undefined, "alcor/hosts");

function useMesh() {
  const [mesh, set] = useState({ hosts: [], networks: new Map(), instances: new Map(), loaded: false, error: null, turn: 0 });
  const state = useRef(mesh);
  const put = (more) => { state.current = { ...state.current, ...more, turn: state.current.turn + 1 }; set(state.current); };
  const turn = useRef(0);
  const late = useRef(null); // what happens while a list is read, which its pages may not know yet
  const load = async () => {
    const mine = ++turn.current;
    late.current = [];
    try {
      const [hosts, networks] = await Promise.all([operator() ? readHosts() : [], all("networks", { fields: "id,name,project_id" })]);
      networks.forEach((network) => colour(network.id));
      const show = (ports) => {
        if (mine !== turn.current) return; // asked again since, perhaps as somebody else
        const read = { hosts: operator() ? hosts : hostsOf(ports), networks: new Map(networks.map((network) => [network.id, network])), instances: new Map(ports.map((port) => [port.id, instance(port)])) };
        late.current.forEach((event) => keep(event, read));
        put({ ...read, loaded: true, error: null });
      };
      show(await all("ports", { fields: PORT_FIELDS }, (some) => state.current.loaded || show(some)));
    } catch (error) { if (mine === turn.current) put({ error }); }
    if (mine === turn.current) late.current = null;
  };
  useEffect(() => { load(); return live.on("reload", load); }, []);
  useInterval(async () => { // hosts that fall silent say nothing
    try { put({ hosts: operator() ? await readHosts() : hostsOf([...state.current.instances.values()]), ...(state.current.loaded ? { error: null } : {}) }); } catch (error) { put({ error }); }
  }, 3000);
  const take = (event) => {
    if (late.current) late.current.push(event);
    if (keep(event, state.current)) put({});
  };
  return { mesh, state, take, load };
}

// What an event changes; false: nothing that this page shows, or hosts, which are asked for all the time.
function keep(event, { instances, networks }) {
  if (event.resource === "port") {
    if (event.verb === "delete") instances.delete(event.id);
    else instances.set(event.id, { id: event.id, name: event.name, network: event.network_id, host: event.host, status: event.status, reason: event.status_reason });
  } else if (event.resource === "network") {
    if (event.verb === "delete") networks.delete(event.id);
    else networks.set(event.id, { id: event.id, name: event.name, project_id: event.project_id });
  } else return false;
  return true;
}

export function Topology() {
  useTitle("Topology");
  const source = useMesh();
  const { mesh } = source;
  const [chosen, choose] = useState({ host: "", network: "", instance: "" });
  const [feed, setFeed] = useState([]);
  const canvas = useRef(null);
  const picture = useRef(null);
  useEffect(() => {
    const made = (picture.current = new Picture(canvas.current, (at) => choose({ host: at.host, network: "", instance: at.instance })));
    window.alcorPicture = made; // for who measures frames
    return () => made.close();
  }, []);
  useEffect(() => live.on("event", (event) => {
    source.take(event);
    if (event.resource === "port" && event.verb !== "delete") picture.current.pulse(event.id);
    setFeed((old) => [event, ...old].slice(0, FEED));
  }), []);
  const pending = useRef(0);
  useEffect(() => { // many events are one picture
    if (pending.current) return;
    pending.current = requestAnimationFrame(() => { pending.current = 0; const { hosts, instances, networks } = source.state.current; picture.current.show(hosts, instances, networks); });
  }, [mesh.turn]);
  useEffect(() => picture.current.select(chosen), [chosen]);
  const silent = mesh.hosts.filter((host) => host.state === "silent" || host.state === "fenced").length;
  const find = (text) => {
    const name = mesh.hosts.find((host) => host.name === text) || mesh.hosts.find((host) => host.name.includes(text));
    const network = name ? null : [...mesh.networks.values()].find((each) => each.name === text || each.id === text);
    const port = name || network ? null : [...mesh.instances.values()].find((each) => each.name === text || each.id === text);
    if (name) { choose({ host: name.name, network: "", instance: "" }); picture.current.focus(name.name); }
    else if (network) choose({ host: "", network: network.id, instance: "" });
    else if (port) { choose({ host: port.host, network: "", instance: port.id }); picture.current.focus(port.host); }
    return Boolean(name || network || port);
  };
  const summary = [[mesh.hosts.length, "host"], [mesh.networks.size, "network"], [mesh.instances.size, "instance"]].map(([n, what]) => `${n} ${what}${n === 1 ? "" : "s"}`).join(", ");
  return html`<div class="mesh">
    <div class="stagearea">
      <canvas ref=${canvas} tabindex="0" role="img" aria-label="Map of the mesh: ${summary}. Arrows move, plus and minus zoom, 0 shows all."></canvas>
      <div class="tools"><h1 class="pill" data-summary>${summary}</h1>${silent > 0 && html`<span class="pill offline">${silent} silent</span>`}<span class="grow"></span><${Find} find=${find} /></div>
      ${mesh.error && html`<div class="tools" style=${{ top: "60px" }}><${Problem} error=${mesh.error} again=${source.load} /></div>`}
      ${mesh.loaded && operator() && !mesh.hosts.length && html`<div class="tools" style=${{ top: "40%", justifyContent: "center" }}><${Empty} title="No hosts yet">A host appears when its agent registers: alcor agent --host NAME.<//></div>`}
      <div class="zoom"><button aria-label="Zoom out" onClick=${() => picture.current.zoom(0.8)}>−</button><button aria-label="Zoom in" onClick=${() => picture.current.zoom(1.25)}>+</button><button onClick=${() => picture.current.fit()}>All</button></div>
    </div>
    <aside class="side" aria-label="What is selected"><${Side} mesh=${mesh} chosen=${chosen} choose=${choose} feed=${feed} /></aside>
  </div>`;
}

function Find({ find }) {
  const [missed, miss] = useState(false);
  return html`<form onSubmit=${(e) => { e.preventDefault(); miss(!find(e.target.q.value.trim())); }}>
    <input type="search" name="q" data-search aria-label="Find a host, network or instance" placeholder="Find host, network, instance" aria-invalid=${missed} onInput=${() => miss(false)} />
  </form>`;
}

function Side({ mesh, chosen, choose, feed }) {
  if (chosen.instance && mesh.instances.has(chosen.instance)) return html`<${Instance} mesh=${mesh} id=${chosen.instance} choose=${choose} />`;
  if (chosen.host) return html`<${HostSide} mesh=${mesh} name=${chosen.host} choose=${choose} />`;
  if (chosen.network && mesh.networks.has(chosen.network)) return html`<${NetworkSide} mesh=${mesh} id=${chosen.network} choose=${choose} />`;
  return html`<${Overview} mesh=${mesh} choose=${choose} feed=${feed} />`;
}

const Back = ({ choose }) => html`<button class="link muted" onClick=${() => choose({ host: "", network: "", instance: "" })}>← Overview</button>`;

function NetworkLine({ network, count, choose }) {
  return html`<li><button class="link" onClick=${() => choose({ host: "", network: network.id, instance: "" })}><i class="dot" style=${{ color: colour(network.id) }}></i>${network.name || network.id}</button><span class="muted">${count}</span></li>`;
}

function Overview({ mesh, choose, feed }) {
  const counts = useMemo(() => {
    const found = new Map();
    for (const each of mesh.instances.values()) found.set(each.network, (found.get(each.network) || 0) + 1);
    return found;
  }, [mesh.turn]);
  const networks = [...mesh.networks.values()].sort((a, b) => (counts.get(b.id) || 0) - (counts.get(a.id) || 0)).slice(0, 30);
  const failing = [...mesh.instances.values()].filter((each) => each.status === "ERROR").slice(0, 10);
  return html`<h2>The mesh</h2><div class="muted">Each dot is an instance, in its network's colour. Choose a network or a host to see its tunnels.</div>
    ${failing.length > 0 && html`<h3>Failing</h3><ul>${failing.map((each) => html`<li key=${each.id}><span><${Id} kind="ports" id=${each.id} name=${each.name} /></span><${Status} value="ERROR" reason=${each.reason} /></li>`)}</ul>`}
    <h3>Networks</h3>
    ${networks.length ? html`<ul>${networks.map((network) => html`<${NetworkLine} key=${network.id} network=${network} count=${counts.get(network.id) || 0} choose=${choose} />`)}</ul>` : html`<div class="muted">None yet. <a href="#/networks?new">Create one</a>.</div>`}
    <h3>As it happens</h3>
    ${feed.length ? html`<ul class="feed">${feed.map((e) => html`<li key=${`${e.id}${e.verb}${e.at_us}`}><${FeedLine} event=${e} /></li>`)}</ul>` : html`<div class="muted">Nothing since this page was opened.</div>`}`;
}

const KINDS = { port: "ports", network: "networks", subnet: "subnets", security_group: "security-groups", host: "hosts" };

function FeedLine({ event }) {
  const kind = KINDS[event.resource];
  const what = kind && event.verb !== "delete" ? html`<${Id} kind=${kind} id=${event.id} name=${event.name} />` : event.name || event.id.slice(0, 8);
  return html`<span class="muted mono">${clock(event.at_us)}</span> ${event.resource.replaceAll("_", " ")} ${what} ${event.verb === "status" ? html`<${Status} value=${event.status} reason=${event.status_reason} />` : `${event.verb}d`} ${event.verb === "status" && event.took_us ? html`<a href="#/changes/${event.change}">${ms(event.took_us)}</a>` : ""}`;
}

function HostSide({ mesh, name, choose }) {
  const host = mesh.hosts.find((each) => each.name === name);
  if (!host) return html`<${Back} choose=${choose} /><h2>${name}</h2><div class="muted">This host is gone.</div>`;
  const here = [...mesh.instances.values()].filter((each) => each.host === name);
  const networks = [...new Set(here.map((each) => each.network))].map((id) => mesh.networks.get(id)).filter(Boolean);
  return html`<${Back} choose=${choose} /><h2><a href="#/hosts/${name}">${name}</a></h2><${Status} value=${host.state} /> <span class="muted mono">${host.underlay_address}</span>
    <h3>Networks</h3><ul>${networks.map((network) => html`<${NetworkLine} key=${network.id} network=${network} count=${here.filter((each) => each.network === network.id).length} choose=${choose} />`)}</ul>
    <h3>Instances (${here.length})</h3><ul>${here.slice(0, 60).map((each) => html`<li key=${each.id}><span><i class="dot" style=${{ color: colour(each.network) }}></i><${Id} kind="ports" id=${each.id} name=${each.name} /></span><${Status} value=${each.status} reason=${each.reason} /></li>`)}</ul>`;
}

function NetworkSide({ mesh, id, choose }) {
  const network = mesh.networks.get(id);
  const members = [...mesh.instances.values()].filter((each) => each.network === id);
  const hosts = [...new Set(members.map((each) => each.host).filter(Boolean))];
  return html`<${Back} choose=${choose} /><h2><i class="dot" style=${{ color: colour(id) }}></i><a href="#/networks/${id}">${network.name || id}</a></h2><div class="muted">project ${network.project_id}</div>
    <h3>Spans ${hosts.length} hosts</h3><ul>${hosts.slice(0, 60).map((host) => html`<li key=${host}><button class="link" onClick=${() => choose({ host, network: "", instance: "" })}>${host}</button><span class="muted">${members.filter((each) => each.host === host).length}</span></li>`)}</ul>
    <h3>Tunnels</h3><div class="muted">${hosts.length < 2 ? "None: all its instances are on one host." : `${(hosts.length * (hosts.length - 1)) / 2} pairs of hosts exchange its packets by VXLAN.`}</div>`;
}

function Instance({ mesh, id, choose }) {
  const each = mesh.instances.get(id);
  const network = mesh.networks.get(each.network);
  return html`<${Back} choose=${choose} /><h2><${Id} kind="ports" id=${id} name=${each.name} /></h2><${Status} value=${each.status} reason=${each.reason} />
    ${each.reason && html`<p class="muted">${each.reason}</p>`}
    <h3>Where</h3><ul><li><button class="link" onClick=${() => choose({ host: each.host, network: "", instance: "" })}>host ${each.host || "none"}</button></li>${network && html`<${NetworkLine} network=${network} count="" choose=${choose} />`}</ul>`;
}
