# SPDX-License-Identifier: Apache-2.0
"""Pods of the inference server (images/llm), made with crictl in a node. A pod is removed when its `with` ends."""

import glob
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

HANDLERS = ("magnetar-wasmtime", "magnetar-wasmedge")
IMAGE = "registry.example/llm-server:1"
MODEL = "/magnetar/images/llm/model/tiny.gguf"
LOGS = "/var/log/llm-clients"
# How long anything may take that takes a second on an idle machine, in seconds.
PATIENCE = 120
# What the container may use of a processor in each period, in microseconds. One processor is best
# for the tiny model; with a twentieth, its answers come as slowly as a large model's.
PERIOD = 100_000
WHOLE = 100_000
TWENTIETH = 5_000


def crictl(*arguments):
    return subprocess.run(["crictl", "--timeout", f"{PATIENCE}s", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def until(what, happens, within=PATIENCE):
    """Waits until `happens` returns something true, and returns it."""
    deadline = time.monotonic() + within
    while not (result := happens()):
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.02)
    return result


def compiled_modules():
    """How many modules the node's cache has the code of."""
    return len(glob.glob("/var/lib/magnetar/wasm/*/*.sha256"))


class Server:
    """A pod with the server in it, ready to answer."""

    def __init__(self, name, handler):
        self.name, self.handler = name, handler

    def __enter__(self):
        logs = f"{LOGS}/{self.name}"
        pod = {
            "metadata": {"name": self.name, "namespace": "default", "uid": self.name, "attempt": 0},
            "log_directory": logs,
            "linux": {"security_context": {"namespace_options": {"pid": 1}}},
        }
        preload = " ".join(f"{alias}:GGML:CPU:/models/tiny.gguf" for alias in ("default", "embedding"))
        container = {
            "metadata": {"name": "server", "attempt": 0},
            "image": {"image": IMAGE},
            "envs": [{"key": "WASMEDGE_WASINN_PRELOAD", "value": preload}, {"key": "CTX_SIZE", "value": "2048"}],
            "mounts": [{"container_path": "/models/tiny.gguf", "host_path": MODEL, "readonly": True}],
            "log_path": "server.log",
            "linux": {"resources": {"cpu_period": PERIOD, "cpu_quota": WHOLE, "memory_limit_in_bytes": 512 << 20}},
        }
        self.log = f"{logs}/server.log"
        with tempfile.NamedTemporaryFile("w", suffix=".json") as pod_file, tempfile.NamedTemporaryFile("w", suffix=".json") as container_file:
            json.dump(pod, pod_file)
            json.dump(container, container_file)
            pod_file.flush()
            container_file.flush()
            self.pod = crictl("runp", "--runtime", self.handler, pod_file.name)
            try:
                self.container = crictl("create", self.pod, container_file.name, pod_file.name)
                crictl("start", self.container)
                address = json.loads(crictl("inspectp", "--output", "json", self.pod))["status"]["network"]["ip"]
                self.url = f"http://{address}:8080"
                until(f"the server of {self.name} is ready", self.is_ready)
            except BaseException:
                self.remove()
                raise
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        crictl("rmp", "--force", self.pod)

    def kill(self):
        """Kills the server. Its pod stays, and its address refuses connections."""
        crictl("stop", "--timeout", "0", self.container)

    def is_ready(self):
        state = json.loads(crictl("inspect", "--output", "json", self.container))["status"]["state"]
        assert state != "CONTAINER_EXITED", f"it has ended: {self.said()}"
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def said(self):
        with open(self.log, encoding="utf-8") as log:
            return log.read()

    def limit(self, quota):
        """Gives its container that much of a processor, from now on."""
        crictl("update", "--cpu-period", str(PERIOD), "--cpu-quota", str(quota), self.container)

    def metric(self, name):
        """A number from /metrics; 0 when it is not there, because nothing was counted yet."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE).read().decode()
        return next((int(line.removeprefix(name)) for line in text.splitlines() if line.startswith(f"{name} ")), 0)


def compile_module(handler):
    """Has the node compile the server's module. WasmEdge's compiler can take longer than a container waits for it, and
    the first one is then interpreted."""
    before = compiled_modules()
    with Server(f"first-{handler}", handler) as server:
        if "it is interpreted" in server.said():
            until(f"{handler} has compiled the module", lambda: compiled_modules() > before)
