# Sourced by the scripts: the corpus, the pipeline and the comparison.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

# IMAGES and ROWS: training images of the corpus, and source rows of a chunk.
IMAGES=${IMAGES:-1200} ROWS=${ROWS:-40}

# prepare PROGRAM FOLDER: renders a corpus, writes whole.toml and parts.toml, and runs the former.
prepare() {
  mkdir -p "$2" && cd "$2"
  [ -e corpus ] || "$1" --quiet sample --out corpus --train-images "$IMAGES" --test-images 60 >/dev/null
  for name in whole parts; do
    sed -e "s#^dir = .*#dir = \"$name\"#" -e '/^\[sample\]/,/^$/d' -e 's#"demo/corpus/#"corpus/#g' -e "s/^rows = 256/rows = $ROWS/" \
      "$repository/pipelines/demo.toml" >"$name.toml"
  done
  printf '[limits]\nmemory = "600 MiB"\ndisk = "1 GiB"\ncpu_workers = 1\n' >machine.toml
  [ -e whole/submission.csv ] || "$1" run whole.toml --machine machine.toml --quiet >/dev/null
  rm -rf parts
}

# compare: holds every durable file of `parts` against `whole`.
compare() {
  for name in features quarantine journal checkpoints predict catalog duplicates.parquet submission.csv training.csv; do
    diff -r "whole/$name" "parts/$name" || { echo "DIFFERENT: $name"; return 1; }
  done
  echo "all durable files are the same bytes"
}
