"""Kubernetes: the pods of docker/kubernetes as an Indexed Job starts them, by podman, on an S3 run directory; one is killed.

    python indexed_job.py PROGRAM FOLDER

There is no API server. This file starts pods as the Job controller does: `parallelism` at a time, a failed index again up to
`backoffLimitPerIndex` times, and the whole Job fails by the rules of `podFailurePolicy`. What a pod is comes from the manifests; podman
lacks resources of cards and `fsGroup`, so those are removed, and the image holds the program with the libraries of this machine.
"""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import time

import boto3
import yaml
from common import PARTS, REPOSITORY, compare, pipeline, say, stopped, wait_for, write_wrapper

USER = 10001
IMAGE = "localhost/wikicap:test"
PORT = 5555
CREDENTIALS = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


class Podman:
    """Podman with images and containers in a folder of its own."""

    def __init__(self, folder):
        folder.mkdir()
        self.command = ["podman", "--root", folder / "root", "--runroot", folder / "run", "--tmpdir", folder / "tmp"]
        self.command += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]

    def run(self, *arguments, check=True, **options):
        """Runs podman; returns what it prints."""
        command = [str(word) for word in [*self.command, *arguments]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout.strip()


def build_image(podman, program, folder):
    """Makes an image of the program, a shell for the wrapper and the libraries that both need."""
    tar = folder / "image.tar"
    with tarfile.open(tar, "w") as image:
        certificates = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
        files = {program: "/usr/local/bin/wikicap-pipeline.bin", certificates: str(certificates)}
        for binary in (program, pathlib.Path("/bin/sh"), pathlib.Path("/bin/mkdir")):
            files.setdefault(binary, str(binary))
            printed = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
            files |= {pathlib.Path(path): path for path in re.findall(r"(/\S+) \(0x", printed)}
        for path, name in files.items():
            image.add(path.resolve(), name)
        for name, mode, owner in [
            ("tmp", 0o1777, 0),
            ("work", 0o755, USER),
            ("scratch", 0o755, USER),
            ("cache", 0o755, USER),
        ]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
            image.addfile(entry)
    changes = ["USER 10001", "WORKDIR /work", "ENV HF_HOME=/cache", 'ENTRYPOINT ["/first/program.sh"]']
    podman.run("import", *[word for change in changes for word in ("--change", change)], tar, IMAGE)
    tar.unlink()


def read_manifests(folder, shared):
    """Reads the Job, and edits the three places that its comments number; returns its specification and the other objects."""
    (job,) = yaml.safe_load_all((REPOSITORY / "docker/kubernetes/job.yaml").read_text())
    config, secret = yaml.safe_load_all((REPOSITORY / "docker/kubernetes/config.yaml").read_text())
    spec = job["spec"]
    (part,) = spec["template"]["spec"]["containers"]
    number = part["args"].index("--part") + 1
    assert part["args"][number] == f"$(JOB_COMPLETION_INDEX)/{spec['completions']}"
    spec.update(completions=PARTS, parallelism=2, backoffLimitPerIndex=3)
    part["args"][number] = f"$(JOB_COMPLETION_INDEX)/{PARTS}"
    part["image"] = IMAGE
    part["resources"] = {"limits": {"memory": "1Gi"}}
    # The pods share the network of this test, in which the S3 server listens: one port would serve one of them.
    del part["ports"], part["args"][part["args"].index("--metrics") :]
    assert secret["stringData"].keys() <= CREDENTIALS.keys()
    config["data"]["pipeline.toml"] = pipeline("/corpus", "s3://runs/pods")
    config["data"]["machine.toml"] = (shared / "machine.toml").read_text() + '[scratch]\ndir = "/scratch"\n'
    # The inputs, and the wrapper whose first process stops.
    for name, path, read_only in [("corpus", shared / "corpus", True), ("first", folder / "first-pod", False)]:
        part["volumeMounts"].append({"name": name, "mountPath": f"/{name}", "readOnly": read_only})
        spec["template"]["spec"]["volumes"].append({"name": name, "hostPath": {"path": str(path), "type": "Directory"}})
    spec["template"]["spec"]["securityContext"].pop("fsGroup")
    return spec, config, secret["metadata"]["name"]


class Controller:
    """The Job controller: one pod for each index that is not complete."""

    def __init__(self, podman, folder, spec, config):
        self.podman, self.folder, self.spec, self.config = podman, folder, spec, config
        self.waiting, self.live, self.failures = list(range(spec["completions"])), [], {}
        self.codes = []

    def container(self, index):
        return f"wikicap-{index}-part"

    def process(self, index):
        """Returns the first process of a pod's container."""
        return self.podman.run("inspect", self.container(index), "--format", "{{.State.Pid}}")

    def start(self, index):
        pod = json.loads(json.dumps(self.spec["template"]))
        pod |= {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"wikicap-{index}", "labels": {"app": "wikicap"}},
        }
        for part in pod["spec"]["containers"]:
            part["env"] = [{"name": "JOB_COMPLETION_INDEX", "value": str(index)}, *part.get("env", [])]
            part["args"] = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in part["args"]]
        objects = self.folder / f"pod-{index}.yaml"
        objects.write_text(yaml.safe_dump_all([self.config, pod]))
        self.podman.run("kube", "play", "--network", "host", objects)
        self.live.append(index)
        say(f"pod {index} is started")

    def step(self):
        """Starts pods up to `parallelism`, and looks at those that have ended. Returns whether all indices are complete."""
        while self.waiting and len(self.live) < self.spec["parallelism"]:
            self.start(self.waiting.pop(0))
        for index in list(self.live):
            name = self.container(index)
            state, code = self.podman.run("inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}").split()
            if state == "exited":
                self.end(index, int(code))
        return not self.live and not self.waiting

    def end(self, index, code):
        log = subprocess.run(
            [str(word) for word in [*self.podman.command, "logs", self.container(index)]],
            capture_output=True,
            text=True,
            check=False,
        )
        (self.folder / f"pod-{index}.log").open("a").write(log.stdout + log.stderr)
        self.podman.run("pod", "rm", "--force", f"wikicap-{index}")
        self.live.remove(index)
        self.codes.append((index, code))
        say(f"pod {index} ended with {code}")
        if code == 0:
            return
        for rule in self.spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes", {"values": []})["values"]
            if rule["action"] == "FailJob" and code in codes:
                raise SystemExit(f"pod {index} fails the Job with exit code {code}: {log.stderr[-2000:]}")
        self.failures[index] = self.failures.get(index, 0) + 1
        if self.failures[index] > self.spec["backoffLimitPerIndex"]:
            raise SystemExit(f"index {index} fails again and again: {log.stderr[-2000:]}")
        self.waiting.append(index)


