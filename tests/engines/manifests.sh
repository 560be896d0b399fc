#!/usr/bin/env bash
# Checks the ready files of docker/ as far as that goes without their engines. See README.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
kubernetes-validate --strict docker/kubernetes/*.yaml
python3 - <<'P'
import ast, json, yaml
batch = json.load(open("docker/aws-batch.json"))
assert batch["containerProperties"]["command"][-2:] == ["--part", "auto"]
sky = yaml.safe_load(open("docker/skypilot.yaml"))
assert "--part auto" in sky["run"]
ast.parse(open("docker/ray_job.py").read())
job = next(doc for doc in yaml.safe_load_all(open("docker/kubernetes/job.yaml")))
args = job["spec"]["template"]["spec"]["containers"][0]["args"]
count = job["spec"]["completions"]
assert args[args.index("--part") + 1] == f"$(JOB_COMPLETION_INDEX)/{count}"
P
bash -n docker/slurm.sbatch tests/engines/slurm.sh
echo "the ready files are sound"
