// The REST API and its stream of events, as the console uses them. Nothing here knows of pages.
const KEY = "alcor.who";
const SESSION = "alcor.session";
const PAGE = 1000;

export const who = { project: "demo", admin: true, ...stored(localStorage, KEY) };
// Who logged in, where the API wants that: {token, user, project, roles}. Gone with the tab.
export let session = stored(sessionStorage, SESSION);

function stored(storage, key) {
  try { return JSON.parse(storage.getItem(key)) || {}; } catch { return {}; }
}

// Hosts are for administrators, and for everybody where nobody logs in.
export const operator = () => !session.token || who.admin;

function enter(next) {
  session = next;
  try { sessionStorage.setItem(SESSION, JSON.stringify(next)); } catch { /* a private window */ }
  live.emit("session");
}

// A token for a project, or for the user's first one. Raises Refused.
export async function logIn(user, password, project) {
  const domain = { id: "default" };
  const identity = { methods: ["password"], password: { user: { name: user, password, domain } } };
  const scope = project ? { scope: { project: { name: project, domain } } } : {};
  const answer = await fetch("/v3/auth/tokens", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ auth: { identity, ...scope } }),
  }).catch(() => { throw new Refused(0, "Unreachable", "The API does not answer."); });
  const { token, error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) throw new Refused(401, "HTTPUnauthorized", "User, password and project do not go together.");
  if (!token) throw new Refused(answer.status, "Error", (error && error.message) || `The API answers ${answer.status}.`);
  if (!token.project) throw new Refused(400, "Error", "A project must be named: this user has no default one.");
  const roles = (token.roles || []).map((role) => role.name.toLowerCase());
  enter({ token: answer.headers.get("X-Subject-Token"), user, project: token.project.name, roles, asked: false });
  become({ project: token.project.id, admin: roles.includes("admin") });
}

export function logOut() {
  if (session.asked) return;
  live.stop();
  enter({ asked: true });
}

export function become(next) {
  Object.assign(who, next);
  try { localStorage.setItem(KEY, JSON.stringify(who)); } catch { /* a private window */ }
  live.restart();
  live.emit("reload");
}

function headers() {
  if (session.token) return { "X-Auth-Token": session.token, ...(session.roles.includes("admin") ? { "X-Roles": who.admin ? "admin" : "member" } : {}) };
  return { "X-Project-Id": who.project || "demo", ...(who.admin ? { "X-Roles": "admin" } : {}) };
}

export class Refused extends Error {
  constructor(status, type, message) { super(message); this.status = status; this.type = type; }
}

export async function call(method, path, body, more = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { ...headers(), ...(body ? { "Content-Type": "application/json" } : {}), ...more },
      body: body ? JSON.stringify(body) : undefined,
      signal: AbortSignal.timeout(30000),
    });
  } catch {
    throw new Refused(0, "Unreachable", "The API does not answer.");
  }
  const text = await answer.text();
  let data = null;
  try { data = text ? JSON.parse(text) : null; } catch { /* not ours */ }
  if (answer.status === 401) logOut();
  if (!answer.ok) {
    const error = data && data.NeutronError;
    throw new Refused(answer.status, error ? error.type : "Error", error ? error.message : `The API answers ${answer.status}.`);
  }
  return data;
}

export const get = (path) => call("GET", path);

// All objects of a collection, page by page; `seen` hears of each page, so that a long list can be drawn as it comes.
export async function all(plural, query = {}, seen = () => {}, path = plural) {
  const found = [];
  let marker = "";
  for (;;) {
    const asked = new URLSearchParams({ ...query, limit: PAGE, ...(marker ? { marker } : {}) });
    const page = (await get(`/v2.0/${path}?${asked}`))[plural];
    found.push(...page);
    seen(found);
    if (page.length < PAGE) return found;
    marker = page[page.length - 1].id || page[page.length - 1].name;
  }
}

// Events as they happen. `state`: connecting, live or offline; `on` hears "event", "change", "state" and "reload".
class Live {
  constructor() {
    this.state = "connecting";
    this.since = Date.now();
    this.handlers = new Map();
    this.wait = 500;
    this.generation = 0;
  }

  on(name, handler) {
    if (!this.handlers.has(name)) this.handlers.set(name, new Set());
    this.handlers.get(name).add(handler);
    return () => this.handlers.get(name).delete(handler);
  }

  emit(name, data) {
    for (const handler of this.handlers.get(name) || []) handler(data);
  }

  set(state) {
    if (state === this.state) return;
    this.state = state;
    this.since = Date.now();
    this.emit("state", state);
  }

  restart() {
    this.stop();
    this.run(this.generation);
  }

  stop() {
    this.generation += 1;
    if (this.abort) this.abort.abort();
  }

  async run(generation) {
    let broken = false;
    while (generation === this.generation) {
      try {
        await this.follow(generation, broken);
      } catch { /* the loop tries again */ }
      if (generation !== this.generation) return;
      broken = true;
      this.set("offline");
      await new Promise((done) => setTimeout(done, this.wait * (0.5 + Math.random() / 2)));
      this.wait = Math.min(this.wait * 2, 8000);
    }
  }

  async follow(generation, broken) {
    this.abort = new AbortController();
    let silent = setTimeout(() => this.abort.abort(), 10000);
    const heard = () => { // the server says something every 10 s
      clearTimeout(silent);
      silent = setTimeout(() => this.abort.abort(), 25000);
    };
    try {
      const answer = await fetch("/v2.0/alcor/events", { headers: headers(), signal: this.abort.signal });
      if (answer.status === 401) logOut();
      if (!answer.ok) throw new Error(String(answer.status));
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done || generation !== this.generation) return;
        heard();
        if (this.state !== "live") {
          this.wait = 500;
          this.set("live");
          if (broken) this.emit("reload");
        }
        rest += value;
        const messages = rest.split("\n\n");
        rest = messages.pop();
        for (const message of messages) this.take(message);
      }
    } finally {
      clearTimeout(silent);
    }
  }

  take(message) {
    let kind = "event";
    let data = "";
    for (const line of message.split("\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("data: ")) data = line.slice(6);
    }
    if (!data) return;
    if (kind === "lagged") this.emit("reload");
    else this.emit(kind === "change" ? "change" : "event", JSON.parse(data));
  }
}

export const live = new Live();