def download(s3, folder):
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket="runs", Prefix="pods/"):
        for entry in page["Contents"]:
            path = folder / entry["Key"].removeprefix("pods/")
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file("runs", entry["Key"], str(path))


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shared = folder.parent
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "moto.log").open("w"),
    )
    os.environ.update(CREDENTIALS, AWS_DEFAULT_REGION="us-east-1")
    s3 = boto3.client("s3")
    wait_for(lambda: "Uvicorn" in (text := (folder / "moto.log").read_text()) or "Running on" in text, 60, "moto")
    s3.create_bucket(Bucket="runs")
    podman = Podman(folder / "podman")
    build_image(podman, program, folder)
    say("the image is built")
    first = folder / "first-pod"
    first.mkdir()
    os.chown(first, USER, USER)
    write_wrapper(pathlib.Path("/usr/local/bin/wikicap-pipeline.bin"), first, commit="put-done", seen_as="/first")
    spec, config, secret = read_manifests(folder, shared)
    # What `kubectl apply` makes of a Secret, in the form that podman reads.
    data = {name: base64.b64encode(value.encode()).decode() for name, value in CREDENTIALS.items()}
    podman.run("secret", "create", secret, "-", input=json.dumps(data))
    controller = Controller(podman, folder, spec, config)
    victim = wait_for(lambda: controller.step() or stopped("/first"), 300, "a process that has committed two chunks")
    assert controller.live, "no process has stopped"
    namespace = os.readlink(f"/proc/{victim}/ns/pid")
    index = next(
        index for index in controller.live if os.readlink(f"/proc/{controller.process(index)}/ns/pid") == namespace
    )
    podman.run("kill", "--signal", "KILL", controller.container(index))
    say(f"pod {index} is killed")
    wait_for(controller.step, 600, "the end of the Job")
    assert (index, 137) in controller.codes, controller.codes
    download(s3, folder / "parts")
    left = [path for path in (folder / "parts").rglob("lock")]
    assert not left, f"leases are left: {left}"
    compare(shared / "whole", folder / "parts")
    server.kill()


if __name__ == "__main__":
    started = time.monotonic()
    main()
    say(f"Indexed Job: {time.monotonic() - started:.0f} s")
