// The console: its frame, its pages by the part of the address behind `#`, and the keys that work everywhere.
import { render, useEffect, useState } from "./vendor/htm-preact.js";
import { become, live, logIn, logOut, operator, session, who } from "./api.js";
import { html } from "./ui.js";
import { Topology } from "./topology.js";
import { KINDS, List } from "./tables.js";
import { Change, Changes, Latency } from "./changes.js";
import { Group, Host, Network, Port, Subnet } from "./object.js";

const ONE = { networks: Network, subnets: Subnet, ports: Port, "security-groups": Group, hosts: Host, changes: Change };
const THEME = "alcor.theme";

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind = "", ...rest] = path.split("/");
  let id = rest.join("/");
  try { id = decodeURIComponent(id); } catch { /* as it stands */ }
  return { kind: kind || "topology", id, query: new URLSearchParams(query || "") };
}

function useRoute() {
  const [now, set] = useState(route());
  useEffect(() => {
    const changed = () => { set(route()); document.querySelector("main")?.scrollTo(0, 0); };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return now;
}

function useLive() {
  const [state, set] = useState(live.state);
  useEffect(() => { set(live.state); return live.on("state", set); }, []); // it may have changed before the page listened
  return state;
}

function PageOf({ place }) {
  const { kind, id, query } = place;
  if (kind === "topology") return html`<${Topology} />`;
  if (id && ONE[kind]) return html`<${ONE[kind]} key=${id} id=${id} />`;
  if (KINDS[kind]) return html`<${List} key=${kind} kind=${kind} query=${query} />`;
  if (kind === "changes") return html`<${Changes} query=${query} />`;
  if (kind === "latency") return html`<${Latency} />`;
  return html`<div class="empty"><strong>There is no such page</strong><p><a href="#/">To the topology</a></p></div>`;
}

const LINKS = [["topology", "Topology"], null, ...Object.entries(KINDS).map(([kind, { title }]) => [kind, title]), null, ["changes", "Changes"], ["latency", "Latency"]];
const HEADINGS = ["Resources", "What happens"];

function Nav({ kind }) {
  let heading = 0;
  return html`<nav aria-label="Pages">${LINKS.filter((link) => !link || link[0] !== "hosts" || operator()).map((link) => (link ? html`<a href="#/${link[0] === "topology" ? "" : link[0]}" aria-current=${kind === link[0] ? "page" : undefined}>${link[1]}</a>` : html`<h2>${HEADINGS[heading++]}</h2>`))}</nav>`;
}

function useSession() {
  const [now, set] = useState(session);
  useEffect(() => { set(session); return live.on("session", () => set(session)); }, []);
  return now;
}

function LogIn() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const send = async (e) => {
    e.preventDefault();
    const { user, password, project } = Object.fromEntries(new FormData(e.target));
    setBusy(true);
    try { await logIn(user.trim(), password, project.trim()); } catch (refused) { setError(refused); setBusy(false); }
  };
  return html`<form class="login" onSubmit=${send} aria-label="Log in"><h1>Log in</h1>
    <div class="field"><label for="login-user">User</label><input id="login-user" name="user" autocomplete="username" required autofocus /></div>
    <div class="field"><label for="login-password">Password</label><input id="login-password" name="password" type="password" autocomplete="current-password" required /></div>
    <div class="field"><label for="login-project">Project</label><input id="login-project" name="project" aria-describedby="about-project" /><small id="about-project">Empty: the user's first one.</small></div>
    ${error && html`<div class="problem" role="alert">${error.message}</div>`}
    <div class="actions"><button class="primary" disabled=${busy}>${busy ? "Logging in…" : "Log in"}</button></div></form>`;
}

function Identity() {
  const { token, user, project: own, roles } = useSession();
  if (token) return html`<span class="wide muted">${user} in ${own}</span>
    ${roles.includes("admin") && html`<label class="inline"><input type="checkbox" checked=${who.admin} onChange=${(e) => become({ admin: e.target.checked })} /> all projects</label>`}
    <button class="quiet" onClick=${logOut}>Log out</button>`;
  return html`<${Project} />`;
}

function Project() {
  const [project, set] = useState(who.project);
  return html`<form class="inline" onSubmit=${(e) => { e.preventDefault(); become({ project: project.trim() || "demo" }); }}>
    <label class="inline"><span class="wide">Project</span> <input size="10" value=${project} aria-label="Project" onInput=${(e) => set(e.target.value)} onBlur=${() => project.trim() !== who.project && become({ project: project.trim() || "demo" })} /></label>
    <label class="inline"><input type="checkbox" checked=${who.admin} onChange=${(e) => become({ admin: e.target.checked })} /> all projects</label></form>`;
}

function Theme() {
  const [theme, set] = useState(document.documentElement.dataset.theme);
  const turn = () => {
    const next = theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem(THEME, next); } catch { /* a private window */ }
    set(next);
    dispatchEvent(new Event("resize"));
  };
  return html`<button class="quiet" onClick=${turn} aria-label=${theme === "dark" ? "Use light colours" : "Use dark colours"}>${theme === "dark" ? "☀" : "☾"}</button>`;
}

const WORDS = { live: "live", connecting: "connecting", offline: "not connected" };

function App() {
  const place = useRoute();
  const state = useLive();
  const { asked } = useSession();
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(e) => { e.preventDefault(); document.querySelector("main").focus(); }}>Skip to content</a>
    <header><a class="brand" href="#/"><img src="/console/icon.svg" alt="" />Alcor Mesh</a><span class="grow"></span>${!asked && html`<${Identity} /><span class="pill ${state}" role="status" data-state=${state}>${WORDS[state]}</span>`}<${Theme} />
      ${state === "offline" && !asked && html`<div class="banner" role="alert" style=${{ flexBasis: "100%" }}>The API does not answer, or has no connection to NATS. What is shown may be old; trying again.</div>`}</header>
    <${Nav} kind=${place.kind} />
    <main id="main" tabindex="-1" class=${place.kind === "topology" && !asked ? "full" : ""}>${asked ? html`<${LogIn} />` : html`<${PageOf} place=${place} />`}</main>
  </div>`;
}

function keys(e) {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(e.target.tagName);
  if (e.key === "/" && !typing) {
    const search = document.querySelector("[data-search]");
    if (search) { e.preventDefault(); search.focus(); }
  } else if (e.key === "Escape" && typing && !e.target.closest("dialog")) e.target.blur();
}

let theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
try { theme = localStorage.getItem(THEME) || theme; } catch { /* a private window */ }
document.documentElement.dataset.theme = theme;
addEventListener("keydown", keys);
render(html`<${App} />`, document.getElementById("app"));
live.restart();
