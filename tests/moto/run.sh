#!/usr/bin/env bash
# Runs the whole job with inputs and run directory on an independent S3 server (moto, from PyPI). After two kills, the second start
# without the first one's scratch disk, it ends with the same bytes as an undisturbed run on local disk.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$PWD/${1:-target/release/wikicap-pipeline}
here=target/moto
mkdir -p "$here"

if [ ! -x "$here/venv/bin/moto_server" ]; then
    python3 -m venv "$here/venv"
    "$here/venv/bin/pip" install --quiet 'moto[s3,server]==5.2.5'
fi
work=$(mktemp -d "$here/work.XXXXXX")
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT

"$program" sample --out "$work/corpus" --train-images 400 --test-images 40 > "$work/log"
# pipeline RUN_DIR DATA
pipeline() {
    cat << TOML
[run]
dir = "$1"
[captions]
list = "$2/test_caption_list.csv"
[pairs]
shards = ["$2/train-*-of-00005.tsv"]
[images]
shards = ["$2/image_data_train/image_pixels/*.csv.gz"]
[chunks]
rows = 50
[model]
checkpoint = "$work/corpus/models/vit-tiny"
[train]
epochs = 4
batch_size = 16
learning_rate = 0.2
checkpoint_every = "50 ms"
[predict]
images = ["$2/image_data_test/image_pixels/*.csv"]
ids = "$2/test.tsv"
TOML
}
pipeline "$work/local" "$work/corpus/data" > "$work/local.toml"
pipeline s3://runs/some/run s3://corpus/data > "$work/remote.toml"
"$program" run --config "$work/local.toml" > "$work/log" 2>&1

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# As a module: the script names the interpreter by where the folder was when it was made.
"$here/venv/bin/python" -m moto.server -H 127.0.0.1 -p "$port" > "$work/server.log" 2>&1 &
server=$!
export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret
export AWS_DEFAULT_REGION=$AWS_REGION NO_PROXY=127.0.0.1 TMPDIR=$PWD/$work
for _ in $(seq 100); do
    python3 -c "import socket; socket.create_connection(('127.0.0.1', $port)).close()" 2> /dev/null && break
    sleep 0.1
done
kill -0 "$server" || { cat "$work/server.log" >&2; exit 1; }
"$here/venv/bin/python" tests/moto/bucket.py put corpus data/ "$work/corpus/data"
mkdir "$work/empty"
"$here/venv/bin/python" tests/moto/bucket.py put runs none/ "$work/empty"

remote=("$program" run --config "$work/remote.toml")
for plan in "put-done journal/features 3" "put checkpoints/ 5"; do
    if WIKICAP_KILL_AT=$plan "${remote[@]}" > "$work/log" 2>&1; then
        echo "\`$plan\` was not reached" >&2
        exit 1
    fi
    rm -rf "$work"/wikicap-*
done
"${remote[@]}" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

"$here/venv/bin/python" tests/moto/bucket.py get runs some/run/ "$work/fetched"
[ ! -e "$work/fetched/lock" ] || { echo "the lease is still there" >&2; exit 1; }
for own in report.json run.toml lock scratch status.json events; do
    rm -rf "$work/fetched/$own" "$work/local/$own"
done
diff -r "$work/local" "$work/fetched"

# The same server once more as Google's: inputs by gs://, whose lists and reads have the same form.
cat > "$work/google.json" << JSON
{"gcs_base_url": "$AWS_ENDPOINT_URL", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}
JSON
pipeline "$work/from-gs" gs://corpus/data > "$work/gs.toml"
GOOGLE_SERVICE_ACCOUNT=$work/google.json "$program" run --config "$work/gs.toml" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
for own in report.json run.toml lock scratch status.json events; do rm -rf "$work/from-gs/$own"; done
diff -r "$work/local" "$work/from-gs"
echo "moto: $(find "$work/fetched" -type f | wc -l) files, the same bytes as on local disk after two kills"
