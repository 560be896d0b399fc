"""The ready files of docker/, as far as they can be checked without their engines: by the engines' own validators. See README.md."""

import json
import os
import pathlib
import subprocess
import sys

import boto3
import sky
import yaml
from botocore.stub import Stubber

DOCKER = pathlib.Path(__file__).resolve().parents[2] / "docker"
# The oldest version that has all fields, and the newest one that the validator knows.
KUBERNETES = ["1.29", "1.37"]


def main():
    os.chdir(DOCKER.parent)  # the files are named from here
    files = sorted(str(path) for path in (DOCKER / "kubernetes").glob("*.yaml"))
    validator = pathlib.Path(sys.executable).parent / "kubernetes-validate"
    for version in KUBERNETES:
        subprocess.run([sys.executable, validator, "--strict", "--quiet", "-k", version, *files], check=True)
    (job,) = yaml.safe_load_all((DOCKER / "kubernetes/job.yaml").read_text())
    (part,) = job["spec"]["template"]["spec"]["containers"]
    number = part["args"][part["args"].index("--part") + 1]
    assert number == f"$(JOB_COMPLETION_INDEX)/{job['spec']['completions']}", number

    task = sky.Task.from_yaml(str(DOCKER / "skypilot.yaml"))
    # Against SkyPilot's schema only: its list of machines comes from the network.
    task.validate_run()
    task.expand_and_validate_file_mounts()
    assert "--part auto" in task.run and all(choice.use_spot for choice in task.resources), task

    definition = json.loads((DOCKER / "aws-batch.json").read_text())
    assert definition["containerProperties"]["command"][-2:] == ["--part", "auto"]
    # The client checks the definition against the description of the service; nothing is sent.
    batch = boto3.client("batch", region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret")
    with Stubber(batch) as stub:
        answer = {"jobDefinitionName": "wikicap", "jobDefinitionArn": "arn", "revision": 1}
        stub.add_response("register_job_definition", answer)
        batch.register_job_definition(**definition)
    print(f"{len(files)} files for Kubernetes {' and '.join(KUBERNETES)}, one for SkyPilot, one for AWS Batch: valid")


if __name__ == "__main__":
    main()
