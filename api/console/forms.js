// Dialogs that create: a network with its subnet, a port, a security group, a rule. The API judges; what it says of a
// field stands at that field.
import { useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { call, get, operator } from "./api.js";
import { html } from "./ui.js";

const FORMS = {
  network: {
    title: "New network",
    fields: [
      { name: "name", label: "Name", value: "" },
      { name: "cidr", label: "Subnet", value: "10.0.0.0/24", note: "A range of addresses, as 10.0.0.0/24. Empty: none yet." },
    ],
    async send(values) {
      const { network } = await call("POST", "/v2.0/networks", { network: { name: values.name } });
      if (values.cidr) {
        try {
          await call("POST", "/v2.0/subnets", { subnet: { network_id: network.id, cidr: values.cidr, ip_version: 4, name: values.name } });
        } catch (error) { // all or nothing
          await call("DELETE", `/v2.0/networks/${network.id}`).catch(() => {});
          throw error;
        }
      }
      return `networks/${network.id}`;
    },
  },
  port: {
    title: "New port",
    fields: [
      { name: "name", label: "Name", value: "" },
      { name: "network_id", label: "Network", options: async () => (await get("/v2.0/networks?fields=id,name&limit=500")).networks.map((n) => [n.id, n.name || n.id]) },
      { name: "binding:host_id", label: "Host", optional: true, options: async () => [["", "none"], ...(operator() ? (await get("/v2.0/alcor/hosts?fields=name&limit=500")).hosts : []).map((h) => [h.name, h.name])] },
      { name: "ip_address", label: "Address", value: "", note: "Empty: the next free one." },
    ],
    async send({ ip_address: ip, ...values }) {
      const port = Object.fromEntries(Object.entries(values).filter(([, value]) => value));
      if (ip) port.fixed_ips = [{ ip_address: ip }];
      return `ports/${(await call("POST", "/v2.0/ports", { port })).port.id}`;
    },
  },
  security_group: {
    title: "New security group",
    fields: [{ name: "name", label: "Name", value: "" }, { name: "description", label: "Description", value: "" }],
    async send(values) {
      return `security-groups/${(await call("POST", "/v2.0/security-groups", { security_group: values })).security_group.id}`;
    },
  },
  rule: {
    title: "New rule",
    fields: [
      { name: "direction", label: "Direction", options: async () => [["ingress", "ingress: to the instance"], ["egress", "egress: from the instance"]] },
      { name: "protocol", label: "Protocol", options: async () => [["tcp", "TCP"], ["udp", "UDP"], ["icmp", "ICMP"], ["", "any"]] },
      { name: "port_range_min", label: "Port", value: "", number: true, note: "Empty: all. A range needs both." },
      { name: "port_range_max", label: "… to", value: "", number: true },
      { name: "remote_ip_prefix", label: "From or to these addresses", value: "", note: "As 10.0.0.0/8. Empty: any." },
    ],
    async send(values, given) {
      const rule = { ...given, ethertype: "IPv4" };
      for (const [name, value] of Object.entries(values)) if (value !== "") rule[name] = name.startsWith("port_") && /^\d+$/.test(value) ? Number(value) : value;
      if (rule.port_range_min !== undefined && rule.port_range_max === undefined) rule.port_range_max = rule.port_range_min;
      await call("POST", "/v2.0/security-group-rules", { security_group_rule: rule });
      return null;
    },
  },
};

// `close` hears where the new object's page is, or nothing.
export function Form({ kind, given = {}, close }) {
  const form = FORMS[kind];
  const dialog = useRef(null);
  const made = useRef(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const [options, setOptions] = useState({});
  useEffect(() => {
    dialog.current.showModal();
    for (const field of form.fields) if (field.options) field.options().then((found) => setOptions((old) => ({ ...old, [field.name]: found })), setError);
  }, []);
  const send = async (e) => {
    e.preventDefault();
    const values = Object.fromEntries([...new FormData(e.target)].map(([name, value]) => [name, String(value).trim()]));
    setBusy(true);
    setError(null);
    try {
      made.current = await form.send(values, given);
      dialog.current.close();
    } catch (refused) { setError(refused); setBusy(false); }
  };
  // The field that the API's sentence names, else none: then it stands above the buttons.
  const at = error && form.fields.find((field) => new RegExp(`\\b${field.name.replace("binding:", "")}\\b`).test(error.message));
  return html`<dialog ref=${dialog} aria-labelledby="form-title" onClose=${() => close(made.current)}><h2 id="form-title">${form.title}</h2>
    <form onSubmit=${send}>${form.fields.map((field) => html`<${Field} key=${field.name} field=${field} options=${options[field.name]} wrong=${at === field ? error.message : ""} />`)}
      ${error && !at ? html`<div class="problem" role="alert">${error.message}</div>` : ""}
      <div class="actions"><button type="button" onClick=${() => dialog.current.close()}>Cancel</button><button class="primary" disabled=${busy}>${busy ? "Creating…" : "Create"}</button></div>
    </form></dialog>`;
}

function Field({ field, options, wrong }) {
  const about = `about-${field.name}`;
  const id = `field-${field.name}`;
  const common = { id, name: field.name, "aria-invalid": Boolean(wrong), "aria-describedby": about };
  return html`<div class="field"><label for=${id}>${field.label}</label>
    ${field.options ? html`<select ...${common}>${(options || []).map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select>` : html`<input ...${common} defaultValue=${field.value} inputmode=${field.number ? "numeric" : undefined} autocomplete="off" />`}
    <small id=${about} class=${wrong ? "wrong" : ""} role=${wrong ? "alert" : undefined}>${wrong || field.note || ""}</small></div>`;
}
