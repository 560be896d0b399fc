#!/usr/bin/env bash
# Runs the demo pipeline in parts under real engines, takes a node away from each, and compares with one process. See README.md.
#
#   tests/engines/run.sh PROGRAM [OUT]
#   tests/engines/run.sh prepare         # only installs
#
# OUT is a scratch folder for data and logs (default: target/engines); it is removed at the end, unless a test fails. Runs as root on
# Debian and installs the engines itself. Exit code 77: this machine cannot run them, so nothing was tested.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$(realpath -m "$1")
[ "$1" = prepare ] || [ -x "$program" ] || { echo "tests/engines/run.sh: \`$1\` is no program" >&2; exit 2; }
cd "$(dirname "$0")/../.."
out=$(realpath -m "${2:-target/engines}")
venv=$(realpath -m target/venv/engines)
# All processes live in namespaces of their own: they end with this script, and no port, lock or daemon of the machine is touched.
namespaces=(unshare --mount --pid --net --uts --ipc --fork --kill-child=KILL --mount-proc)

impossible() { echo "NOT TESTED: no engine can run here: $1" >&2; exit 77; }
[ "$(id --user)" = 0 ] || impossible "it needs root"
command -v apt-get > /dev/null || impossible "it needs Debian's packages (apt-get)"
"${namespaces[@]}" true 2> /dev/null || impossible "this machine allows no new namespaces"
probe=$(mktemp -u /dev/engines.XXXXXX)
mknod "$probe" c 1 3 2> /dev/null || impossible "this machine allows no device files, which stand for cards"
rm "$probe"

install() {
    local package missing=()
    for package in slurmctld slurmd slurm-client munge podman runc catatonit iproute2 ca-certificates python3-venv; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -q '^installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        # The daemons of the packages stay off; another part of the checks may be using the package manager as well.
        for _ in 1 2 3; do apt-get update -qq && break; sleep 5; done
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 install --yes -qq --no-install-recommends "${missing[@]}"
    fi
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --no-compile ray==2.60.0 skypilot==0.14.1 kubernetes-validate==1.37.0 'moto[s3,server]==5.2.5'
}

if [ "$1" = prepare ]; then
    install
    exit
fi
rm -rf "$out"
mkdir -p "$out"
ray=$(mktemp -d /tmp/engines.XXXXXX)
inner=
clean() {
    code=$?
    [ -z "$inner" ] || kill -KILL "$inner" 2> /dev/null || true
    rm -rf "$ray"
    if [ $code -eq 0 ]; then rm -rf "$out"; else rm -rf "$out/pods/podman"; echo "the logs are in $out" >&2; fi
}
trap clean EXIT
trap 'exit 143' TERM INT

install > "$out/install.log" 2>&1 || { tail -20 "$out/install.log" >&2; echo "the engines cannot be installed" >&2; exit 1; }
echo "install: $SECONDS s"
# The namespaces end with this script, even if it is killed.
setpriv --pdeathsig KILL "${namespaces[@]}" env HOME="$ray" RAY_TMPDIR="$ray" TMPDIR="$ray" PYTHONPYCACHEPREFIX="$venv/pycache" \
    bash tests/engines/inside.sh "$program" "$out" "$venv/bin/python" &
inner=$!
wait $inner
inner=
echo "all engines: $SECONDS s"
