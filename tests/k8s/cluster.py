"""A real Kubernetes without Docker, in one network namespace: etcd, API server, controllers, scheduler, nodes that kwok
plays, and one with a real kubelet, containerd and runc. Called by `python -m tests.k8s`, inside that namespace.

Everything lives in one directory; `close` ends what was started, and puts the machine's settings back.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helm.charts import tool

ADDRESS = "10.199.0.1"
#: the kubelet changes them for the whole machine
SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "c", "cluster": {"server": f"https://{ADDRESS}:16443", "insecure-skip-tls-verify": True}}],
    "users": [{"name": "u", "user": {"token": "tok1"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "c",
}
CONTAINERD = """version = 2
root = "{d}/root"
state = "{d}/run"
[grpc]
  address = "{d}/cd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": ADDRESS,
    "healthzBindAddress": "127.0.0.1",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "enforceNodeAllocatable": [],
    "failCgroupV1": False,
    "failSwapOn": False,
    "makeIPTablesUtilChains": False,
    "localStorageCapacityIsolation": False,
    "resolvConf": "",
    "clusterDNS": [ADDRESS],
    "clusterDomain": "cluster.local",
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
}


COREFILE = """.:53 {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {d}/kubeconfig
  }}
}}
"""


class Cluster:
    """Processes by name and the commands of an operator."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._namespaces = _pods()
        self._sysctls = {name: Path("/proc/sys", name).read_text() for name in SYSCTLS}

    def start(self, *command: str) -> None:
        name = Path(command[0]).name
        with (self.directory / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory))

    def control_plane(self) -> None:
        """API server, store, controllers, scheduler; ready when this returns."""
        d = self.directory
        self._json("kubeconfig", KUBECONFIG)
        (d / "tokens.csv").write_text("tok1,admin,admin,system:masters\n")
        subprocess.run(["openssl", "genrsa", "-out", str(d / "sa.key"), "2048"], check=True, capture_output=True)
        self.start(tool("etcd"), "--unsafe-no-fsync", "--data-dir", str(d / "etcd"))
        self.start(
            tool("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={ADDRESS}",
            "--secure-port=16443",
            f"--advertise-address={ADDRESS}",
            f"--cert-dir={d}/certs",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={d}/sa.key",
            f"--service-account-signing-key-file={d}/sa.key",
            f"--token-auth-file={d}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
        )
        self.until("the API server is ready", lambda: self.kubectl("get", "--raw", "/readyz", fails=True) == "ok")
        common = (f"--kubeconfig={d}/kubeconfig", "--leader-elect=false")
        key = f"--service-account-private-key-file={d}/sa.key"
        self.start(tool("kube-controller-manager"), *common, key, "--controllers=*")
        self.start(tool("kube-scheduler"), *common)

    def fake_nodes(self, count: int) -> None:
        selector = "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake"
        stages = f"--config={tool('kwok-stages.yaml')}"
        lease = "--node-lease-duration-seconds=40"
        self.start(tool("kwok"), f"--kubeconfig={self.directory}/kubeconfig", stages, selector, lease)
        nodes = [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": f"fake-{number}",
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                    "labels": {
                        "kubernetes.io/os": "linux",
                        "kubernetes.io/hostname": f"fake-{number}",
                        "topology.kubernetes.io/zone": f"z{number % 3}",
                    },
                },
            }
            for number in range(count)
        ]
        self.apply({"apiVersion": "v1", "kind": "List", "items": nodes})
        self.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")

    def real_node(self, *images: Path) -> None:
        """A kubelet on containerd; pods on a bridge, images from files."""
        d = self.directory
        (d / "cni").mkdir()
        self._json("cni/pods.conflist", NETWORK)
        self._json("kubelet.json", KUBELET | {"containerRuntimeEndpoint": f"unix://{d}/cd.sock"})
        (d / "containerd.toml").write_text(CONTAINERD.format(d=d))
        self.start("/usr/bin/containerd", "-c", str(d / "containerd.toml"))
        self.until("containerd answers", (d / "cd.sock").exists)
        for image in images:
            self.ctr("images", "import", str(image))
        kubelet = (f"--kubeconfig={d}/kubeconfig", f"--config={d}/kubelet.json", f"--root-dir={d}/kubelet")
        self.start(tool("kubelet"), *kubelet, "--hostname-override=node1", f"--node-ip={ADDRESS}")
        self.until("node1 is there", lambda: "node1" in self.kubectl("get", "nodes", "-o", "name"))
        self.kubectl("wait", "--for=condition=Ready", "node/node1", "--timeout=60s")

    def services(self) -> None:
        """Services have addresses and names on the real node."""
        d = self.directory
        (d / "Corefile").write_text(COREFILE.format(address=ADDRESS, d=d))
        self.start(tool("coredns"), "-conf", f"{d}/Corefile")
        # Pods on one bridge answer each other past the node unless the node asks for them.
        proxy = ("--proxy-mode=nftables", "--masquerade-all", "--cluster-cidr=10.244.0.0/16")
        quiet = (
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        )
        self.start(tool("kube-proxy"), f"--kubeconfig={d}/kubeconfig", "--hostname-override=node1", *proxy, *quiet)

    # -- commands ---------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, fails: bool = False, errors: bool = False, text: str | None = None) -> str:
        command = (tool("kubectl"), "--kubeconfig", f"{self.directory}/kubeconfig")
        return self._run(*command, *arguments, fails=fails, errors=errors, text=text)

    def helm(self, *arguments: str) -> str:
        return self._run(tool("helm"), "--kubeconfig", f"{self.directory}/kubeconfig", *arguments)

    def ctr(self, *arguments: str) -> str:
        return self._run("/usr/bin/ctr", "-a", f"{self.directory}/cd.sock", "-n", "k8s.io", *arguments)

    def apply(self, found: Any) -> None:
        self.kubectl("apply", "-f", "-", text=json.dumps(found))

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def _run(self, *command: str, fails: bool = False, errors: bool = False, text: str | None = None) -> str:
        """What it printed, with `errors` also what it complained of; it may not fail unless `fails`."""
        done = subprocess.run(command, capture_output=True, text=True, input=text, timeout=300, check=False)
        if done.returncode and not fails:
            raise SystemExit(f"{' '.join(command[:6])} …: {done.stdout}{done.stderr}")
        return done.stdout + (done.stderr if errors else "")

    def until(self, what: str, fact: Callable[[], Any], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not fact():
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {seconds:.0f} s: {what}; logs are in {self.directory}")
            time.sleep(0.1)

    def _json(self, name: str, value: Any) -> None:
        (self.directory / name).write_text(json.dumps(value))

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        for process in reversed(self._processes):
            if Path(str(process.args[0])).name == "containerd":  # type: ignore[index]
                self._end_containers()
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        for name, value in self._sysctls.items():
            Path("/proc/sys", name).write_text(value)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for where in sorted((m for m in mounts if m.startswith(f"{self.directory}/")), reverse=True):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True)
        for name in _pods() - self._namespaces:
            subprocess.run(["ip", "netns", "del", name], check=False)
        for kind in ("kubepods", "k8s.io"):
            found = [Path(root) for base in Path("/sys/fs/cgroup").glob(f"**/{kind}") for root, _, _ in os.walk(base)]
            for group in sorted(found, key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    group.rmdir()

    def _end_containers(self) -> None:
        client = ("/usr/bin/ctr", "-a", f"{self.directory}/cd.sock", "-n", "k8s.io", "tasks")
        for task in self._run(*client, "ls", "-q", fails=True).split():
            self._run(*client, "rm", "-f", task, fails=True)


def _pods() -> set[str]:
    """Network namespaces of pods; the runtime leaves those of pods that it was not asked to end."""
    return {path.name for path in Path("/run/netns").glob("cni-*")}
